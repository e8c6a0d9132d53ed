"""Many baselines on one split: fit, predict, and the perfect prediction that leaderboards carry."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data_specs.atomic import check_output
from ..data_specs.errors import ModelError, UsageError
from ..data_specs.split_file import Split, read_split
from .data import load_means
from .features import FeatureSource, feature_source
from .predict import choose_keys, predict, write_mean_effects, write_prediction
from .registry import SuiteModel, default_suite
from .run_folder import load_run
from .train import LoadedData, load_data, train


@dataclass(frozen=True)
class SuiteEntry:
    """What one model of a suite did.

    `prediction` is the mean-effects file, or None with `reason` when the model could not be fitted or refused every
    row. `refused` lists refusals as {"context", "perturbation", "reason"}.
    """

    label: str
    name: str
    run: Path | None
    prediction: Path | None
    n_predicted: int
    n_fallback: int
    n_total: int
    refused: tuple[dict[str, str], ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dict for reports."""
        return {
            "label": self.label,
            "model": self.name,
            "run": None if self.run is None else str(self.run),
            "prediction": None if self.prediction is None else str(self.prediction),
            "n_predicted": self.n_predicted,
            "n_fallback": self.n_fallback,
            "n_total": self.n_total,
            "refused": list(self.refused),
            "reason": self.reason,
        }


def run_suite(
    data: str | os.PathLike[str] | LoadedData,
    split: str | os.PathLike[str] | Split | None,
    out: str | os.PathLike[str],
    *,
    models: Sequence[SuiteModel] | None = None,
    features: str | FeatureSource | None = None,
    seed: int = 0,
    on_start: Callable[[str], None] | None = None,
) -> list[SuiteEntry]:
    """Train every model on a split, predict the test rows, write everything below `out`.

    Parameters
    ----------
    data
        A standard file, or one already loaded with `load_data` (then `split` is ignored in favour of its own).
    models
        Default: `default_suite` for the data's contexts, with the GO models when `features` is `go:`.
    features
        What models with `uses_features` get, as `--features` takes it.
    on_start
        Called with the label of each model before it is fitted.

    Returns
    -------
    One entry per model, in order: runs in `out/runs/LABEL`, predictions in `out/predictions/LABEL.h5ad`. A model
    that the data cannot support is an entry with a reason, not an error.

    Raises
    ------
    UsageError
        The split has no test rows, or a model wants features and none were given.
    OutputError
        A run folder or prediction exists already.
    """
    loaded = data if isinstance(data, LoadedData) else load_data(data, split)
    tests = [] if loaded.split is None else loaded.split.keys("test")
    if not tests:
        raise UsageError("a suite needs a split with test rows.")
    source = feature_source(features) if isinstance(features, str) else features
    if models is None:
        n_contexts = len({context for context, _ in loaded.data.keys})
        models = default_suite(features=source is not None and source.is_go, n_contexts=n_contexts)
    folder = Path(out)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "predictions").mkdir(exist_ok=True)
    entries = []
    for model in models:
        if on_start is not None:
            on_start(model.label)
        if model.uses_features and source is None:
            raise UsageError(f"{model.label} needs features: give a table or go:FILE.gmt.")
        entries.append(
            _run_one(model, loaded, folder, source if model.uses_features else None, seed, len(tests))
        )
    return entries


def _run_one(
    model: SuiteModel,
    loaded: LoadedData,
    folder: Path,
    features: FeatureSource | None,
    seed: int,
    n_tests: int,
) -> SuiteEntry:
    run_folder = folder / "runs" / model.label
    file = folder / "predictions" / f"{model.label}.h5ad"
    try:
        train(model.name, loaded, run_folder, settings=model.settings, features=features, seed=seed)
    except ModelError as error:
        return SuiteEntry(model.label, model.name, None, None, 0, 0, n_tests, reason=str(error))
    run = load_run(run_folder)
    keys = choose_keys(run, perturbations=None, everything=False, contexts=())
    result = predict(run, keys)
    counts = result.prediction.counts()
    refused = tuple(result.refused())
    written, reason = None, ""
    if len(refused) < len(keys):
        write_prediction(file, result, run)
        written = file
    else:
        reason = f"refused every row; {refused[0]['reason']}"
    return SuiteEntry(
        model.label,
        model.name,
        run_folder,
        written,
        counts["predicted"],
        counts["fallback"],
        len(keys),
        refused,
        reason,
    )


def write_perfect(
    data: str | os.PathLike[str],
    split: str | os.PathLike[str] | Split,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
) -> int:
    """Write the measured means of the test rows as a prediction, and return how many rows it has.

    This reads the test data: it is the upper bound that a leaderboard shows beside its models, never a model.

    Raises
    ------
    UsageError
        The file holds no cell of any test row.
    OutputError
        The output exists, equals the data, or cannot be written.
    """
    chosen = split if isinstance(split, Split) else read_split(split)
    check_output(out, inputs=[data], force=force)
    found = load_means(data, chosen.keys("test"))
    if not found.keys:
        raise UsageError(f"{data}: no cell belongs to a test row of the split.")
    write_mean_effects(
        out,
        found.means,
        genes=found.genes,
        keys=found.keys,
        target_sum=found.target_sum,
        dataset_id=found.dataset_id,
        extra={"model": "perfect", "oracle": True},
    )
    return len(found.keys)
