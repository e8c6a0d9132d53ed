"""The linear model Y = G W P' + b on pseudobulk (simple-baselines section 5; Ahlmann-Eltze, Huber, Anders 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ...data_specs.labels import CONTROL, split_label, targets_of
from ..base import BaselineInfo, TrainingData
from ..features import FeatureTable, feature_source
from .common import Answer, EffectModel
from .corrections import CorrectionConfig
from .embeddings import gene_scores, random_vector


@dataclass(frozen=True)
class LinearConfig(CorrectionConfig):
    """Settings of `linear`.

    Attributes
    ----------
    n_components
        K, the principal components of the embeddings from training data; fewer when there are fewer conditions.
    ridge
        λ of both sides.
    include_ctrl
        Whether control is a training column (effect zero, embedding zero), in the PCA and in the fit.
    gene_embedding
        G: `pca` scores from training data, `random` N(0,1), `identity`, `zero`, or a feature table file (all of its
        dimensions, as they are; genes without a row have zeros).
    perturbation_embedding
        P of a target: `pca` (the row of the target gene in the scores), `features` (the row in --features),
        `go-spectral` (2 dimensions over the GO graph of --features go:FILE), `random`, `identity`, `zero`.
    """

    n_components: int = 10
    ridge: float = 0.1
    include_ctrl: bool = True
    gene_embedding: str = "pca"
    perturbation_embedding: Literal["pca", "features", "go-spectral", "random", "identity", "zero"] = "pca"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_components < 1 or self.ridge < 0:
            raise UsageError("n_components must be at least 1 and ridge at least 0.")


class Linear(EffectModel[LinearConfig]):
    """Bilinear map from perturbation embedding to effect, with an intercept per context.

    Only training perturbations with one target that has an embedding are fitted. A combination is predicted from
    the sum of its targets' embeddings when every one has its own.
    """

    Config = LinearConfig
    info = BaselineInfo(
        name="linear",
        title="Linear model on gene and perturbation embeddings",
        paper="Ahlmann-Eltze, Huber, Anders 2025",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        self.seed = int(rng.integers(2**31))
        scores = self._scores(data)
        self.embedding = self._perturbation_embedding(data, scores)
        rows = [i for i, (_, label) in enumerate(data.keys) if self._single(label) is not None]
        if not rows:
            raise ModelError(
                f"no training single has an embedding (perturbation_embedding={self.config.perturbation_embedding}); "
                "with pca its target must be a measured gene."
            )
        self.notes.append(f"{len(rows)} of {len(data.keys)} training rows have an embedding and are fitted.")
        effects, p, contexts = self._columns(data, rows)
        self.intercepts = {c: effects[[x == c for x in contexts]].mean(axis=0) for c in sorted(set(contexts))}
        centered = effects - np.stack([self.intercepts[c] for c in contexts])
        self.gene_map = self._gene_map(data, scores, centered, p)

    def _columns(self, data: TrainingData, rows: list[int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Effects (n, G), embeddings (n, K) and contexts of the fitted columns, control columns last."""
        effects = self.table.effects[rows]
        singles = (self._single(data.keys[i][1]) for i in rows)
        p = np.stack([vector for vector in singles if vector is not None])
        contexts = [data.keys[i][0] for i in rows]
        if self.config.include_ctrl:
            places = sorted(set(contexts))
            effects = np.vstack([effects, np.zeros((len(places), effects.shape[1]))])
            p = np.vstack([p, np.zeros((len(places), p.shape[1]))])
            contexts = contexts + places
        return effects, p, contexts

    def _scores(self, data: TrainingData) -> np.ndarray | None:
        if "pca" not in (self.config.gene_embedding, self.config.perturbation_embedding):
            return None
        columns = data.means
        if self.config.include_ctrl:
            places = sorted({context for context, _ in data.keys})
            columns = np.vstack([columns, *(data.control_means[c] for c in places)])
        scores, solver = gene_scores(columns, self.config.n_components)
        self.notes.append(f"Embeddings: {scores.shape[1]} components of {len(columns)} conditions, {solver}.")
        return scores

    def _perturbation_embedding(self, data: TrainingData, scores: np.ndarray | None) -> FeatureTable | None:
        kind = self.config.perturbation_embedding
        if kind in ("random", "zero"):
            return None
        if kind == "pca" and scores is not None:
            return FeatureTable(self.genes, scores)
        if kind == "identity":
            singles = sorted({label for _, label in data.keys if len(split_label(label)) == 1})
            names = np.array([targets_of(label)[0] for label in singles], dtype=np.str_)
            return FeatureTable(np.unique(names), np.eye(len(np.unique(names))))
        if self.features is None:
            raise ModelError(f"perturbation_embedding={kind} needs --features.")
        return self.features.spectral if kind == "go-spectral" else self.features.table

    def _single(self, label: str) -> np.ndarray | None:
        """The embedding of a label with one target, None when it has none (or is a combination)."""
        targets = targets_of(label)
        return self._target(targets[0]) if len(targets) == 1 else None

    def _target(self, target: str) -> np.ndarray | None:
        if self.embedding is not None:
            return self.embedding.row(target)
        if self.config.perturbation_embedding == "random":
            return random_vector(target, self.config.n_components, self.seed)
        return np.zeros(self.config.n_components)

    def _gene_map(
        self, data: TrainingData, scores: np.ndarray | None, centered: np.ndarray, p: np.ndarray
    ) -> np.ndarray:
        """G W, shape (G, K of P): the effect per unit of perturbation embedding."""
        ridge, kind = self.config.ridge, self.config.gene_embedding
        right = _solve(p.T @ p, ridge, p.T @ centered).T  # (G, K_p)
        if kind == "identity":
            return right / (1 + ridge)
        if kind == "zero":
            return np.zeros_like(right)
        if kind == "pca" and scores is not None:
            g = scores
        elif kind == "random":
            rng = np.random.default_rng(self.seed)
            g = rng.standard_normal((len(data.genes), self.config.n_components))
        else:
            g = self._plugged_in(kind)
        return g @ _solve(g.T @ g, ridge, g.T @ right)

    def _plugged_in(self, path: str) -> np.ndarray:
        table = feature_source(path).table
        rows = [table.position.get(str(gene), -1) for gene in self.genes]
        found = np.array(rows) >= 0
        if not found.any():
            raise ModelError(f"gene_embedding={path}: no measured gene has a row.")
        self.notes.append(
            f"Gene embedding {path}: {int(found.sum())} of {len(found)} measured genes have a row."
        )
        return np.where(found[:, None], table.values[rows], 0.0)

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        total, missing = None, []
        for target in targets_of(perturbation):
            vector = self._target(target)
            if vector is None:
                missing.append(target)
            else:
                total = vector if total is None else total + vector
        if missing or total is None:
            return Answer.refuse(f"no embedding of {', '.join(missing) or CONTROL}: {self._why_missing()}")
        return Answer(self._intercept(context) + self.gene_map @ total)

    def _why_missing(self) -> str:
        kinds = {"pca": "not a measured gene", "identity": "not a training single"}
        return kinds.get(self.config.perturbation_embedding, "not in the features")

    def _intercept(self, context: str) -> np.ndarray:
        if context in self.intercepts:
            return self.intercepts[context]
        return np.mean(list(self.intercepts.values()), axis=0)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "intercept_contexts": np.array(list(self.intercepts), dtype=np.str_),
            "intercepts": np.stack(list(self.intercepts.values())),
            "gene_map": self.gene_map,
        }
        if self.embedding is not None:
            arrays |= {"embedding_names": self.embedding.names, "embedding_values": self.embedding.values}
        return arrays

    def _facts(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.seed = int(facts["seed"])
        names = (str(name) for name in arrays["intercept_contexts"])
        self.intercepts = dict(zip(names, arrays["intercepts"], strict=True))
        self.gene_map = arrays["gene_map"]
        has_table = "embedding_names" in arrays
        self.embedding = (
            FeatureTable(arrays["embedding_names"], arrays["embedding_values"]) if has_table else None
        )


def _solve(gram: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """(gram + ridge I)^-1 right; the least-norm solution when that is singular (ridge 0)."""
    if ridge > 0:
        return np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
    return np.linalg.lstsq(gram, right, rcond=None)[0]
