"""Prediction meets truth: genes by name, rows by id map, by (cell type, compound), by index or by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import Issue, first_of, has_errors, sort_issues
from .tables import EffectTable, IdMap, Key, repeats, table_issue


@dataclass(frozen=True)
class TableRules:
    """What the edition says about tables: layers, the limit of the scored one, and the columns that name a row."""

    layer: str
    prediction_layer: str
    p_floor: float
    limit: float
    digits: int
    columns: tuple[str, str]


def table_rules(edition: Any) -> TableRules:
    """The rules of a table edition."""
    given: Mapping[str, Any] = edition.scoring.parameters
    return TableRules(
        layer=str(given["layer"]),
        prediction_layer=str(given["prediction_layer"]),
        p_floor=float(given["p_floor"]),
        limit=float(given["limit"]),
        digits=int(given["digits"]),
        columns=(str(edition.file.context_column), edition.file.perturbation_column),
    )


@dataclass(frozen=True)
class TablePair:
    """Truth and prediction with the same rows and genes.

    `truth` and `pred` are float64, shape (n_rows, n_genes), in the order of the rows to predict and of the truth's
    genes; NaN of the prediction is 0 already (`n_missing` of them). `matched_by` says how rows were found.
    """

    keys: tuple[Key, ...]
    genes: np.ndarray
    truth: np.ndarray
    pred: np.ndarray
    n_missing: int
    matched_by: str
    issues: tuple[Issue, ...]


def pair_tables(
    pred: EffectTable,
    truth: EffectTable,
    rules: TableRules,
    *,
    id_map: IdMap | None = None,
    intersection: bool = False,
) -> TablePair:
    """Match a prediction to the truth. `intersection` scores the shared genes instead of all of the truth's.

    Raises `InvalidFile` with all problems (E701, E703 to E709).
    """
    issues = [*layer_issues(pred, rules.prediction_layer), *layer_issues(truth, rules.layer)]
    issues += repeat_issues(pred, rules, needs_keys=False) + repeat_issues(truth, rules, needs_keys=True)
    _stop(issues)
    genes, gene_issues = _genes(pred, truth, intersection)
    issues += gene_issues
    rows, row_issues = _rows(pred, truth, rules, id_map)
    issues += row_issues
    _stop(issues)
    issues += dataset_issues(pred, truth)
    columns = [_positions(table.genes, genes) for table in (pred, truth)]
    p = pred.layers[rules.prediction_layer][np.ix_(rows.pred, columns[0])].astype(np.float64)
    t = truth.layers[rules.layer][np.ix_(rows.truth, columns[1])].astype(np.float64)
    issues += value_issues(pred, rules, p) + truth_issues(truth, rules, t)
    _stop(issues)
    missing = np.isnan(p)
    return TablePair(
        keys=tuple(rows.keys),
        genes=genes,
        truth=t,
        pred=np.where(missing, 0.0, p),
        n_missing=int(missing.sum()),
        matched_by=rows.matched_by,
        issues=tuple(issues),
    )


def _stop(issues: list[Issue]) -> None:
    if has_errors(issues):
        raise InvalidFile(sort_issues(issues))


def layer_issues(table: EffectTable, layer: str) -> list[Issue]:
    """E701 when the layer is absent."""
    if layer in table.layers:
        return []
    found = ", ".join(table.layers) or "no layer"
    return [table_issue("E701", table.path, "/layers", found, layer, key=layer)]


def repeat_issues(table: EffectTable, rules: TableRules, *, needs_keys: bool) -> list[Issue]:
    """Genes (E705) and rows (E704) that occur twice, and missing columns of a table that must have them (E703)."""
    issues = []
    if repeated := repeats(table.genes):
        issues.append(table_issue("E705", table.path, "/var", first_of(repeated), "each gene once"))
    if repeated := repeats(table.obs_names):
        issues.append(table_issue("E704", table.path, "/obs", first_of(repeated), "each row name once"))
    keys = table.keys(rules.columns)
    if keys is not None:
        if repeated := repeats("/".join(key) for key in keys):
            issues.append(table_issue("E704", table.path, "/obs", first_of(repeated), "each row once"))
    elif needs_keys:
        issues += [
            table_issue("E703", table.path, "/obs", ", ".join(table.obs) or "no column", column, key=column)
            for column in rules.columns
            if column not in table.obs
        ]
    return issues


def _genes(pred: EffectTable, truth: EffectTable, intersection: bool) -> tuple[np.ndarray, list[Issue]]:
    ours, theirs = set(pred.genes), set(truth.genes)
    shared = np.array([gene for gene in truth.genes if gene in ours], dtype=object)
    missing, extra = sorted(theirs - ours), sorted(ours - theirs)
    if missing and (not intersection or not len(shared)):
        expected = f"the {truth.n_vars:,} genes of {truth.name}"
        return shared, [table_issue("E706", pred.path, "/var", f"missing {first_of(missing)}", expected)]
    issues = []
    for table, names in ((truth, missing), (pred, extra)):
        if names:
            found = f"{first_of(names)} not in the other table"
            issues.append(table_issue("W704", table.path, "/var", found, "the same genes in both"))
    return shared, issues


@dataclass(frozen=True)
class _Rows:
    pred: np.ndarray
    truth: np.ndarray
    keys: list[Key]
    matched_by: str


def _rows(
    pred: EffectTable, truth: EffectTable, rules: TableRules, id_map: IdMap | None
) -> tuple[_Rows, list[Issue]]:
    truth_keys = truth.keys(rules.columns) or []
    pred_keys = pred.keys(rules.columns)
    names = [str(name) for name in pred.obs_names]
    if id_map is not None:
        wanted, listed, where, matched_by = list(id_map.keys), list(id_map.ids), names, "id map"
    elif pred_keys is not None:
        wanted, matched_by = truth_keys, "cell type and compound"
        listed, where = ["/".join(key) for key in truth_keys], ["/".join(key) for key in pred_keys]
    elif set(names) == {str(name) for name in truth.obs_names}:
        wanted, matched_by = truth_keys, "row name"
        listed, where = [str(name) for name in truth.obs_names], names
    else:
        wanted, matched_by = truth_keys, "row number"
        listed, where = [str(i) for i in range(truth.n_obs)], names
    issues = _row_set_issues(pred, listed, where, wanted if id_map is not None else None, pred_keys)
    absent = sorted("/".join(key) for key in set(wanted) - set(truth_keys))
    if absent:
        issues.append(
            table_issue(
                "E707", truth.path, "/obs", f"no row for {first_of(absent)}", "a row per line of the id map"
            )
        )
    unused = sorted("/".join(key) for key in set(truth_keys) - set(wanted))
    if unused:
        issues.append(
            table_issue(
                "W704", truth.path, "/obs", f"{first_of(unused)} not in the id map", "the rows to predict"
            )
        )
    if has_errors(issues):
        empty = np.empty(0, np.int64)
        return _Rows(empty, empty, [], matched_by), issues
    place = {key: i for i, key in enumerate(truth_keys)}
    truth_rows = np.array([place[key] for key in wanted], dtype=np.int64)
    return _Rows(_positions(where, listed), truth_rows, wanted, matched_by), issues


def _row_set_issues(
    pred: EffectTable, listed: list[str], found: list[str], wanted: list[Key] | None, named: list[Key] | None
) -> list[Issue]:
    """Rows that are missing, unexpected, in another order, or that obs names differently than the id map."""
    missing, extra = sorted(set(listed) - set(found)), sorted(set(found) - set(listed))
    if missing or extra:
        text = f"missing {first_of(missing)}; unexpected {first_of(extra)}"
        return [table_issue("E707", pred.path, "/obs", text, f"the {len(listed):,} rows to predict")]
    if wanted is not None and named is not None:
        place = dict(zip(listed, wanted, strict=True))
        wrong = sorted(row for row, key in zip(found, named, strict=True) if place[row] != key)
        if wrong:
            text = f"another cell type or compound in rows {first_of(wrong)}"
            return [table_issue("E707", pred.path, "/obs", text, "what the id map says of each id")]
    if found != listed:
        return [table_issue("W702", pred.path, "/obs", "other order", f"{first_of(listed)} in this order")]
    return []


def _positions(names: Any, wanted: Any) -> np.ndarray:
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[name] for name in wanted], dtype=np.int64)


def value_issues(pred: EffectTable, rules: TableRules, values: np.ndarray) -> list[Issue]:
    """Predicted values that are missing (W701), infinite (E709) or beyond the clip of the truth (W706)."""
    place = f"/layers/{rules.prediction_layer}"
    missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    issues = []
    if missing:
        found = f"{missing:,} of {values.size:,} values are NaN"
        issues.append(table_issue("W701", pred.path, place, found, "a number for every gene of every row"))
    if infinite:
        found = f"{infinite:,} of {values.size:,} values"
        issues.append(table_issue("E709", pred.path, place, found, "finite values"))
    beyond = int(((np.abs(values) > rules.limit) & np.isfinite(values)).sum())
    if beyond:
        found = f"{beyond:,} values up to {float(np.max(np.abs(values[np.isfinite(values)]))):.6g}"
        issues.append(table_issue("W706", pred.path, place, found, f"-{rules.limit:g} to {rules.limit:g}"))
    return issues


def truth_issues(truth: EffectTable, rules: TableRules, values: np.ndarray) -> list[Issue]:
    """E708 where the scored layer of the truth is not finite."""
    bad = int((~np.isfinite(values)).sum())
    if not bad:
        return []
    found = f"{bad:,} of {values.size:,} values"
    return [table_issue("E708", truth.path, f"/layers/{rules.layer}", found, "finite values")]


def dataset_issues(pred: EffectTable, truth: EffectTable) -> list[Issue]:
    """W703 when the two tables name different datasets."""
    ours, theirs = pred.uns.get("dataset_id"), truth.uns.get("dataset_id")
    if ours is None or theirs is None or str(ours) == str(theirs):
        return []
    return [
        table_issue(
            "W703", pred.path, "/uns/dataset_id", repr(str(ours)), f"{str(theirs)!r}, as in {truth.name}"
        )
    ]
