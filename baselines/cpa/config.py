"""Settings of CPA: one frozen dataclass; the defaults are the default mode, `upstream.toml` the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...data_specs.errors import UsageError
from ..training.config import TrainingConfig

Likelihood = Literal["nb", "zinb", "gauss"]
Doser = Literal["logsigm", "sigm", "linear", "mlp"]
DoseScaleForm = Literal["log", "relative", "raw"]


@dataclass(frozen=True)
class CpaConfig(TrainingConfig):
    """Settings of `cpa`; those of every training run stand in `TrainingConfig`.

    Attributes
    ----------
    recon_loss
        Likelihood of a cell: `nb` and `zinb` on raw counts, `gauss` on log1p values.
    n_latent, n_hidden_encoder, n_layers_encoder, n_hidden_decoder, n_layers_decoder
        Sizes of the latent space and of both stacks.
    use_batch_norm_encoder, use_layer_norm_encoder, use_batch_norm_decoder, use_layer_norm_decoder
        Norms in each block of the stacks; a layer norm has no parameters.
    dropout_rate_encoder, dropout_rate_decoder
        Dropout after each block.
    dead_heads
        Keep upstream's untrained output heads of the count decoders, and its decoder without dropout.
    clamp_variance
        Limit the log-variance of `gauss` to -10 to 10.
    doser_type, n_hidden_doser, n_layers_doser
        Dose response of each perturbation: `linear` (the dose itself), `sigm`, `logsigm`, or `mlp` with its sizes.
    doses
        What a dose counts as: `raw` in the labels' unit, `relative` to the highest training dose, or its `log`, 0 to 1.
    match_doses
        Give each part of a combination its own dose; false keeps upstream's order of the label.
    covariates, batch_key
        Further obs columns beside `context`, comma-separated, and the one of them that is a batch.
    projection, control_row
        With features: train the projection to the latent space or leave it at its random start; control as a learned
        vector, or as a row of the table.
    n_feature_components
        Keep so many principal components of wider features (0: all).
    missing_features
        Training targets without features are left out, or get the mean vector.
    residual_rows, residual_dropout
        Add a learned vector to each trained target's projection, left out at this rate in training.
    unseen
        A requested target that was neither trained nor has features: the mean training shift, marked as a fallback; a
        refusal; or its untrained row (upstream).
    n_hidden_adv, n_layers_adv, use_batch_norm_adv, use_layer_norm_adv, dropout_rate_adv
        Sizes and norms of the adversaries.
    adv_steps
        The autoencoder learns in one of so many batches, the adversaries in the others; 0: both in each batch.
    reg_adv, pen_adv, scale_reg_adv
        Weight of the adversaries in the autoencoder's loss, of their gradient penalty, and whether `reg_adv` is meant
        per 5,000 genes (the reconstruction is a sum over genes).
    adv_loss
        Cross entropy (`cce`) or `focal` loss of the conditions.
    adv_lr, adv_wd, doser_lr, doser_wd
        Rates and L2 penalties of the other two optimizers; `lr` and `weight_decay` are the autoencoder's.
    n_epochs_pretrain_ae, n_epochs_adv_warmup, n_steps_pretrain_ae, n_steps_adv_warmup
        Epochs or steps (0: none; steps win) without adversarial term, and over which `reg_adv` then rises.
    count_steps
        Steps of these settings are `batches`, or `optimizer` steps of all optimizers together (upstream).
    classes
        Conditions of the adversary and their weights: those of the training cells, or of `all` cells of the file.
    mixup_alpha, n_epochs_mixup_warmup, mixup_ramp
        Beta parameter of the mixing weight (0: no mixing); epochs over which it rises after pretraining, or `never`
        when both are set (upstream).
    mixed_covariates
        Mix the covariates' labels for their adversaries too.
    reference
        Predicted effects are differences to the `decoded` controls, or to the `measured` control mean (upstream).
    control_cells, n_samples, validation_samples
        Control cells of each context kept for prediction, and sampled cells per profile in prediction and validation.
    validate_on
        `counterfactual`: mean profiles of the validation rows predicted from control cells. `reconstruction`:
        upstream's metrics of the validation cells decoded from themselves.
    empty_cells
        Cells without counts: an error, or left out.
    initial_weights
        A safetensors or torch file of upstream's network weights to start from; empty for random weights.
    """

    recon_loss: Likelihood = "nb"
    n_latent: int = 64
    n_hidden_encoder: int = 256
    n_layers_encoder: int = 2
    n_hidden_decoder: int = 256
    n_layers_decoder: int = 2
    use_batch_norm_encoder: bool = True
    use_layer_norm_encoder: bool = False
    use_batch_norm_decoder: bool = False
    use_layer_norm_decoder: bool = True
    dropout_rate_encoder: float = 0.1
    dropout_rate_decoder: float = 0.0
    dead_heads: bool = False
    clamp_variance: bool = True
    doser_type: Doser = "linear"
    n_hidden_doser: int = 64
    n_layers_doser: int = 2
    doses: DoseScaleForm = "log"
    match_doses: bool = True
    covariates: str = ""
    batch_key: str = ""
    projection: Literal["trained", "frozen"] = "trained"
    control_row: Literal["learned", "table"] = "learned"
    n_feature_components: int = 256
    missing_features: Literal["leave-out", "mean"] = "leave-out"
    residual_rows: bool = False
    residual_dropout: float = 0.5
    unseen: Literal["mean-shift", "refuse", "row"] = "mean-shift"
    n_hidden_adv: int = 128
    n_layers_adv: int = 2
    use_batch_norm_adv: bool = True
    use_layer_norm_adv: bool = False
    dropout_rate_adv: float = 0.3
    adv_steps: int = 3
    reg_adv: float = 10.0
    pen_adv: float = 20.0
    scale_reg_adv: bool = True
    adv_loss: Literal["cce", "focal"] = "cce"
    adv_lr: float = 3e-4
    adv_wd: float = 4e-7
    doser_lr: float = 3e-4
    doser_wd: float = 0.0
    n_epochs_pretrain_ae: int = 10
    n_epochs_adv_warmup: int = 20
    n_steps_pretrain_ae: int = 0
    n_steps_adv_warmup: int = 0
    count_steps: Literal["batches", "optimizer"] = "batches"
    classes: Literal["training", "all"] = "training"
    mixup_alpha: float = 0.0
    n_epochs_mixup_warmup: int = 0
    mixup_ramp: Literal["after-pretraining", "never"] = "after-pretraining"
    mixed_covariates: bool = True
    reference: Literal["decoded", "measured"] = "decoded"
    control_cells: int = 500
    n_samples: int = 2000
    validation_samples: int = 400
    validate_on: Literal["counterfactual", "reconstruction"] = "counterfactual"
    empty_cells: Literal["error", "leave-out"] = "error"
    initial_weights: str = ""
    fused: bool = True
    lr: float = 1e-3
    weight_decay: float = 4e-7
    clip: Literal["none", "norm", "value"] = "norm"
    batch_size: int = 128
    epochs: int = 100
    validate_every: int = 10
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            **dict.fromkeys(
                ("n_latent", "n_hidden_encoder", "n_hidden_decoder", "n_hidden_adv", "n_hidden_doser"), 1
            ),
            **dict.fromkeys(("n_layers_encoder", "n_layers_decoder", "n_layers_doser"), 1),
            **dict.fromkeys(("n_layers_adv", "adv_steps", "n_feature_components"), 0),
            **dict.fromkeys(("reg_adv", "pen_adv", "adv_wd", "doser_wd", "mixup_alpha"), 0),
            **dict.fromkeys(("n_epochs_pretrain_ae", "n_epochs_adv_warmup", "n_epochs_mixup_warmup"), 0),
            **dict.fromkeys(("n_steps_pretrain_ae", "n_steps_adv_warmup"), 0),
            **dict.fromkeys(("control_cells", "n_samples", "validation_samples"), 1),
            "batch_size": 2,
        }
        problems = [
            f"{name} must be at least {bound}, not {getattr(self, name)}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        problems += [
            f"{name} must lie from 0 to below 1, not {getattr(self, name)}"
            for name in (
                "dropout_rate_encoder",
                "dropout_rate_decoder",
                "dropout_rate_adv",
                "residual_dropout",
            )
            if not 0 <= getattr(self, name) < 1
        ]
        problems += [
            f"{name} must be positive, not {getattr(self, name)}"
            for name in ("adv_lr", "doser_lr")
            if getattr(self, name) <= 0
        ]
        columns = self.columns
        if len(set(columns)) < len(columns) or "context" in columns:
            problems.append(f"covariates names each further column once, not {self.covariates!r}")
        if self.batch_key and self.batch_key not in columns:
            problems.append(f"batch_key={self.batch_key} is not among covariates={self.covariates!r}")
        if self.compile:
            problems.append("the adversaries' penalty needs second derivatives; use compile=false")
        if self.precision == "bf16":
            problems.append("log-gamma and the penalty need float32; use precision=float32")
        if problems:
            raise UsageError("; ".join(problems) + ".")

    @property
    def columns(self) -> tuple[str, ...]:
        """The obs columns of `covariates`."""
        return tuple(name.strip() for name in self.covariates.split(",") if name.strip())
