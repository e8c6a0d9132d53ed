"""Metric specifications and their registry. A metric family is one module; importing it registers its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from ...data_specs.errors import UnknownName

# One line per family: the modules whose import registers the family's metrics.
FAMILIES: dict[str, tuple[str, ...]] = {
    "core": ("expression", "differential", "distribution"),
    "gears": ("gears",),
    "cellot": ("cellot",),
    "celleval": ("celleval",),
    "vcc2026": ("vcc2026",),
    "openproblems": ("openproblems",),
}
Needs = Literal["bulk", "de", "pred_de", "cells", "train_reference"]


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is and how to read its value. No field has a default on purpose, except `value_range`.

    `nulls` says when a perturbation has no value; `perfect` is the value of an exact copy of the truth (None
    where none exists); `better` is the direction; `formula` and `source` are for `vcbench explain`.
    `compute` is called by the pipeline of the family; its arguments are that family's.
    """

    name: str
    version: int
    family: str
    title: str
    formula: str
    source: str
    better: Literal["higher", "lower", "none"]
    perfect: float | None
    needs: frozenset[str]
    nulls: str
    scope: Literal["perturbation", "panel"]
    compute: Callable[..., Any]


_REGISTRY: dict[tuple[str, str], MetricSpec] = {}


def register(spec: MetricSpec) -> MetricSpec:
    """Add a metric. A name may occur once per family; a collision is a programming error."""
    key = (spec.family, spec.name)
    if key in _REGISTRY:
        raise ValueError(f"metric {spec.name!r} of family {spec.family!r} is registered twice")
    _REGISTRY[key] = spec
    return spec


def family_metrics(family: str) -> dict[str, MetricSpec]:
    """All metrics of a family by name, in registration order."""
    for module in FAMILIES[family]:
        import_module(f".{module}", __package__)
    return {name: spec for (owner, name), spec in _REGISTRY.items() if owner == family}


def find_metric(name: str) -> list[MetricSpec]:
    """Every metric of this name, one per family that has it. Raises `UnknownName`."""
    found, known = [], set()
    for family in FAMILIES:
        metrics = family_metrics(family)
        known |= set(metrics)
        if name in metrics:
            found.append(metrics[name])
    if not found:
        raise UnknownName("metric", name, sorted(known), "vcbench list metrics")
    return found
