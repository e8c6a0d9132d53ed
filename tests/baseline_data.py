"""Small training data for the tests of the baselines: a five-gene example by hand, and random panels."""

from __future__ import annotations

import numpy as np
from vcbench.baselines import registry
from vcbench.baselines.base import TrainingData

FIVE = ("T1", "T2", "T3", "X", "Y")
CONTROL = np.array([2.0, 1.0, 0.5, 3.0, 1.0])
EFFECTS = {
    "T1": np.array([-1.0, 0.0, 1.0, 0.5, 0.0]),
    "T2": np.array([0.0, -0.5, 0.0, 1.0, 0.5]),
    "T1+T2": np.array([-1.2, -0.4, 1.2, 1.2, 0.6]),
}
CELLS = {"T1": 10, "T2": 30, "T1+T2": 20}


class DenseCells:
    """Cell statistics of a dense matrix, shape (n_cells, G)."""

    def __init__(self, x: np.ndarray):
        self.x = x

    def gene_correlations(self, columns: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            full = np.corrcoef(self.x.T)
        return np.nan_to_num(full[columns], nan=0.0)


def five_genes(labels=("T1", "T2"), *, context: str = "A") -> TrainingData:
    """The five-gene example with some of its perturbations."""
    means = np.stack([CONTROL + EFFECTS[label] for label in labels])
    return TrainingData(
        genes=np.array(FIVE, dtype=object),
        control_means={context: CONTROL},
        keys=tuple((context, label) for label in labels),
        means=means,
        n_cells=np.array([CELLS[label] for label in labels]),
        target_sum=100.0,
    )


def two_contexts() -> TrainingData:
    """T1 in contexts A and B with effects e and 3e, T2 in A only; control of B is CONTROL + 1."""
    controls = {"A": CONTROL, "B": CONTROL + 1.0}
    rows = {("A", "T1"): EFFECTS["T1"], ("A", "T2"): EFFECTS["T2"], ("B", "T1"): 3 * EFFECTS["T1"]}
    return TrainingData(
        genes=np.array(FIVE, dtype=object),
        control_means=controls,
        keys=tuple(rows),
        means=np.stack([controls[context] + effect for (context, _), effect in rows.items()]),
        n_cells=np.array([10, 30, 5]),
        target_sum=100.0,
    )


def random_panel(
    *, n_genes: int = 30, n_singles: int = 9, contexts=("A", "B"), doubles: bool = True, seed: int = 0
) -> TrainingData:
    """Targets are the first genes; effects, cells, variances and training cells are random."""
    rng = np.random.default_rng(seed)
    genes = np.array([f"G{i:03d}" for i in range(n_genes)], dtype=object)
    labels = [str(gene) for gene in genes[:n_singles]]
    if doubles:
        labels += [f"{labels[0]}+{labels[1]}", f"{labels[2]}+{labels[3]}"]
    keys = tuple((context, label) for context in contexts for label in labels)
    controls = {context: rng.gamma(2.0, 1.0, n_genes) for context in contexts}
    effects = rng.standard_normal((len(keys), n_genes))
    factors = rng.standard_normal((200, 4)) @ rng.standard_normal((4, n_genes))
    return TrainingData(
        genes=genes,
        control_means=controls,
        keys=keys,
        means=np.stack([controls[context] for context, _ in keys]) + effects,
        n_cells=rng.integers(5, 50, len(keys)),
        target_sum=1e4,
        sampling_variance=rng.gamma(1.0, 0.2, (len(keys), n_genes)),
        cells=DenseCells(factors + 0.3 * rng.standard_normal(factors.shape)),
    )


def fitted(name: str, data: TrainingData, *, seed: int = 0, features=None, **settings):
    """A fitted baseline."""
    model = registry.create(name, settings, features=features)
    model.fit(data, np.random.default_rng(seed))
    return model


def effect_of(model, data: TrainingData, label: str, *, context: str = "A") -> np.ndarray:
    """Predicted profile minus the control mean."""
    prediction = model.predict([(context, label)], data.control_means)
    return prediction.profiles[0] - data.control_means[context]


def answer(model, data: TrainingData, label: str, *, context: str = "A") -> tuple[str, str]:
    """Status and reason of one row."""
    prediction = model.predict([(context, label)], data.control_means)
    return prediction.status[0], prediction.reason[0]
