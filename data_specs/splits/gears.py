"""GEARS' splits: its draws on the published condition strings, reproduced exactly, and versions without its defects.

Source: Roohani, Huang, Leskovec, Nature Biotechnology 2024 (doi 10.1038/s41587-023-01905-6), release 0.1.2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import UsageError
from ..gmt import covered, read_gmt
from ..labels import CONTROL, split_label
from ..remote import input_path
from ..split_file import Key, Split, SplitName, labels_sha256
from .labels_table import LabelTable, assemble

FILLER = "ctrl"
Kind = Literal["single", "combo_seen0", "combo_seen1", "combo_seen2", "no_test"]
KINDS: tuple[Kind, ...] = ("single", "combo_seen0", "combo_seen1", "combo_seen2", "no_test")
HELD_OUT_GROUPS = ("combo_seen0", "combo_seen1", "combo_seen2", "unseen_single")


@dataclass(frozen=True)
class ConditionSets:
    """Conditions of each part, and for `simulation` the subgroups of the test and the validation pass."""

    train: list[str]
    validation: list[str]
    test: list[str]
    test_subgroups: Mapping[str, list[str]] = field(default_factory=dict)
    validation_subgroups: Mapping[str, list[str]] = field(default_factory=dict)

    def part_of(self, condition: str) -> SplitName | None:
        """The part of a condition; test before validation before train where draws overlap, None in no part."""
        if condition in self.test:
            return "test"
        if condition in self.validation:
            return "validation"
        return "train" if condition in self.train else None


def condition_genes(condition: str) -> tuple[str, ...]:
    """The genes of a condition string, without the filler."""
    return tuple(part for part in condition.split("+") if part != FILLER)


def _genes(conditions: Iterable[str]) -> list[str]:
    return sorted({gene for condition in conditions for gene in condition_genes(condition)})


def _singles(conditions: Iterable[str]) -> list[str]:
    return [c for c in conditions if len(condition_genes(c)) == 1]


def _combos(conditions: Iterable[str]) -> list[str]:
    return [c for c in conditions if len(condition_genes(c)) > 1]


def _having(genes: Iterable[str], conditions: Iterable[str]) -> list[str]:
    wanted = set(genes)
    return [c for c in conditions if wanted & set(condition_genes(c))]


def _choose(items: Sequence[str], n: int, state: np.random.RandomState, *, replace: bool) -> list[str]:
    if n == 0:
        return []
    return [items[int(i)] for i in state.choice(len(items), n, replace=replace)]


def simulation_pass(
    conditions: Sequence[str], *, gene_fraction: float, combo_fraction: float, seed: int
) -> tuple[list[str], dict[str, list[str]]]:
    """One pass of the `simulation` split: (train, held-out conditions by subgroup).

    `gene_fraction` of the genes are seen; singles of seen genes and `combo_fraction` of the combinations of
    two seen genes train, everything else is held out. The draw depends on the set of conditions, not on
    their order.
    """
    genes = _genes(conditions)
    seen = _choose(genes, int(len(genes) * gene_fraction), np.random.RandomState(seed), replace=False)
    unseen = [gene for gene in genes if gene not in set(seen)]
    singles, combos = _singles(conditions), _combos(conditions)
    n_seen = {c: sum(gene in set(seen) for gene in condition_genes(c)) for c in combos}
    both = sorted({c for c in combos if n_seen[c] == len(condition_genes(c))})
    kept = _choose(both, int(len(both) * combo_fraction), np.random.RandomState(seed), replace=False)
    held_out = {
        "combo_seen0": [c for c in combos if n_seen[c] == 0],
        "combo_seen1": [c for c in combos if 0 < n_seen[c] < len(condition_genes(c))],
        "combo_seen2": [c for c in both if c not in set(kept)],
        "unseen_single": _having(unseen, singles),
    }
    return _having(seen, singles) + kept, held_out


def simulation_sets(
    conditions: Sequence[str], *, seed: int, gene_fraction: float = 0.75, combo_fraction: float = 0.75
) -> ConditionSets:
    """The `simulation` split of condition strings (without control): one pass for test, one for validation."""
    train, test = simulation_pass(
        conditions, gene_fraction=gene_fraction, combo_fraction=combo_fraction, seed=seed
    )
    train, validation = simulation_pass(train, gene_fraction=0.9, combo_fraction=0.9, seed=seed)
    return ConditionSets(train, _flat(validation), _flat(test), test, validation)


def _flat(groups: Mapping[str, list[str]]) -> list[str]:
    return [condition for group in groups.values() for condition in group]


def kind_sets(conditions: Sequence[str], kind: Kind, *, seed: int, compat: bool = True) -> ConditionSets:
    """The `single`, `combo_seen0/1/2` or `no_test` split of condition strings (without control).

    With `compat`, draws are upstream's: with replacement, so parts are smaller than a tenth and may be empty,
    and depend on the order of the conditions. Without it, draws are without replacement from sorted
    conditions and every part holds at least one condition.

    Raises
    ------
    UsageError
        Without `compat`: there are too few conditions of the needed sort.
    """
    state = np.random.RandomState(seed)
    pool = list(conditions) if compat else sorted(conditions)
    if kind == "no_test":
        train, validation = _hold_out(pool, kind, state, compat=compat, part="validation")
        return ConditionSets(train, validation, [])
    train, test = _hold_out(pool, kind, state, compat=compat, part="test")
    train, validation = _hold_out(train, kind, state, compat=compat, part="validation")
    return ConditionSets(train, validation, test)


def _hold_out(
    conditions: list[str], kind: Kind, state: np.random.RandomState, *, compat: bool, part: str
) -> tuple[list[str], list[str]]:
    def draw(items: list[str], n: int) -> list[str]:
        if compat:
            return _choose(items, n, state, replace=True)
        if not items:
            raise UsageError(f"{kind}: no condition is left that could be held out for {part}.")
        return _choose(items, min(max(n, 1), len(items)), state, replace=False)

    singles, combos = _singles(conditions), _combos(conditions)
    # Upstream draws the genes first for every kind, also where they are not used; later draws depend on it.
    genes = (
        draw(_genes(conditions), int(len(singles) * 0.1))
        if compat or kind not in ("no_test", "combo_seen2")
        else []
    )
    discarded: list[str] = []
    if kind == "no_test":
        held_out = draw(conditions, int(len(conditions) * 0.1))
    elif kind == "combo_seen2":
        held_out = draw(combos, int(len(combos) * 0.1))
    else:
        candidates = _having(genes, combos)
        limit = {"single": 0, "combo_seen0": 1, "combo_seen1": 2}[kind]
        outside = {c: sum(gene not in set(genes) for gene in condition_genes(c)) for c in candidates}
        discarded = [c for c in candidates if outside[c] >= limit]
        held_out = _having(genes, singles) + [c for c in candidates if outside[c] < limit]
    gone = set(held_out) | set(discarded)
    train = [c for c in conditions if c not in gone]
    if not compat and not (held_out and train):
        raise UsageError(f"{kind}: {len(conditions)} conditions leave none for {part} or none to train.")
    return train, held_out


def condition_of(perturbation: str, source: str) -> str:
    """The condition string on which GEARS draws, from the canonical and the published label.

    Published strings with `+` are taken as they are; a plain single `A` becomes `A+ctrl`, a combination
    with another separator its targets in published order.
    """
    if perturbation == CONTROL:
        return FILLER
    if "+" in source:
        return source
    parts = split_label(perturbation)
    if len(parts) == 1:
        return f"{parts[0]}+{FILLER}"
    return "+".join(sorted(parts, key=lambda part: (source.find(part), part)))


def _conditions(table: LabelTable) -> tuple[dict[str, str], int]:
    """Condition string to canonical label in order of first appearance, and how many strings were completed."""
    found: dict[str, str] = {}
    completed = set()
    for _, name, source in table.rows:
        if name == CONTROL:
            continue
        condition = condition_of(name, source)
        found.setdefault(condition, name)
        if condition != source:
            completed.add(condition)
    return found, len(completed)


def _covered_conditions(
    conditions: Mapping[str, str], gmt: str | os.PathLike[str], max_term_size: int
) -> tuple[list[str], dict[str, Any]]:
    annotation = read_gmt(gmt, max_term_size=max_term_size)
    genes = _genes(conditions)
    known = set(covered(genes, annotation))
    kept = [c for c in conditions if known.issuperset(condition_genes(c))]
    dropped = sorted(set(conditions) - set(kept))
    note = {"gmt": input_path(gmt).name, "max_term_size": max_term_size, "dropped": dropped}
    return kept, {"drop_uncovered": {**note, "targets": [gene for gene in genes if gene not in known]}}


def _split(
    table: LabelTable,
    sets: ConditionSets,
    conditions: Mapping[str, str],
    *,
    scheme: str,
    seed: int,
    parameters: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> Split:
    order: dict[SplitName, int] = {"train": 0, "validation": 1, "test": 2}
    part_of: dict[str, SplitName] = {}
    group_of: dict[str, str] = {}
    for condition, name in conditions.items():
        part = sets.part_of(condition)
        if part is not None and (name not in part_of or order[part] > order[part_of[name]]):
            part_of[name] = part
            groups = {"test": sets.test_subgroups, "validation": sets.validation_subgroups}.get(part, {})
            group_of[name] = next((g for g, members in groups.items() if condition in members), "")
    parts: dict[Key, SplitName] = {key: part_of[key[1]] for key in table.keys if key[1] in part_of}
    subgroups = {key: group_of[key[1]] for key in parts} if sets.test_subgroups else None
    counts = {"conditions": {**notes["conditions"], **_condition_counts(sets)}}
    return assemble(
        table,
        parts,
        scheme=scheme,
        seed=seed,
        parameters=parameters,
        subgroups=subgroups,
        notes={**notes, **counts},
    )


def _condition_counts(sets: ConditionSets) -> dict[str, Any]:
    """Conditions per part and, where the split has them, per subgroup: GEARS counts `A+ctrl` and `ctrl+A` as two."""
    n = {"train": len(sets.train), "validation": len(sets.validation), "test": len(sets.test)}
    groups = {"validation": sets.validation_subgroups, "test": sets.test_subgroups}
    found = {part: {name: len(members) for name, members in own.items()} for part, own in groups.items()}
    return {"n": n, "subgroups": found}


def _prepared(
    table: LabelTable,
    drop_uncovered: str | os.PathLike[str] | None,
    max_term_size: int,
    drop_targets: Iterable[str] | None,
) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    conditions, n_completed = _conditions(table)
    notes: dict[str, Any] = {"drawn_on": f"{len(conditions)} published condition strings"}
    if n_completed:
        notes["completed"] = (
            f"{n_completed} published labels were written as GEARS conditions (A becomes A+{FILLER})"
        )
    larger = [c for c in conditions if len(condition_genes(c)) > 2]
    if larger:
        raise UsageError(
            f"GEARS splits know one and two targets; {larger[0]!r} has more. Use --scheme folds."
        )
    pool = list(conditions)
    if drop_uncovered is not None:
        pool, note = _covered_conditions(conditions, drop_uncovered, max_term_size)
        notes |= note
    gone = set(drop_targets or ())
    if gone:
        dropped = sorted(c for c in pool if gone.intersection(condition_genes(c)))
        pool = [c for c in pool if c not in set(dropped)]
        notes["drop_targets"] = {"targets": sorted(gone), "dropped": dropped}
    if not pool:
        raise UsageError("no perturbation is left to split.")
    notes["conditions"] = {
        "sha256": labels_sha256(pool),
        "perturbations_sha256": labels_sha256(conditions[c] for c in pool),
        "n_drawn_on": len(pool),
    }
    return conditions, pool, notes


def gears_simulation(
    table: LabelTable,
    *,
    seed: int = 1,
    gene_fraction: float = 0.75,
    combo_fraction: float = 0.75,
    drop_uncovered: str | os.PathLike[str] | None = None,
    max_term_size: int = 2000,
    drop_targets: Iterable[str] | None = None,
) -> Split:
    """GEARS' `simulation` split, equal to upstream's lists. Subgroups are upstream's own.

    They are relative to the genes drawn as seen in the pass that held a condition out; the test subgroups
    therefore do not count genes that only the validation pass took out of training. Conditions with a target of
    `drop_targets` take no part. The record's `conditions` counts published strings, as GEARS does.
    """
    for option, share in (("--gene-fraction", gene_fraction), ("--combo-fraction", combo_fraction)):
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"{option} {share:g} is no share; give a number from 0 to 1.")
    conditions, pool, notes = _prepared(table, drop_uncovered, max_term_size, drop_targets)
    sets = simulation_sets(pool, seed=seed, gene_fraction=gene_fraction, combo_fraction=combo_fraction)
    parameters = {"gene_fraction": gene_fraction, "combo_fraction": combo_fraction}
    return _split(
        table, sets, conditions, scheme="gears-simulation", seed=seed, parameters=parameters, notes=notes
    )


def gears_kind(
    table: LabelTable,
    *,
    kind: Kind,
    seed: int = 1,
    compat: bool = True,
    drop_uncovered: str | os.PathLike[str] | None = None,
    max_term_size: int = 2000,
    drop_targets: Iterable[str] | None = None,
) -> Split:
    """GEARS' `single`, `combo_seen0/1/2` and `no_test` splits; see `kind_sets` for `compat`."""
    conditions, pool, notes = _prepared(table, drop_uncovered, max_term_size, drop_targets)
    sets = kind_sets(pool, kind, seed=seed, compat=compat)
    scheme = ("gears-" if compat else "") + kind.replace("_", "-")
    parameters = {"kind": kind, "compat": compat, "fraction": 0.1}
    return _split(table, sets, conditions, scheme=scheme, seed=seed, parameters=parameters, notes=notes)
