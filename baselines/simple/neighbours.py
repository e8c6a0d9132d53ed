"""Nearest neighbours in feature space, and neighbours in GO or co-expression graphs (simple-baselines section 7)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError, UsageError
from ...data_specs.labels import split_label, targets_of
from ..base import BaselineInfo, TrainingData
from ..go_graph import jaccard_edges, top_per_row
from .common import Answer, EffectModel, require_rows
from .corrections import CorrectionConfig
from .effects import text_array
from .featured import FeaturedConfig, FeaturedModel
from .ridge import unit_rows


@dataclass(frozen=True)
class KnnConfig(FeaturedConfig):
    """Settings of `knn`.

    Attributes
    ----------
    k
        Neighbours; all of them when there are fewer training perturbations.
    weights
        `uniform`, or `softmax` of cosine similarity / temperature.
    temperature
        Of the softmax.
    """

    k: int = 10
    weights: Literal["uniform", "softmax"] = "uniform"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or not self.temperature > 0:
            raise UsageError("k must be at least 1 and temperature positive.")


class Knn(FeaturedModel[KnnConfig]):
    """Mean effect of the training perturbations with the most similar features, never the requested one itself."""

    Config = KnnConfig
    keeps_table = True
    info = BaselineInfo(
        name="knn",
        title="Nearest training perturbations in feature space (cosine)",
        paper="Cover, Hart 1967",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _learn(self, rng: np.random.Generator) -> None:
        self.candidates = sorted(set(self.fitted_labels))
        self._prepare()

    def _prepare(self) -> None:
        self.directions = unit_rows(np.stack([self.phi.label(label)[0] for label in self.candidates]))

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        found = self._features_of(perturbation)
        if isinstance(found, Answer):
            return found
        features, reason = found
        if not features.any():
            why = reason or f"the features of {perturbation} are those of the average target"
            return Answer.fall_back(self.context_mean(context), f"{why}; mean effect")
        others = np.array(
            [i for i, label in enumerate(self.candidates) if label != perturbation], dtype=np.int64
        )
        if not len(others):
            return Answer.refuse(f"{perturbation} is the only training perturbation with features")
        similarity = self.directions[others] @ unit_rows(features[None, :])[0]
        nearest = np.argsort(-similarity, kind="stable")[: self.config.k]
        effects = [self.table.find(context, self.candidates[i]) for i in others[nearest]]
        stacked = np.stack([item[0] for item in effects if item is not None])
        effect = self._weights(similarity[nearest]) @ stacked
        return Answer.fall_back(effect, reason) if reason else Answer(effect)

    def _weights(self, similarity: np.ndarray) -> np.ndarray:
        if self.config.weights == "uniform":
            return np.full(len(similarity), 1.0 / len(similarity))
        raw = np.exp((similarity - similarity.max()) / self.config.temperature)
        return raw / raw.sum()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "candidates": text_array(self.candidates)}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        super()._restore(arrays, facts)
        self.candidates = [str(label) for label in arrays["candidates"]]
        self._prepare()


@dataclass(frozen=True)
class GraphConfig(CorrectionConfig):
    """Settings of the graph neighbours.

    Attributes
    ----------
    n_similar
        The most similar training targets kept per gene.
    weights
        `uniform`, or in proportion to `similarity`.
    """

    n_similar: int = 20
    weights: Literal["uniform", "similarity"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_similar < 1:
            raise UsageError(f"n_similar must be at least 1, not {self.n_similar}.")


@dataclass(frozen=True)
class GoConfig(GraphConfig):
    """Settings of `go-neighbours`: those of the graph neighbours, and

    Attributes
    ----------
    above
        Only targets of larger Jaccard similarity of GO term sets are neighbours.
    """

    above: float = 0.1


@dataclass(frozen=True)
class CoexpressionConfig(GraphConfig):
    """Settings of `coexpression-neighbours`: those of the graph neighbours, and

    Attributes
    ----------
    above
        Only targets of larger absolute correlation over the training cells are neighbours.
    """

    above: float = 0.4


GraphT = TypeVar("GraphT", bound=GraphConfig)


class _GraphNeighbours(EffectModel[GraphT]):
    """Mean effect of the neighbouring training singles; the parts of a combination add.

    A part of a combination that is itself a training single gives its own effect; a requested single never does.
    Targets without neighbours get the mean training effect, and the row is a fallback.
    """

    keeps_table = True
    graph_name = ""

    @abstractmethod
    def _edges(self, data: TrainingData, singles: list[str]) -> tuple[np.ndarray, np.ndarray, Any]:
        """Genes, candidate targets and their similarity, shape (genes, candidates)."""

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        singles = sorted({label for _, label in data.keys if len(split_label(label)) == 1})
        if not singles:
            raise ModelError(f"{self.info.name} needs training singles; every training row is a combination.")
        genes, names, similar = self._edges(data, singles)
        kept = top_per_row(similar, self.config.n_similar)
        linked = np.flatnonzero(np.diff(kept.indptr))
        self.linked = [str(gene) for gene in genes[linked]]
        self.targets = [str(name) for name in names]
        self.similarity = sp.csr_array(kept[linked])
        self._index()
        self.notes.append(
            f"{len(linked)} genes have at least one of {len(names)} training targets as neighbour."
        )

    def _index(self) -> None:
        self.row = {gene: i for i, gene in enumerate(self.linked)}
        self.mean_effect = self.table.mean()
        # A target may have several labels (doses); each is a training single of its own.
        self.labels_of: dict[str, list[str]] = {}
        for label in self.table.perturbations:
            parts = targets_of(label)
            if len(split_label(label)) == 1:
                self.labels_of.setdefault(parts[0], []).append(label)

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        parts = split_label(perturbation)
        total, alone = np.zeros(len(self.genes)), []
        for part, target in zip(parts, targets_of(perturbation), strict=True):
            own = self.table.find(context, part) if len(parts) > 1 else None
            effect = own[0] if own is not None else self._neighbour_mean(context, target)
            if effect is None:
                alone.append(target)
                effect = self.mean_effect
            total += effect
        if alone:
            reason = f"no {self.graph_name} neighbour of {', '.join(alone)} among training targets; mean effect instead"
            return Answer.fall_back(total, reason)
        return Answer(total)

    def _neighbour_mean(self, context: str, target: str) -> np.ndarray | None:
        row = self.row.get(target)
        if row is None:
            return None
        low, high = self.similarity.indptr[row], self.similarity.indptr[row + 1]
        weights = self.similarity.data[low:high]
        weights = np.ones_like(weights) if self.config.weights == "uniform" else weights
        names = [self.targets[column] for column in self.similarity.indices[low:high]]
        return (weights / weights.sum()) @ np.stack([self._target_effect(context, name) for name in names])

    def _target_effect(self, context: str, target: str) -> np.ndarray:
        found = [self.table.find(context, label) for label in self.labels_of[target]]
        return np.mean([item[0] for item in found if item is not None], axis=0)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "linked": text_array(self.linked),
            "targets": text_array(self.targets),
            "edge_data": self.similarity.data,
            "edge_columns": self.similarity.indices,
            "edge_ends": self.similarity.indptr,
        }

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.linked = [str(gene) for gene in arrays["linked"]]
        self.targets = [str(name) for name in arrays["targets"]]
        parts = (arrays["edge_data"], arrays["edge_columns"], arrays["edge_ends"])
        self.similarity = sp.csr_array(parts, shape=(len(self.linked), len(self.targets)))
        self._index()


class GoNeighbours(_GraphNeighbours[GoConfig]):
    """Neighbours by Jaccard similarity of GO term sets."""

    Config = GoConfig
    graph_name = "GO"
    info = BaselineInfo(
        name="go-neighbours",
        title="Mean effect of the training targets with similar GO terms",
        paper="Roohani, Huang, Leskovec 2023 (GEARS graph)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _edges(self, data: TrainingData, singles: list[str]) -> tuple[np.ndarray, np.ndarray, Any]:
        if self.features is None:
            raise ModelError("go-neighbours needs GO terms: give --features go:FILE.gmt.")
        targets = sorted({targets_of(label)[0] for label in singles})
        return jaccard_edges(self.features.terms, targets, above=self.config.above)


class CoexpressionNeighbours(_GraphNeighbours[CoexpressionConfig]):
    """Neighbours by absolute correlation over training cells; only measured targets have any."""

    Config = CoexpressionConfig
    graph_name = "co-expression"
    info = BaselineInfo(
        name="coexpression-neighbours",
        title="Mean effect of the training targets with correlated expression",
        paper="Roohani, Huang, Leskovec 2023 (GEARS graph)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _edges(self, data: TrainingData, singles: list[str]) -> tuple[np.ndarray, np.ndarray, Any]:
        position = {str(gene): i for i, gene in enumerate(self.genes)}
        measured = sorted({targets_of(label)[0] for label in singles} & set(position))
        if not measured:
            raise ModelError(
                "coexpression-neighbours needs a training single whose target is a measured gene."
            )
        if data.cells is None:
            raise ModelError("coexpression-neighbours needs the training cells, not only their means.")
        columns = np.array([position[name] for name in measured], dtype=np.int64)
        similar = np.abs(data.cells.gene_correlations(columns)).T
        similar[columns, np.arange(len(columns))] = 0.0
        similar[similar <= self.config.above] = 0.0
        return self.genes, text_array(measured), sp.csr_array(similar)
