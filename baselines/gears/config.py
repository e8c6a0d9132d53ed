"""Settings of GEARS: one frozen dataclass; the defaults are the default mode, `upstream.toml` the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...data_specs.errors import UsageError
from ..training.config import Schedule, TrainingConfig

Coexpression = Literal["all", "first", "none"]
Direction = Literal["none", "sign-log", "tanh"]


@dataclass(frozen=True)
class GearsConfig(TrainingConfig):
    """Settings of `gears`; those of every training run stand in `TrainingConfig`.

    Attributes
    ----------
    hidden_size
        Width of every embedding and layer.
    num_go_gnn_layers, num_gene_gnn_layers
        Graph layers on the perturbation graph and on the co-expression graph.
    num_similar_genes_go_graph, num_similar_genes_co_express_graph
        Neighbours that each node keeps beside itself.
    coexpress_threshold, go_threshold
        Edges need a larger absolute correlation, or a larger Jaccard similarity of GO terms.
    coexpress_cells
        Most cells that the co-expression graph is computed from, drawn with the seed; 0 takes all.
    coexpression
        Which cells of a batch the co-expression graph reaches: `all`, upstream's `first`, or `none`.
    uncertainty, uncertainty_reg
        Predict a log-variance per gene, and its weight in the loss.
    direction, direction_lambda
        The direction term: left out (`none`), upstream's signs, which have no gradient (`sign-log`), or their smooth
        form (`tanh`, experimental), and its weight.
    missing_go
        A requested target without GO terms: the mean training shift, marked as a fallback, or a refusal.
    control_pairs
        The control cell of each perturbed training cell: drawn once, or again in every epoch.
    conditions
        What counts as one condition in the loss: the canonical label, or the published one (`A+ctrl` and `ctrl+A`
        differ).
    prediction, n_draws
        `exact-mean` adds the effect to the control mean; `draws` averages `n_draws` drawn control cells of the
        training file.
    paired_validation
        Validate on each cell's paired control (upstream) instead of the exact control mean.
    initial_weights
        A weight file (upstream's `model.pt`, or safetensors) to start from; empty for random weights.
    """

    hidden_size: int = 64
    num_go_gnn_layers: int = 1
    num_gene_gnn_layers: int = 1
    num_similar_genes_go_graph: int = 20
    num_similar_genes_co_express_graph: int = 20
    coexpress_threshold: float = 0.4
    go_threshold: float = 0.1
    coexpress_cells: int = 10_000
    coexpression: Coexpression = "all"
    uncertainty: bool = False
    uncertainty_reg: float = 1.0
    direction: Direction = "none"
    direction_lambda: float = 0.1
    missing_go: Literal["mean-shift", "refuse"] = "mean-shift"
    control_pairs: Literal["fixed", "epoch"] = "fixed"
    conditions: Literal["canonical", "published"] = "canonical"
    prediction: Literal["exact-mean", "draws"] = "exact-mean"
    n_draws: int = 300
    paired_validation: bool = False
    initial_weights: str = ""
    weight_decay: float = 5e-4
    schedule: Schedule = "step"
    clip: Literal["none", "norm", "value"] = "value"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} must be at least {least:g}, not {getattr(self, name)}"
            for name, least in (
                ("hidden_size", 1),
                ("num_go_gnn_layers", 1),
                ("num_gene_gnn_layers", 1),
                ("num_similar_genes_go_graph", 0),
                ("num_similar_genes_co_express_graph", 0),
                ("coexpress_threshold", 0),
                ("go_threshold", 0),
                ("coexpress_cells", 0),
                ("uncertainty_reg", 0),
                ("direction_lambda", 0),
                ("n_draws", 1),
                ("batch_size", 2),
            )
            if getattr(self, name) < least
        ]
        if self.precision == "bf16" or self.compile:
            problems.append("gears has its own blocked float32 decoder; use precision=float32, compile=false")
        if self.coexpression == "first" and self.accumulate > 1:
            problems.append("coexpression=first depends on the first cell of a batch; use accumulate=1")
        if problems:
            raise UsageError("; ".join(problems) + ".")
