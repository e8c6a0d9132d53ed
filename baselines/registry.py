"""Every baseline by name: lazy targets, one line of help each, and the suites that leaderboards run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ..data_specs.errors import UnknownName
from .features import FeatureSource
from .settings import build_config, describe

_SIMPLE = "vcbench.baselines.simple"
BASELINES: dict[str, tuple[str, str]] = {
    "no-change": (f"{_SIMPLE}.means:NoChange", "Control mean: no perturbation changes anything"),
    "mean": (f"{_SIMPLE}.means:Mean", "Mean of training perturbations, equal or cell weights"),
    "context-mean": (
        f"{_SIMPLE}.means:ContextMean",
        "Mean of the perturbed training cells of the same context",
    ),
    "perturbation-mean": (
        f"{_SIMPLE}.perturbation_mean:PerturbationMean",
        "Mean effect of the same perturbation over training contexts",
    ),
    "additive": (f"{_SIMPLE}.additive:Additive", "Sum of the single effects"),
    "matching-mean": (f"{_SIMPLE}.additive:MatchingMean", "Average of the parts' profiles"),
    "linear": (f"{_SIMPLE}.linear:Linear", "Linear model on gene and perturbation embeddings"),
    "transfer": (
        f"{_SIMPLE}.transfer:Transfer",
        "Ridge regression from one context's effect components to another's",
    ),
    "ridge": (f"{_SIMPLE}.ridge:Ridge", "Ridge regression from target features to effects"),
    "kernel-ridge": (
        f"{_SIMPLE}.ridge:KernelRidge",
        "Kernel ridge regression (linear, cosine or RBF) from target features to effects",
    ),
    "knn": (f"{_SIMPLE}.neighbours:Knn", "Nearest training perturbations in feature space (cosine)"),
    "go-neighbours": (
        f"{_SIMPLE}.neighbours:GoNeighbours",
        "Mean effect of the training targets with similar GO terms",
    ),
    "coexpression-neighbours": (
        f"{_SIMPLE}.neighbours:CoexpressionNeighbours",
        "Mean effect of the training targets with correlated expression",
    ),
    "random-forest": (f"{_SIMPLE}.forest:RandomForest", "Random forest from target features to effects"),
}

# Deep models: their classes import without torch, training and predicting with them needs it.
DEEP: dict[str, tuple[str, str]] = {
    "cellot": (
        "vcbench.baselines.cellot.baseline:Cellot",
        "CellOT: optimal transport maps of control cells",
    ),
    "gears": (
        "vcbench.baselines.gears.baseline:Gears",
        "GEARS: graph network over gene and GO graphs",
    ),
    "cpa": (
        "vcbench.baselines.cpa.baseline:Cpa",
        "CPA: compositional perturbation autoencoder",
    ),
    "scgpt": (
        "vcbench.baselines.scgpt.baseline:ScGPT",
        "scGPT: transformer over gene tokens, from scratch or from a checkpoint",
    ),
}


@dataclass(frozen=True)
class SuiteModel:
    """One row of a leaderboard: a baseline, its settings, and whether it gets the suite's feature file."""

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    uses_features: bool = False


def names() -> list[str]:
    """Names of all baselines, simple ones first, in table order."""
    return [*BASELINES, *DEEP]


def simple_names() -> list[str]:
    """Names of the baselines that are fitted in one step, in table order."""
    return list(BASELINES)


def is_deep(name: str) -> bool:
    """Whether a baseline is trained by the loop and needs torch. Raises `UnknownName`; imports no model."""
    _target(name)
    return name in DEEP


def titles() -> dict[str, str]:
    """One line about each baseline, without importing any."""
    return {name: text for name, (_, text) in {**BASELINES, **DEEP}.items()}


def _target(name: str) -> str:
    if name not in BASELINES and name not in DEEP:
        raise UnknownName("baseline", name, names(), "vcbench list baselines")
    return (BASELINES.get(name) or DEEP[name])[0]


def baseline_class(name: str) -> type[Any]:
    """The class of a baseline. Raises `UnknownName`."""
    module, attribute = _target(name).split(":")
    return getattr(import_module(module), attribute)


def create(
    name: str, settings: Mapping[str, Any] | None = None, *, features: FeatureSource | None = None
) -> Any:
    """An unfitted baseline with checked settings. Raises `UnknownName` or `UsageError`."""
    found = baseline_class(name)
    if is_deep(name):
        return found(found.resolve(settings or {}), features=features)
    return found(build_config(found.Config, settings or {}, model=name), features=features)


def settings_of(name: str) -> list[tuple[str, str, Any]]:
    """(setting, type in words, default) of a baseline. Raises `UnknownName`."""
    return describe(baseline_class(name).Config)


def explain(name: str) -> dict[str, Any]:
    """What a reader wants to know about a baseline: title, what it does, source, settings. Raises `UnknownName`."""
    found = baseline_class(name)
    presets = {"presets": found.preset_names()} if is_deep(name) else {}
    return {
        "title": found.info.title,
        "description": inspect.getdoc(found),
        "source": found.info.paper,
        "settings": [f"{key} ({words}, default {default})" for key, words, default in settings_of(name)],
        "about the settings": inspect.getdoc(found.Config),
        **presets,
    }


def default_suite(*, features: bool = False, n_contexts: int = 1) -> tuple[SuiteModel, ...]:
    """The simple baselines of a leaderboard.

    Parameters
    ----------
    features
        A GO feature file will be given: adds the models on GO features and the GO neighbours.
    n_contexts
        Training contexts of the data; from two on, the models that transfer between contexts are added.
    """
    suite = [
        SuiteModel("no-change", "no-change"),
        SuiteModel("mean", "mean"),
        SuiteModel("mean-cell", "mean", {"weighting": "cell"}),
        SuiteModel("additive", "additive"),
        SuiteModel("additive-mean-delta", "additive", {"missing": "mean-delta"}),
        SuiteModel("matching-mean", "matching-mean"),
        SuiteModel("linear", "linear"),
        SuiteModel("ridge", "ridge"),
        SuiteModel("kernel-ridge", "kernel-ridge"),
        SuiteModel("knn", "knn"),
        SuiteModel("coexpression-neighbours", "coexpression-neighbours"),
        SuiteModel("random-forest", "random-forest"),
    ]
    if n_contexts > 1:
        suite += [
            SuiteModel("context-mean", "context-mean"),
            SuiteModel("perturbation-mean", "perturbation-mean"),
        ]
    if n_contexts == 2:
        suite.append(SuiteModel("transfer", "transfer"))
    if features:
        suite += [
            SuiteModel("linear-go", "linear", {"perturbation_embedding": "features"}, True),
            SuiteModel("linear-go-spectral", "linear", {"perturbation_embedding": "go-spectral"}, True),
            SuiteModel("ridge-go", "ridge", {}, True),
            SuiteModel("kernel-ridge-go", "kernel-ridge", {}, True),
            SuiteModel("knn-go", "knn", {}, True),
            SuiteModel("go-neighbours", "go-neighbours", {}, True),
            SuiteModel("random-forest-go", "random-forest", {}, True),
        ]
    return tuple(suite)
