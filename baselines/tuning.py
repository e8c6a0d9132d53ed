"""One tuning protocol for every model: equal budget, equal split, one metric on the validation rows.

The first trial of a model has its defaults, the others settings drawn from its space (`tuning_spaces.toml`). Each is
trained on the training rows and scored on the validation rows with edition core; test rows are never read. A trial
depends on the root seed, the model and its number alone, so a larger budget adds trials and changes none.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.atomic import atomic_folder, write_text
from ..data_specs.errors import InvalidFile, ModelError, OutputError, UnknownName, UsageError
from ..data_specs.hashing import file_sha256
from ..data_specs.specs import load_edition
from ..data_specs.split_file import Split, read_split
from ..evaluator.scorecard import MetricValue
from ..evaluator.scoring import score
from .predict import predict, write_prediction
from .registry import create, default_suite, is_deep
from .run_folder import load_run

DEFAULT_METRIC = "pearson_delta"
EDITION, PROFILE = "core", "means"
TRIAL, RECORD, TABLE = "trial.json", "tuning.json", "trials.csv"
# Deep models that place targets by their features; simple ones are those of the suite.
DEEP_WITH_FEATURES = ("gears", "cpa", "cellot")
COLUMNS = ("model", "trial", "value", "n", "n_total", "seconds", "reason", "settings")
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trial:
    """One trial: its settings, and the mean of the metric over the validation rows.

    `n` of `n_total` rows have a value. `value` is None with a `reason` when the model could not be trained or refused
    every row. `seconds` are wall time of training, prediction and scoring.
    """

    model: str
    trial: int
    settings: dict[str, Any]
    value: float | None
    n: int
    n_total: int
    seconds: float
    reason: str = ""


def spaces() -> dict[str, dict[str, dict[str, Any]]]:
    """Model to setting to `choices`, or `low`, `high` and `log`."""
    text = resources.files("vcbench.baselines").joinpath("tuning_spaces.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def trial_settings(model: str, number: int, seed: int) -> dict[str, Any]:
    """The settings of a model's trial: none for number 0. Raises `UsageError` for a model without a space."""
    known = spaces()
    if model not in known:
        raise UsageError(f"{model} has no search space; there are {', '.join(known)}.")
    if number == 0:
        return {}
    rng = np.random.default_rng([seed, zlib.crc32(model.encode()), number])
    return {name: _drawn(space, rng) for name, space in known[model].items()}


def _drawn(space: Mapping[str, Any], rng: np.random.Generator) -> Any:
    if "choices" in space:
        return space["choices"][int(rng.integers(len(space["choices"])))]
    low, high = space["low"], space["high"]
    if space.get("log"):
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = float(rng.uniform(low, high))
    return round(value) if isinstance(low, int) else float(f"{value:.3g}")


def tune(
    models: Sequence[str],
    data: str | os.PathLike[str],
    split: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    budget: int = 8,
    by: str = DEFAULT_METRIC,
    features: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
    tell: Tell | None = None,
) -> list[Trial]:
    """Tune models on one split.

    Parameters
    ----------
    models
        Names of baselines, each once.
    split
        A split file with validation rows.
    out
        The folder: one folder per trial below `trials/` (run folder, prediction, `trial.json`), `trials.csv`,
        `MODEL.toml` with the best settings (for `vcbench train --config`), `tuning.json`. Trials that are there already
        are not run again.
    budget
        Trials per model; a model without anything to tune gets one.
    by
        Metric of edition core that chooses.
    features
        As `vcbench train --features`, for the models that take features.
    settings
        Settings of every trial, before those of the space (for example `epochs`).

    Returns
    -------
    All trials, models in the given order.

    Raises
    ------
    UsageError
        The split has no validation rows, a budget below 1, or a model without a space.
    UnknownName
        `by` is no metric of mean profiles.
    OutputError
        `out` holds trials of other data, split, features, seed or metric.
    """
    if budget < 1:
        raise UsageError(f"a budget of {budget} trials; at least one is needed.")
    if len(set(models)) < len(models):
        raise UsageError("a model is named twice.")
    known = load_edition(EDITION).profiles[PROFILE].metrics
    if by not in known:
        raise UnknownName("metric", by, list(known), "vcbench list metrics")
    rows = read_split(split)
    if not rows.keys("validation"):
        raise UsageError(f"{split} has no validation rows, and nothing else may choose settings.")
    plan = [(model, n) for model in models for n in range(_trials_of(model, budget, seed))]
    folder = Path(out)
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    common = {
        "data": file_sha256(data),
        "split": file_sha256(split),
        "features": features,
        "seed": seed,
        "by": by,
        "settings": dict(settings or {}),
    }
    found = []
    for i, (model, number) in enumerate(plan):
        if tell is not None:
            tell(i, len(plan), f"{model}, trial {number + 1}")
        place = folder / "trials" / f"{model}-{number:03d}"
        chosen = {**(settings or {}), **trial_settings(model, number, seed)}
        asked = common | {"model": model, "trial": number, "chosen": chosen}
        trial = _stored(place, asked)
        if trial is None:
            trial = _run(place, asked, data, rows, split, device)
        found.append(trial)
    if tell is not None:
        tell(len(plan), len(plan), "done")
    _write(folder, found, common | {"budget": budget, "edition": EDITION, "profile": PROFILE})
    return found


def _trials_of(model: str, budget: int, seed: int) -> int:
    return budget if trial_settings(model, 1, seed) else 1


def best_trials(trials: Sequence[Trial], better: str) -> dict[str, Trial]:
    """Model to its best trial: the one that predicts most rows, then the best value, then the first."""
    sign = -1.0 if better == "higher" else 1.0
    out: dict[str, Trial] = {}
    for trial in sorted(
        trials, key=lambda t: (-t.n, math.inf if t.value is None else sign * t.value, t.trial)
    ):
        if trial.value is not None:
            out.setdefault(trial.model, trial)
    return out


def _stored(place: Path, asked: Mapping[str, Any]) -> Trial | None:
    if not (place / TRIAL).is_file():
        return None
    try:
        record = json.loads((place / TRIAL).read_text(encoding="utf-8"))
        stored = Trial(**record["trial"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{place / TRIAL}: no record of a trial ({error}). Remove {place}.") from error
    if record.get("asked") != json.loads(json.dumps(asked)):
        raise OutputError(
            f"{place}: a trial of other data, split, features, seed or settings. Choose another --out."
        )
    return stored


def _run(
    place: Path,
    asked: Mapping[str, Any],
    data: str | os.PathLike[str],
    rows: Split,
    split: str | os.PathLike[str],
    device: str,
) -> Trial:
    model, started = str(asked["model"]), time.perf_counter()
    keys = rows.keys("validation")
    value, n, reason = None, 0, ""
    # A trial that was cut short leaves nothing; its folder appears with its record.
    with atomic_folder(place) as part:
        try:
            _train(model, data, split, part / "run", asked, device)
            loaded = load_run(part / "run", device=device if is_deep(model) else "cpu")
            result = predict(loaded, keys)
            if len(result.refused()) == len(keys):
                raise ModelError(f"refused every row: {result.refused()[0]['reason']}")
            write_prediction(part / "prediction.h5ad", result, loaded)
            metric = _scored(part / "prediction.h5ad", data, rows, str(asked["by"]))
            value, n, reason = metric.value, metric.n, metric.reason or ""
        except ModelError as error:
            reason = str(error)
        spent = round(time.perf_counter() - started, 3)
        trial = Trial(model, int(asked["trial"]), dict(asked["chosen"]), value, n, len(keys), spent, reason)
        write_text(part / TRIAL, json.dumps({"asked": asked, "trial": asdict(trial)}, indent=1) + "\n")
    return trial


def _scored(prediction: Path, data: str | os.PathLike[str], rows: Split, by: str) -> MetricValue:
    try:
        card = score(
            prediction,
            data,
            edition=EDITION,
            profile=PROFILE,
            split=rows,
            subset="validation",
            intervals=False,
        ).card
    except InvalidFile as error:
        # A prediction that cannot be scored speaks against its settings; the data were read in training.
        raise ModelError("; ".join(f"{i.code} {i.message}: {i.found}" for i in error.issues)) from error
    return card.metrics[by]


def _train(
    model: str,
    data: str | os.PathLike[str],
    split: str | os.PathLike[str],
    run: Path,
    asked: Mapping[str, Any],
    device: str,
) -> None:
    chosen, seed = dict(asked["chosen"]), int(asked["seed"])
    create(model, chosen)
    features = asked["features"] if _takes_features(model) else None
    if is_deep(model):
        from .deep_train import train_deep

        train_deep(
            model, data, split, run, settings=chosen, features=features, seed=seed, device=device, quiet=True
        )
        return
    from .train import load_data, train

    train(model, load_data(data, split), run, settings=chosen, features=features, seed=seed)


def _takes_features(model: str) -> bool:
    return model in DEEP_WITH_FEATURES or any(
        known.name == model for known in default_suite(features=True) if known.uses_features
    )


def _write(folder: Path, trials: Sequence[Trial], record: Mapping[str, Any]) -> None:
    from ..evaluator.metrics.spec import family_metrics

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for t in trials:
        shown = json.dumps(t.settings, sort_keys=True)
        writer.writerow([t.model, t.trial, t.value, t.n, t.n_total, t.seconds, t.reason, shown])
    write_text(folder / TABLE, text.getvalue())
    best = best_trials(trials, family_metrics("core")[str(record["by"])].better)
    for model, trial in best.items():
        lines = [f"# The best of the trials of {model} by {record['by']} on the validation rows."]
        lines += [f"{name} = {json.dumps(value)}" for name, value in sorted(trial.settings.items())]
        write_text(folder / f"{model}.toml", "\n".join(lines) + "\n")
    listed = {model: asdict(trial) for model, trial in best.items()}
    write_text(folder / RECORD, json.dumps({**record, "best": listed}, indent=1, sort_keys=True) + "\n")
