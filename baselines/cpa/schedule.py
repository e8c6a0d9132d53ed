"""When the autoencoder and the adversaries learn, how strong the adversarial term is, and when cells are mixed."""

from __future__ import annotations

from dataclasses import dataclass

from ..training.protocol import Position
from .config import CpaConfig


@dataclass(frozen=True)
class Phase:
    """What one batch does.

    `reg_share` is the share of `reg_adv` that counts; `autoencoder_every` and `adversary_every` say in one of how
    many batches each part learns, so that averages over batches can be put right.
    """

    pretraining: bool
    autoencoder: bool
    adversaries: bool
    reg_share: float
    autoencoder_every: float
    adversary_every: float


def phase_of(config: CpaConfig, position: Position, optimizer_steps: int) -> Phase:
    """The phase of a batch.

    Pretraining covers epochs 0 to `n_epochs_pretrain_ae`, both included, where that is set. `optimizer_steps` counts
    the steps that all optimizers have taken.
    """
    done = optimizer_steps if config.count_steps == "optimizer" else position.step
    by_steps = config.n_steps_pretrain_ae > 0
    pretrain = config.n_steps_pretrain_ae or config.n_epochs_pretrain_ae
    pretraining = pretrain > 0 and (done if by_steps else position.epoch) <= pretrain
    if pretraining:
        return Phase(True, True, True, 0.0, 1.0, 1.0)
    if config.n_steps_adv_warmup:
        share = min(1.0, (done - config.n_steps_pretrain_ae) / config.n_steps_adv_warmup)
    elif config.n_epochs_adv_warmup:
        share = min(1.0, (position.epoch - config.n_epochs_pretrain_ae) / config.n_epochs_adv_warmup)
    else:
        share = 1.0
    share = max(0.0, share)
    k = config.adv_steps
    if k == 0:
        return Phase(False, True, True, share, 1.0, 1.0)
    own_turn = position.step_in_epoch % k == 0
    return Phase(False, own_turn, not own_turn, share, float(k), k / (k - 1) if k > 1 else 1.0)


def mixing_alpha(config: CpaConfig, epoch: int) -> float:
    """The Beta parameter of the mixing weight in an epoch; 0 does not mix."""
    alpha, ramp, pretrain = config.mixup_alpha, config.n_epochs_mixup_warmup, config.n_epochs_pretrain_ae
    if not ramp:
        return alpha
    if config.mixup_ramp == "never" and pretrain:
        return 0.0
    return alpha * min(1.0, max(0.0, (epoch - pretrain) / ramp))
