"""Settings of CellOT: one frozen dataclass; the defaults are the default mode, `upstream.toml` the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...data_specs.errors import UsageError
from ..training.config import TrainingConfig

Transport = Literal["ot", "scgen"]
Space = Literal["autoencoder", "pca", "genes"]
Unseen = Literal["auto", "pooled", "averaged", "conditional"]
ContextPairs = Literal["matched", "pooled", "one"]
# Outer iterations of an epoch: upstream evaluates as often.
EPOCH_ITERATIONS = 250


@dataclass(frozen=True)
class CellotConfig(TrainingConfig):
    """Settings of `cellot`; those of every training run stand in `TrainingConfig`.

    An optimizer step here is one outer iteration (of the autoencoder: one step), an epoch `epoch_iterations` of them;
    `batch_size` counts cells per map. The first `ae_epochs` epochs train the autoencoder, the others all maps together.
    `patience` counts validations map by map: a map that is done stops, the run ends with the last one.

    Attributes
    ----------
    epoch_iterations
        Iterations between validations.
    transport
        `ot`: CellOT's maps; `scgen`: the autoencoder alone, codes shifted by the mean code difference.
    embedding, latent
        Where maps live: codes of an `autoencoder` shared by all perturbations, principal components (`pca`), both
        with `latent` dimensions, or the `genes` themselves (small feature sets only).
    ae_epochs, ae_hidden, ae_layers, ae_center, ae_dropout, ae_beta, ae_lr, ae_weight_decay, ae_halve_every
        The autoencoder: epochs, width and number of hidden layers, whether it sees expression minus the mean of the
        training cells, dropout, weight of the squared codes, learning rate, L2 penalty, iterations after which the
        rate is halved (0: never).
    scale_codes
        Multiply codes by one number so that control codes have a mean variance of 1.
    residual
        Predict x + decode(T(z)) - decode(z) instead of decode(T(z)), cells cut at 0.
    hidden, layers
        Width and number of hidden layers of both potentials.
    init
        Initial weights of the potentials: nn.Linear's (`torch`), U[0, 0.1] (`upstream`), or a map that starts as the
        `identity` thanks to a learned multiple of |x|²/2.
    activation, softplus_beta
        Activation of the potentials; above 0, kernels are softplus(weight, beta) instead of being projected.
    inner_iterations
        Steps of g for each step of f.
    fnorm_penalty
        Weight of the penalty on negative kernels of g.
    context_pairs
        Source cells of a map: contexts in the proportions of its target cells (`matched`), all control cells of the
        contexts it was measured in (`pooled`), or one context per iteration for both sides (`one`).
    mmd_scale
        Bandwidths of the MMD that selects weights: multiples of the `median` distance of the true cells, or absolute.
    validation_cells, fewest_validation_cells
        Most cells per side of a validation; maps with fewer true validation cells than the second share one stopping
        time, that of the lowest mean over them.
    unseen
        Perturbations that were not trained: the `pooled` map of all training cells, the `averaged` maps of similar
        ones or the `conditional` map (experimental), both by features. `auto`: averaged with --features, else pooled.
    combinations
        A combination of trained parts that was not trained itself: `sum` of the parts' displacements, maps applied
        one after the other (`compose`), or treated as any other `unseen` perturbation.
    neighbours, temperature
        Maps averaged, and the temperature of their weights softmax(cosine / temperature); 0: chosen by leaving out
        each training perturbation in turn.
    conditional_cells, conditional_dims, conditional_dropout, conditional_held_out
        Conditional map: cells of a batch (each of a perturbation of its own), principal components of the features,
        share of cells that see no features, share of training perturbations held out to select its weights.
    effect_cells
        Most control cells of a context that a mean effect averages over.
    """

    epoch_iterations: int = EPOCH_ITERATIONS
    transport: Transport = "ot"
    embedding: Space = "autoencoder"
    latent: int = 50
    ae_epochs: int = 20
    ae_hidden: int = 512
    ae_layers: int = 2
    ae_center: bool = True
    ae_dropout: float = 0.0
    ae_beta: float = 0.0
    ae_lr: float = 1e-3
    ae_weight_decay: float = 1e-5
    ae_halve_every: int = 100_000
    scale_codes: bool = True
    residual: bool = True
    hidden: int = 64
    layers: int = 4
    init: Literal["torch", "upstream", "identity"] = "torch"
    activation: Literal["leakyrelu", "relu"] = "leakyrelu"
    softplus_beta: float = 0.0
    inner_iterations: int = 10
    fnorm_penalty: float = 1.0
    context_pairs: ContextPairs = "matched"
    mmd_scale: Literal["median", "absolute"] = "median"
    validation_cells: int = 256
    fewest_validation_cells: int = 20
    unseen: Unseen = "auto"
    combinations: Literal["sum", "compose", "unseen"] = "sum"
    neighbours: int = 0
    temperature: float = 0.0
    conditional_cells: int = 1024
    conditional_dims: int = 10
    conditional_dropout: float = 0.1
    conditional_held_out: float = 0.15
    effect_cells: int = 500
    lr: float = 1e-4
    batch_size: int = 256
    epochs: int = 60
    patience: int = 8
    validation: Literal["auto", "perturbations", "cells", "none"] = "cells"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} must be at least {least:g}, not {getattr(self, name)}"
            for name, least in (
                ("epoch_iterations", 1),
                ("latent", 1),
                ("ae_epochs", 0),
                ("ae_hidden", 1),
                ("ae_layers", 1),
                ("ae_beta", 0),
                ("ae_weight_decay", 0),
                ("ae_halve_every", 0),
                ("hidden", 1),
                ("layers", 1),
                ("softplus_beta", 0),
                ("inner_iterations", 1),
                ("fnorm_penalty", 0),
                ("validation_cells", 2),
                ("fewest_validation_cells", 1),
                ("neighbours", 0),
                ("temperature", 0),
                ("conditional_cells", 1),
                ("conditional_dims", 1),
                ("effect_cells", 1),
            )
            if getattr(self, name) < least
        ]
        problems += [
            f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
            for name in ("ae_dropout", "conditional_dropout", "conditional_held_out")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.ae_lr <= 0:
            problems.append(f"ae_lr must be positive, not {self.ae_lr}")
        if self.validation not in ("cells", "none"):
            problems.append(
                "each map is selected on cells of its own perturbation: validation is cells or none"
            )
        if self.accumulate > 1:
            problems.append(
                "an iteration updates weights many times; use accumulate=1 and a larger batch_size"
            )
        if self.precision == "bf16" or self.compile:
            problems.append(
                "cellot has its own transport in closed form; use float32 or float64, compile=false"
            )
        if self.transport == "scgen" and self.embedding != "autoencoder":
            problems.append("transport=scgen needs embedding=autoencoder")
        if problems:
            raise UsageError("; ".join(problems) + ".")

    @property
    def embedding_epochs(self) -> int:
        """Epochs of the autoencoder: 0 for other spaces, all of them for scGen."""
        if self.embedding != "autoencoder":
            return 0
        return self.epochs if self.transport == "scgen" else self.ae_epochs
