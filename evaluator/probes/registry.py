"""The registry of probes: what each changes in an entry, who documented it, and what is expected to notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...data_specs.errors import UnknownName
from ...data_specs.spec_models import Edition
from .facts import Facts
from .rows import GroupedRows

if TYPE_CHECKING:
    import scipy.sparse as sp

# Rows of a block with their group codes and the number of the first row, to rows of the same shape.
RowChange = Callable[["sp.csr_array", np.ndarray, int], "sp.csr_array"]
Kind = Literal["exploit", "control"]
# The modules that register probes when they are imported, in the order of tables.
MODULES = ("effects", "labels", "scales", "cells", "controls", "spikes")


@dataclass(frozen=True)
class Stage:
    """An entry about to be changed.

    Attributes
    ----------
    entry
        Its facts; `entry.grouped` are its rows.
    reference
        The control profile that the edition measures the changes of each key from, log1p space, (n_keys, n_genes).
    cap
        Largest log1p value that a changed row may hold; None without a limit.
    targets
        Positions of each key's own target genes.
    target_direction
        +1 where the truth's perturbations raise their own targets, -1 where they lower them, 0 where it is unknown.
    seed
        Root seed; see `generator`.
    """

    entry: Facts
    edition: Edition
    reference: np.ndarray
    cap: float | None
    targets: tuple[np.ndarray, ...]
    target_direction: int
    seed: int

    @property
    def grouped(self) -> GroupedRows:
        """The entry's rows."""
        return self.entry.grouped

    @property
    def effects(self) -> np.ndarray:
        """Predicted change of each key from its reference, (n_keys, n_genes); zero for controls."""
        change = self.entry.mean - self.reference
        change[self.grouped.is_control] = 0.0
        return change

    def generator(self, name: str) -> np.random.Generator:
        """The stream of random numbers of one probe: it depends on the seed and the probe's name alone."""
        return np.random.default_rng([self.seed, *name.encode()])


@dataclass(frozen=True)
class Change:
    """What a probe does: other labels for the rows, other rows, or both. `note` says what could not be reached."""

    labels: np.ndarray | None = None
    rows: RowChange | None = None
    note: str = ""


@dataclass(frozen=True)
class NotApplicable:
    """Why a probe says nothing about this entry."""

    reason: str


@dataclass(frozen=True)
class Probe:
    """One registered probe.

    Attributes
    ----------
    kind
        `exploit`: raises some score without better predictions, or is meant to; `control`: a negative control.
    caught_by
        Names of the flags and marks of which at least one must notice the changed entry; () for negative controls.
    documented
        Where the exploit or control was described.
    """

    name: str
    kind: Kind
    caught_by: tuple[str, ...]
    documented: str
    apply: Callable[[Stage], Change | NotApplicable]

    @property
    def text(self) -> str:
        """What the probe does: the first paragraph of its function's docstring on one line."""
        return " ".join((self.apply.__doc__ or "").split("\n\n")[0].split())


_PROBES: dict[str, Probe] = {}


def probe(
    name: str, *, kind: Kind, documented: str, caught_by: tuple[str, ...] = ()
) -> Callable[[Callable[[Stage], Change | NotApplicable]], Callable[[Stage], Change | NotApplicable]]:
    """Register the decorated function under `name`."""

    def register(
        apply: Callable[[Stage], Change | NotApplicable],
    ) -> Callable[[Stage], Change | NotApplicable]:
        _PROBES[name] = Probe(name, kind, caught_by, documented, apply)
        return apply

    return register


def all_probes() -> dict[str, Probe]:
    """Every probe by name, in the order of tables."""
    for module in MODULES:
        import_module(f"{__package__}.{module}")
    place = {f"{__package__}.{module}": i for i, module in enumerate(MODULES)}
    # Whoever imported a module first must not decide the order; within a module the definitions do.
    return dict(sorted(_PROBES.items(), key=lambda item: place[item[1].apply.__module__]))


def choose_probes(names: tuple[str, ...] | None) -> list[Probe]:
    """The probes of these names, all for None. Raises `UnknownName`."""
    known = all_probes()
    for name in names or ():
        if name not in known:
            raise UnknownName("probe", name, list(known), "vcbench probe --help")
    return list(known.values()) if names is None else [known[name] for name in dict.fromkeys(names)]
