"""Validation of CPA: mean profiles predicted from control cells, or upstream's metrics on reconstructed cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..training.data import CellData
from ..training.protocol import Better
from ..training.selection import validation_set
from .data import Covariates, encode_cells
from .metrics import category_r2, cpa_metric, gaussian_r2, purity
from .network import GaussianDecoder

if TYPE_CHECKING:
    from .baseline import Cpa


class Validation:
    """The validation metrics of a model in training; `select` is the one that chooses the weights."""

    def __init__(self, model: Cpa, cells: CellData, covariates: Covariates, conditions: Sequence[str]):
        self._model, self._cells = model, cells
        if model.config.validate_on == "counterfactual":
            self.select: tuple[str, Better] = ("pearson_delta", "max")
            self._prepare_profiles()
            self.scores = self._profile_scores
        else:
            self.select = ("cpa_metric", "max")
            self._prepare_cells(covariates, conditions)
            self.scores = self._reconstruction_scores

    def _prepare_profiles(self) -> None:
        model, cells = self._model, self._cells
        listed = cells.validation_keys or (cells.train_keys if cells.held_out.any() else ())
        found = {label: model.encodable(label) for _, label in listed}
        codes = {label: encoded for label, (encoded, _) in found.items()}
        keys = [key for key in listed if codes[key[1]] is not None and key[0] in model.pools]
        if len(keys) < len(listed):
            first = next(reason for label, (encoded, reason) in found.items() if encoded is None)
            kept = (
                ""
                if keys
                else "; the last weights are kept (--set validation=cells chooses on held-out cells)"
            )
            n_left = len(listed) - len(keys)
            model.notes.append(
                f"{n_left} of {len(listed)} validation rows cannot be predicted (first: {first}){kept}."
            )
        self._truth = validation_set(cells.log1p, keys=keys)
        self._codes = {label: own for _, label in self._truth.keys if (own := codes[label]) is not None}

    def _profile_scores(self) -> dict[str, float]:
        truth, model = self._truth, self._model
        if not truth.keys:
            return {}
        effects: dict[tuple[str, str], np.ndarray] = {}
        for context in sorted({context for context, _ in truth.keys}):
            own = {label: self._codes[label] for place, label in truth.keys if place == context}
            effects |= model.effects(own, [context], n_samples=model.config.validation_samples)
        profiles = np.stack(
            [control + effects[key] for key, control in zip(truth.keys, truth.controls, strict=True)]
        )
        return truth.scores(profiles)

    def _prepare_cells(self, covariates: Covariates, conditions: Sequence[str]) -> None:
        model, cells = self._model, self._cells
        listed = [key for key in cells.validation_keys if model.encodable(key[1])[0] is not None]
        wanted = np.zeros(len(cells.keys), dtype=bool)
        wanted[[cells.position[key] for key in listed]] = True
        inside = wanted[cells.codes] if cells.validation_keys else cells.held_out.copy()
        for codes in covariates.codes.values():
            inside &= codes >= 0
        if cells.space == "counts":
            inside &= np.diff(cells.x.indptr) > 0
        known = [model.encodable(label)[0] is not None for _, label in cells.keys]
        inside &= np.array(known, dtype=bool)[cells.codes]
        rows = np.flatnonzero(inside)
        # Batches of mixed composition, the same in every epoch.
        rows = rows[np.random.default_rng(model.draw_seed).permutation(len(rows))]
        self._rows = (
            encode_cells(cells, rows, covariates, model.table, model.scale, conditions, model.config)
            if len(rows)
            else None
        )

    def _reconstruction_scores(self) -> dict[str, float]:
        """Means over batches of upstream's metrics. Empty without validation cells."""
        if self._rows is None:
            return {}
        size = self._model.config.batch_size
        found = [self._batch_scores(start, size) for start in range(0, len(self._rows), size)]
        found = [scores for scores in found if scores]
        if not found:
            return {}
        return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}

    def _batch_scores(self, start: int, size: int) -> dict[str, float]:
        rows, network = self._rows, self._model.network
        assert rows is not None
        own = slice(start, start + size)
        weight = network.encoder.z.weight
        if len(rows.rows[own]) < 2:
            return {}
        x = torch.as_tensor(self._cells.x[rows.rows[own]].toarray(), dtype=weight.dtype, device=weight.device)

        def on_device(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values[own], device=weight.device)

        covariates = {name: on_device(codes) for name, codes in rows.covariates.items()}
        doses = on_device(rows.doses).to(weight.dtype)
        latents = network.latents(x, on_device(rows.slots), doses, covariates)
        z = latents.total()
        categories = self._categories(own, x.device)
        if isinstance(network.decoder, GaussianDecoder):
            mean, variance = network.decoder(z)
            r2 = gaussian_r2(mean, variance, x, categories)
        else:
            mu = x.sum(dim=1, keepdim=True) * network.decoder(z)[0]
            r2 = category_r2(torch.log1p(mu), torch.log1p(x), categories)
        labels = {"conditions": on_device(rows.conditions)}
        labels |= {name: codes for name, codes in covariates.items() if len(self._model.covariates[name]) > 1}
        basal, after = purity(latents.basal, labels), purity(z, labels)
        r2_mean, r2_var = float(r2[0]), float(r2[1])
        return {
            "r2_mean": r2_mean,
            "r2_var": r2_var,
            "disnt_basal": basal,
            "disnt_after": after,
            "cpa_metric": cpa_metric(r2_mean, r2_var, basal, after),
        }

    def _categories(self, own: slice, device: torch.device) -> torch.Tensor:
        """Codes of the (covariates, condition) groups of some rows."""
        rows = self._rows
        assert rows is not None
        columns = [rows.covariates[name][own] for name in rows.covariates] + [rows.conditions[own]]
        _, codes = np.unique(np.stack(columns), axis=1, return_inverse=True)
        return torch.as_tensor(np.ravel(codes), device=device)
