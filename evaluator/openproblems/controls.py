"""The six control methods of Open Problems: predictions without a model that every table shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import has_errors, sort_issues
from .pairing import TableRules, layer_issues, repeat_issues, truth_issues
from .tables import EffectTable, Key, table_issue

TITLES = {
    "ground_truth": "the truth itself: the best possible values",
    "zeros": "no effect anywhere",
    "sample": "a random training row for each row",
    "mean_outcome": "the mean training row",
    "mean_across_celltypes": "the mean training row of the same cell type",
    "mean_across_compounds": "the mean training row of the same compound",
}


@dataclass(frozen=True)
class ControlPrediction:
    """What one method predicts, float64, shape (n_rows, n_genes); None with the reason when it cannot."""

    values: np.ndarray | None
    reason: str | None = None


def control_predictions(
    keys: Sequence[Key],
    genes: np.ndarray,
    truth: np.ndarray,
    train: EffectTable | None,
    rules: TableRules,
    rng: np.random.Generator,
) -> dict[str, ControlPrediction]:
    """All six methods, in the order of the task.

    Parameters
    ----------
    keys, genes, truth
        The rows to predict, the genes and the truth, float64, shape (n_rows, n_genes).
    train
        The training table with the scored layer; without it four methods have a reason instead of values.
    rng
        Draws the rows of `sample`.

    Raises
    ------
    InvalidFile
        The training table lacks the layer, the columns or a gene, repeats a row, or holds values that are not finite.
    """
    n = len(keys)
    out = {"ground_truth": ControlPrediction(truth), "zeros": ControlPrediction(np.zeros_like(truth))}
    if train is None:
        missing = ControlPrediction(None, "needs the training table: --reference train=de_train.h5ad")
        return out | dict.fromkeys([name for name in TITLES if name not in out], missing)
    values, train_keys = _training(train, genes, rules)
    out["sample"] = ControlPrediction(values[rng.integers(len(values), size=n)])
    out["mean_outcome"] = ControlPrediction(np.repeat(values.mean(axis=0, keepdims=True), n, axis=0))
    for name, part in (("mean_across_celltypes", 0), ("mean_across_compounds", 1)):
        out[name] = _group_means(values, [k[part] for k in train_keys], [k[part] for k in keys])
    return out


def _training(train: EffectTable, genes: np.ndarray, rules: TableRules) -> tuple[np.ndarray, list[Key]]:
    issues = layer_issues(train, rules.layer) + repeat_issues(train, rules, needs_keys=True)
    place = {gene: i for i, gene in enumerate(train.genes)}
    absent = [str(gene) for gene in genes if gene not in place]
    if absent:
        found, expected = f"{len(absent):,} missing, first {absent[0]!r}", "every scored gene"
        issues.append(table_issue("E706", train.path, "/var", found, expected))
    if not train.n_obs:
        issues.append(table_issue("E707", train.path, "/obs", "no row", "training rows"))
    if not has_errors(issues):
        columns = np.array([place[gene] for gene in genes], dtype=np.int64)
        values = train.layers[rules.layer][:, columns].astype(np.float64)
        issues += truth_issues(train, rules, values)
        if not has_errors(issues):
            return values, train.keys(rules.columns) or []
    raise InvalidFile(sort_issues(issues))


def _group_means(values: np.ndarray, groups: list[str], wanted: list[str]) -> ControlPrediction:
    means = {name: values[[g == name for g in groups]].mean(axis=0) for name in dict.fromkeys(groups)}
    unknown = sorted(set(wanted) - set(means))
    if unknown:
        return ControlPrediction(None, f"no training row for {len(unknown)} of them, first {unknown[0]!r}")
    return ControlPrediction(np.array([means[name] for name in wanted]))


def write_control_predictions(
    folder: str | os.PathLike[str],
    truth: Any,
    train: Any,
    *,
    id_map: str | os.PathLike[str] | None = None,
    edition: str = "openproblems",
    seed: int = 0,
    force: bool = False,
) -> Mapping[str, Path | str]:
    """Write the prediction file of every control method as one folder: NAME.h5ad, rows in the order to predict.

    Returns the path of each method, or the reason why it has none. Arguments as of `pipeline.score_openproblems`.
    Raises `InvalidFile` and `OutputError`.
    """
    from ...data_specs.atomic import atomic_folder
    from ...data_specs.h5ad_write import write_h5ad_layers
    from ...data_specs.specs import load_edition
    from .pairing import pair_tables, table_rules
    from .tables import open_table, read_id_map

    rules = table_rules(load_edition(edition))
    real = open_table(truth, name="truth", layers=(rules.layer,))
    # The truth predicts itself: this checks it, and puts its rows into the order of the id map.
    itself = _as_prediction(real, rules)
    rows = None if id_map is None else read_id_map(id_map)
    ids = [str(name) for name in real.obs_names] if rows is None else list(rows.ids)
    if rows is not None:
        itself = _renamed(itself, rows.keys, rows.ids, rules)
    pair = pair_tables(itself, real, rules, id_map=rows)
    opened = None if train is None else open_table(train, name="training table", layers=(rules.layer,))
    methods = control_predictions(
        pair.keys, pair.genes, pair.truth, opened, rules, np.random.default_rng(seed)
    )
    done: dict[str, Path | str] = {}
    with atomic_folder(folder, force=force) as part:
        for name, method in methods.items():
            if method.values is None:
                done[name] = method.reason or ""
                continue
            write_h5ad_layers(
                part / f"{name}.h5ad",
                {rules.prediction_layer: method.values},
                genes=[str(gene) for gene in pair.genes],
                obs={column: [key[i] for key in pair.keys] for i, column in enumerate(rules.columns)},
                obs_names=ids,
                uns={"dataset_id": str(real.uns.get("dataset_id", "unknown")), "method_id": name},
            )
            done[name] = Path(folder) / f"{name}.h5ad"
    return done


def _as_prediction(truth: EffectTable, rules: TableRules) -> EffectTable:
    from dataclasses import replace

    layers = {rules.prediction_layer: truth.layers[rules.layer]} if rules.layer in truth.layers else {}
    return replace(truth, layers=layers)


def _renamed(table: EffectTable, keys: Sequence[Key], ids: Sequence[str], rules: TableRules) -> EffectTable:
    """The table with the ids of the id map as row names; rows that the map does not list are left out."""
    from dataclasses import replace

    names = dict(zip(keys, ids, strict=True))
    listed = table.keys(rules.columns) or []
    keep = np.array([key in names for key in listed], dtype=bool)
    kept = [key for key in listed if key in names]
    return replace(
        table,
        obs_names=np.array([names[key] for key in kept], dtype=object),
        obs={column: values[keep] for column, values in table.obs.items()},
        layers={key: values[keep] for key, values in table.layers.items()},
    )
