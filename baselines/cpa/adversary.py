"""Adversaries of CPA: classifiers of condition and covariates on the basal state, their losses and penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import CpaConfig
from .layers import Stack

FOCAL_GAMMA = 2.0


class Classifier(nn.Module):
    """Basal state to the logits of `n_out` classes."""

    def __init__(self, n_out: int, config: CpaConfig):
        super().__init__()
        stack = Stack(
            config.n_latent,
            config.n_hidden_adv,
            config.n_layers_adv,
            batch_norm=config.use_batch_norm_adv,
            layer_norm=config.use_layer_norm_adv,
            dropout=config.dropout_rate_adv,
        )
        self.classifier = nn.Sequential(
            stack, nn.Linear(config.n_hidden_adv if config.n_layers_adv else config.n_latent, n_out)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Shape (n, L) to (n, n_out)."""
        return self.classifier(z)


@dataclass(frozen=True)
class Labels:
    """Classes of a pass's cells, and what normalises the weighted loss over the whole optimizer step.

    `weight_total` is the sum of the class weights of all of the step's cells, `n_whole` their number.
    """

    conditions: Tensor
    covariates: Mapping[str, Tensor]
    weight_total: float
    n_whole: int


class Adversaries(nn.Module):
    """The classifier of conditions and one of each covariate with more than one value.

    `class_weights`, shape (C,), weigh the conditions. A single condition has no classifier: all its terms are 0.
    """

    def __init__(self, config: CpaConfig, class_weights: Tensor, covariates: Mapping[str, int]):
        super().__init__()
        self.focal = config.adv_loss == "focal"
        self.mixed_covariates = config.mixed_covariates
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.perturbation_classifier = (
            Classifier(len(class_weights), config) if len(class_weights) > 1 else None
        )
        self.covars_classifiers = nn.ModuleDict(
            {name: Classifier(n, config) for name, n in covariates.items() if n > 1}
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell apart."""
        return self.perturbation_classifier is None and not len(self.covars_classifiers)

    def logits(self, z: Tensor) -> dict[str, Tensor]:
        """Logits of every classifier; the condition's is named `conditions`."""
        found = {name: module(z) for name, module in self.covars_classifiers.items()}
        if self.perturbation_classifier is not None:
            found["conditions"] = self.perturbation_classifier(z)
        return found

    def loss(
        self,
        logits: Mapping[str, Tensor],
        labels: Labels,
        *,
        partners: Labels | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        """The share of the summed cross entropies that this pass has, a scalar.

        With `partners` the cells are mixed: `weight` on their own classes, the rest on their partners'.
        """
        terms = []
        for name, values in logits.items():
            own = self._term(name, values, labels)
            if partners is not None:
                own = weight * own
                if name == "conditions" or self.mixed_covariates:
                    own = own + (1 - weight) * self._term(name, values, partners)
            terms.append(own)
        return torch.stack(terms).sum()

    def _term(self, name: str, logits: Tensor, labels: Labels) -> Tensor:
        if name != "conditions":
            return F.cross_entropy(logits, labels.covariates[name], reduction="sum") / labels.n_whole
        weights: Tensor = self.class_weights  # type: ignore[assignment]
        if self.focal:
            cross = F.cross_entropy(logits, labels.conditions, weight=weights, reduction="none")
            likely = F.softmax(logits, dim=1).gather(1, labels.conditions.unsqueeze(1)).squeeze(1)
            return ((1 - likely) ** FOCAL_GAMMA * cross).sum() / labels.n_whole
        cross = F.cross_entropy(logits, labels.conditions, weight=weights, reduction="sum")
        return cross / labels.weight_total

    @staticmethod
    def penalty(logits: Mapping[str, Tensor], z: Tensor, n_whole: int) -> Tensor:
        """The share of the summed mean squared gradients of the logits' sums by `z`; differentiable."""
        terms = [
            torch.autograd.grad(values.sum(), z, create_graph=True)[0].pow(2).sum() / (n_whole * z.shape[1])
            for values in logits.values()
        ]
        return torch.stack(terms).sum()


def class_weights(n_cells: Tensor) -> Tensor:
    """N / n - 1 of each class; a class without cells counts as one cell."""
    return n_cells.sum() / n_cells.clamp(min=1) - 1
