"""The generative model of the simulator: baselines, gene programs, effects of perturbations, counts of cells.

Every random quantity has its own stream, keyed by the seed and what it belongs to (a gene, a context, a
perturbation in a context), so nothing changes when perturbations or contexts are added, left out or reordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from .errors import UsageError
from .labels import CONTROL, base_unit, is_canonical, join_targets, parse_dose, split_label

CELL_CHUNK = 256


@dataclass(frozen=True)
class SimulationSpec:
    """What to simulate. Log fold changes are natural logarithms.

    `perturbations` (canonical labels) replaces the draw of `singles` targets and `doubles` pairs of them.
    `depth` is the mean total of a cell, `depth_sigma` the standard deviation of its logarithm, `dispersion`
    the variance of a gene's rate between cells relative to its squared mean. `knockdown` is the mean share
    of its own expression that a CRISPRi target loses; under CRISPRa targets gain `activation`-fold instead.
    `escape` is the share of perturbed cells that behave like controls. `interaction_fraction` of the doubles
    are not additive. `context_similarity` is the correlation of an effect between contexts. Targets push their
    programs with a strength whose logarithm has standard deviation `strength_sigma`; `specific_scale` sizes the effects
    on single genes that no program explains.
    """

    genes: int = 2000
    singles: int = 60
    doubles: int = 30
    contexts: tuple[str, ...] = ("A",)
    cells: int = 100
    controls: int = 500
    depth: float = 5000.0
    modality: Literal["CRISPRi", "CRISPRa", "drug", "cytokine"] = "CRISPRi"
    doses: tuple[str, ...] = ()
    perturbations: tuple[str, ...] | None = None
    programs: int = 10
    effect_scale: float = 1.0
    knockdown: float = 0.8
    activation: float = 4.0
    escape: float = 0.1
    interaction_fraction: float = 0.4
    interaction_scale: float = 1.0
    context_similarity: float = 0.8
    depth_sigma: float = 0.35
    dispersion: float = 0.3
    batches: int = 2
    batch_sigma: float = 0.1
    strength_sigma: float = 0.5
    specific_scale: float = 1.0

    @property
    def perturbs_genes(self) -> bool:
        """Whether targets are genes of the panel; compounds and cytokines (`CYTOKINE01`) are none."""
        return self.modality.startswith("CRISPR")

    def problems(self) -> list[str]:
        """Everything that makes this specification impossible, as text."""
        found = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (("genes", 10), ("cells", 1), ("controls", 1), ("programs", 1), ("batches", 1))
            if getattr(self, name) < least
        ]
        found += [
            f"{name} must be at least 0, not {getattr(self, name)}"
            for name in (
                *("singles", "doubles", "depth_sigma", "dispersion", "batch_sigma", "effect_scale"),
                *("strength_sigma", "specific_scale"),
            )
            if getattr(self, name) < 0
        ]
        found += [
            f"{name} must lie between 0 and 1, not {getattr(self, name)}"
            for name in ("knockdown", "escape", "interaction_fraction", "context_similarity")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.depth <= 0 or self.activation <= 0:
            found.append("depth and activation must be above 0")
        if self.knockdown == 1:
            found.append("knockdown must be below 1: a silent target has no log fold change")
        if not self.contexts or len(set(self.contexts)) < len(self.contexts) or not all(self.contexts):
            found.append(f"contexts must be named and distinct, not {self.contexts}")
        found += _dose_problems(self)
        if self.perturbations is None:
            if self.perturbs_genes and self.singles > self.genes // 2:
                found.append(
                    f"{self.singles} singles need at least {2 * self.singles} genes, not {self.genes}"
                )
            if self.doubles > self.singles * (self.singles - 1) // 2:
                found.append(f"{self.singles} singles make fewer than {self.doubles} pairs")
        else:
            odd = [x for x in self.perturbations if not is_canonical(x) or x == CONTROL]
            if odd:
                found.append(f"perturbations must be canonical labels other than control; {odd[0]!r} is not")
        return found


def _dose_problems(spec: SimulationSpec) -> list[str]:
    if spec.modality != "drug":
        return ["doses belong to modality drug"] if spec.doses else []
    parsed = [parse_dose(f"X@{dose}") for dose in spec.doses]
    found = []
    if any(value is None or value <= 0 for _, value, _, _ in parsed):
        found.append(f"doses must be positive numbers with a unit, such as 10nM, not {spec.doses}")
    elif len({base_unit(str(unit))[0] for _, _, unit, _ in parsed}) > 1:
        found.append(f"doses must share a unit, not {spec.doses}")
    if len(set(spec.doses)) < len(spec.doses):
        found.append(f"doses must be distinct, not {spec.doses}")
    return found


@dataclass(frozen=True)
class Effect:
    """The truth about one perturbation in one context.

    `log_fold_change` (natural, float64, per gene) is of the expected share of a gene in a cell's counts against
    control, escaped cells included. `activity` is the push on every program, `interaction` the part of it
    that is not the sum of the singles.
    """

    log_fold_change: np.ndarray
    share: np.ndarray
    activity: np.ndarray
    interaction: np.ndarray


@dataclass(frozen=True)
class Model:
    """All parameters of a simulation; arrays are made when first asked for and never change.

    Raises
    ------
    UsageError
        The specification is impossible (all problems at once), or names a target that is no gene.
    """

    spec: SimulationSpec
    seed: int = 0
    _effects: dict[tuple[str, str], Effect] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        problems = self.spec.problems()
        if problems:
            raise UsageError("this simulation is impossible: " + "; ".join(problems) + ".")
        targets = {t for name in self.perturbations for t in split_label(name)}
        unknown = sorted(targets - set(self.genes)) if self.spec.perturbs_genes else []
        if unknown:
            raise UsageError(
                f"no simulated gene is called {unknown[0]!r}; they are {self.genes[0]} to {self.genes[-1]}."
            )

    def stream(self, *key: str) -> np.random.Generator:
        """The random stream of a quantity."""
        text = "\x1f".join((str(self.seed), *key))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Gene names, `GENE0001` and on."""
        width = max(4, len(str(self.spec.genes)))
        return tuple(f"GENE{i:0{width}d}" for i in range(1, self.spec.genes + 1))

    @cached_property
    def position(self) -> dict[str, int]:
        """Column of every gene."""
        return {gene: i for i, gene in enumerate(self.genes)}

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """The contexts, sorted."""
        return tuple(sorted(self.spec.contexts))

    @cached_property
    def perturbations(self) -> tuple[str, ...]:
        """The perturbations, sorted: drawn among the better expressed half of the genes, or as given."""
        if self.spec.perturbations is not None:
            return tuple(sorted(set(self.spec.perturbations)))
        if not self.spec.perturbs_genes:
            return self._dosed_compounds()
        expressed = np.argsort(-self._log_baseline, kind="stable")[: self.spec.genes // 2]
        chosen = self.stream("targets").permutation(expressed)[: self.spec.singles]
        singles = [self.genes[i] for i in chosen]
        pairs = [join_targets((a, b)) for i, a in enumerate(singles) for b in singles[:i]]
        drawn = self.stream("doubles").permutation(len(pairs))[: self.spec.doubles]
        return tuple(sorted([*singles, *(pairs[i] for i in drawn)]))

    def _dosed_compounds(self) -> tuple[str, ...]:
        width = max(2, len(str(self.spec.singles)))
        compounds = [f"{self.spec.modality.upper()}{i:0{width}d}" for i in range(1, self.spec.singles + 1)]
        doses = sorted(self.spec.doses, key=lambda dose: _dose(f"X@{dose}") or 0.0)
        singles = [f"{name}@{dose}" for name in compounds for dose in doses] if doses else compounds
        highest = [f"{name}@{doses[-1]}" if doses else name for name in compounds]
        pairs = [join_targets((a, b)) for i, a in enumerate(highest) for b in highest[:i]]
        drawn = self.stream("doubles").permutation(len(pairs))[: self.spec.doubles]
        return tuple(sorted([*singles, *(pairs[i] for i in drawn)]))

    def potency(self, target: str) -> float:
        """The share of its full effect that a target has at the dose of its label; 1 without a dose."""
        dose = _dose(target)
        known = [value for text in self.spec.doses if (value := _dose(f"X@{text}"))]
        if dose is None:
            return 1.0
        middle = float(np.exp(np.mean(np.log(known or [dose]))))
        half = middle * float(np.exp(self.stream("potency", _name(target)).normal(0.0, 1.0)))
        return dose / (dose + half)

    @cached_property
    def _log_baseline(self) -> np.ndarray:
        return self.stream("baseline").normal(0.0, 1.2, self.spec.genes)

    def log_baseline(self, context: str) -> np.ndarray:
        """The logarithm of each gene's share in a control cell of `context`."""
        own = self.stream("baseline", context).normal(0.0, 0.4, self.spec.genes)
        return _log_share(self._log_baseline + own)

    @cached_property
    def loadings(self) -> np.ndarray:
        """Log fold change of each gene per unit of a program, shape (programs, genes); most entries are 0."""
        n_members = min(self.spec.genes, max(5, round(0.12 * self.spec.genes)))
        out = np.zeros((self.spec.programs, self.spec.genes))
        for k in range(self.spec.programs):
            rng = self.stream("program", str(k))
            members = rng.choice(self.spec.genes, n_members, replace=False)
            out[k, members] = rng.normal(0.0, 1.0, n_members)
        return out

    def shared_activity(self, target: str) -> np.ndarray:
        """The push of a target on every program that all contexts share: one main program, sometimes a second."""
        rng = self.stream("activity", target)
        out = np.zeros(self.spec.programs)
        strength = self.spec.effect_scale * float(rng.lognormal(-0.4, self.spec.strength_sigma))
        main, second = rng.integers(self.spec.programs, size=2)
        out[main] = strength * rng.choice([-1.0, 1.0])
        if rng.random() < 0.4 and second != main:
            out[second] = 0.5 * strength * rng.choice([-1.0, 1.0])
        return out

    def activity(self, target: str, context: str) -> np.ndarray:
        """The push of a target, at its dose, on every program in one context."""
        name, similarity = _name(target), self.spec.context_similarity
        shared = self.shared_activity(name)
        own = np.abs(shared) * self.stream("activity", name, context).normal(0.0, 1.0, self.spec.programs)
        return self.potency(target) * (similarity * shared + np.sqrt(1 - similarity**2) * own)

    def specific(self, target: str) -> np.ndarray:
        """Log fold changes of a target that no program explains: about one gene in a hundred."""
        rng = self.stream("specific", _name(target))
        hit = rng.random(self.spec.genes) < 0.01
        scale = 0.5 * self.spec.effect_scale * self.spec.specific_scale
        return self.potency(target) * np.where(hit, rng.normal(0.0, scale, self.spec.genes), 0.0)

    def direct(self, target: str) -> float:
        """The log fold change of a target's own gene in a cell that did not escape."""
        rng = self.stream("direct", target)
        if self.spec.modality == "CRISPRa":
            return float(np.log(self.spec.activation) + rng.normal(0.0, 0.1))
        if self.spec.knockdown == 0:
            return 0.0
        left = (1 - self.spec.knockdown) * float(rng.lognormal(0.0, 0.1))
        return float(np.log(min(left, 1.0)))

    def interaction(self, perturbation: str, context: str) -> np.ndarray:
        """The program push of a combination beyond the sum of its singles; zero for additive ones."""
        targets = split_label(perturbation)
        out = np.zeros(self.spec.programs)
        rng = self.stream("interaction", perturbation)
        if len(targets) < 2 or rng.random() >= self.spec.interaction_fraction:
            return out
        pushes = [self.activity(target, context) for target in targets]
        if rng.random() < 0.5:
            weaker = min(pushes, key=lambda push: float(np.linalg.norm(push)))
            return -0.8 * self.spec.interaction_scale * weaker
        out[rng.integers(self.spec.programs)] = rng.choice([-1.0, 1.0])
        return out * self.spec.interaction_scale * float(np.mean([np.linalg.norm(push) for push in pushes]))

    def effect(self, context: str, perturbation: str) -> Effect:
        """The truth about a perturbation in a context; control has none, with the baseline as its share."""
        key = (context, perturbation)
        if key not in self._effects:
            self._effects[key] = self._make_effect(context, perturbation)
        return self._effects[key]

    def _make_effect(self, context: str, perturbation: str) -> Effect:
        base = self.log_baseline(context)
        targets = split_label(perturbation)
        extra = self.interaction(perturbation, context)
        push = extra + sum(
            (self.activity(target, context) for target in targets), np.zeros(self.spec.programs)
        )
        change = push @ self.loadings + sum((self.specific(t) for t in targets), np.zeros(self.spec.genes))
        if self.spec.perturbs_genes:
            for target in targets:
                change[self.position[target]] = self.direct(target)
        share = np.exp(_log_share(base + change))
        escape = self.spec.escape if targets else 0.0
        expected = (1 - escape) * share + escape * np.exp(base)
        return Effect(np.log(expected) - base, share, push, extra)

    @cached_property
    def batch_factors(self) -> np.ndarray:
        """Technical factor of each gene in each batch, shape (batches, genes); its mean over batches is 1."""
        rng = self.stream("batch")
        factors = np.exp(rng.normal(0.0, self.spec.batch_sigma, (self.spec.batches, self.spec.genes)))
        return factors / factors.mean(axis=0)

    def cells(self, context: str, perturbation: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of (counts as float32, shape (cells, genes); batch of each cell) of one group, always the same."""
        rng = self.stream("cells", context, perturbation)
        n_left = self.spec.controls if perturbation == CONTROL else self.spec.cells
        escape = 0.0 if perturbation == CONTROL else self.spec.escape
        share, base = self.effect(context, perturbation).share, np.exp(self.log_baseline(context))
        sigma, dispersion = self.spec.depth_sigma, self.spec.dispersion
        while n_left:
            n = min(n_left, CELL_CHUNK)
            depth = self.spec.depth * np.exp(rng.normal(-(sigma**2) / 2, sigma, n))
            batch = rng.integers(self.spec.batches, size=n)
            escaped = rng.random(n) < escape
            rate = np.where(escaped[:, None], base, share) * self.batch_factors[batch] * depth[:, None]
            if dispersion:
                rate *= rng.standard_gamma(1 / dispersion, rate.shape) * dispersion
            yield rng.poisson(rate).astype(np.float32), batch
            n_left -= n


def _name(target: str) -> str:
    """A target without its dose."""
    return target.split("@")[0]


def _dose(target: str) -> float | None:
    """The dose of a target in the base unit, None without one."""
    _, dose, unit, _ = parse_dose(target)
    return None if dose is None or unit is None else dose * base_unit(unit)[1]


def _log_share(values: np.ndarray) -> np.ndarray:
    top = values.max()
    return values - (top + np.log(np.exp(values - top).sum()))
