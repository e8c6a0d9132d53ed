"""CellOT as a deep model: one transport map per perturbation, learned together, and what to do for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError
from ...data_specs.labels import split_label
from ..base import BaselineInfo, Key
from ..deep import DeepModel
from ..simple.common import Answer
from ..simple.effects import text_array
from .config import CellotConfig
from .unseen import Averaging, Similarity, averaging_weights, tune_averaging

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.data import CellData
    from ..training.protocol import Placement
    from .module import CellotModule
    from .training import CellotTraining

FEW_CELLS = 64
Move = Callable[["Tensor"], "Tensor"]


class Cellot(DeepModel[CellotConfig]):
    """Optimal transport of control cells: one map ∇g per perturbation, with g convex, in the space of an autoencoder.

    Maps of all perturbations are trained together; contexts share them, so a context where the perturbation was not
    seen gets its map applied to its own control cells. Combinations add displacements; other perturbations get the
    pooled map, or with --features an average of similar maps. `predict --cells` gives transported cells. `--set
    preset=upstream` is CellOT at commit 522d2b9.
    """

    Config = CellotConfig
    info = BaselineInfo(
        name="cellot",
        title="CellOT: optimal transport maps of control cells",
        paper="Bunne, Stark, Gut et al. 2023",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )
    has_cells = True

    def prepare(self, cells: CellData, placement: Placement, *, rng: np.random.Generator) -> CellotTraining:
        from .module import CellotModule
        from .training import CellotTraining

        self.labels = tuple(sorted({label for _, label in cells.train_keys}))
        self.control_means = dict(cells.control_means)
        self.similarity = self.contexts_of = None
        if self.features is not None:
            self.similarity = Similarity.of(self.features.table, self.labels)
            if self.config.unseen == "conditional":
                self.contexts_of = self.similarity.reduced(self.config.conditional_dims)
        elif self.config.unseen in ("averaged", "conditional"):
            raise ModelError(
                f"unseen={self.config.unseen} needs features of the targets: give --features FILE."
            )
        module = CellotModule(self.config, self._sizes(len(cells.genes)), dtype=placement.dtype)
        if self.config.embedding == "pca":
            from .components import fit_projection

            fit_projection(module, cells)
        contexts = None if self.contexts_of is None else self.contexts_of.vectors
        training = CellotTraining(
            module, cells, self.labels, placement, config=self.config, contexts=contexts, rng=rng
        )
        self._training = training
        self._first_notes = [*self.notes, *self._about(training, cells)]
        self.notes = list(self._first_notes)
        return training

    def _about(self, training: CellotTraining, cells: CellData) -> list[str]:
        counts = training.sampler.n_targets[:-1]
        few = [label for label, n in zip(self.labels, counts, strict=True) if n < FEW_CELLS]
        held_out = cells.held_out
        notes = [
            f"{len(self.labels)} maps of {int(counts.min()):,} to {int(counts.max()):,} training cells, and a "
            f"pooled one; {int(held_out.sum()):,} held-out cells select them."
        ]
        if few:
            shown = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
            notes.append(f"{len(few)} map(s) have fewer than {FEW_CELLS} training cells: {shown}.")
        return notes

    def _sizes(self, n_genes: int):
        from .module import Sizes

        n_features = 0 if self.contexts_of is None else self.contexts_of.table.n_dims
        return Sizes(n_genes, len(self.labels), n_features)

    def build(self) -> CellotModule:
        import torch

        from .module import CellotModule

        dtype = torch.float64 if self.config.precision == "float64" else torch.float32
        return CellotModule(self.config, self._sizes(len(self.genes)), dtype=dtype)

    # --- what is kept -----------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        self._summarise()
        super().write(folder)

    def _summarise(self) -> None:
        """Codes, shifts and the averaging of the present weights, and the notes about them."""
        import torch

        training = self._training
        self._module = training.module
        found = training.summary()
        self.codes, self.shifts = found.codes, found.shifts
        self.averaging = Averaging(self.config.neighbours, self.config.temperature or 1.0)
        self.notes = list(self._first_notes)
        net = self._net
        failed = [label for label, ok in zip(self.labels, net.duel.healthy.tolist(), strict=False) if not ok]
        if failed:
            self.notes.append(f"The maps of {', '.join(failed)} diverged; the pooled map stands in for them.")
        if not bool(net.ready) or self.config.transport == "scgen":
            return
        if self.similarity is not None:
            codes = torch.as_tensor(np.concatenate(list(self.codes.values())), dtype=net.scale.dtype)
            moved = self._means_of_maps(codes.to(net.scale.device))
            self.averaging = tune_averaging(
                self.similarity,
                moved[:-1],
                moved[-1],
                self.shifts[:-1],
                neighbours=self.config.neighbours,
                temperature=self.config.temperature,
            )
            a = self.averaging
            self.notes.append(
                f"Left out one by one ({a.n} perturbations), averaged maps (U1: {a.neighbours or 'all'} neighbours, "
                f"temperature {a.temperature:g}) miss the mean shift by {a.averaged:.4g}, the pooled map (U0) by "
                f"{a.pooled:.4g} in code space."
            )
        if found.comparisons:
            listed = {**found.comparisons, "maps": training.kept_distances()}
            text = "; ".join(f"{name} {mmd:.4g} and {l2:.4g}" for name, (mmd, l2) in listed.items())
            self.notes.append(f"Validation MMD and distance of means, in code space: {text}.")

    def _means_of_maps(self, codes: Tensor) -> np.ndarray:
        """Mean displacement of every map over some codes, float64 (P, d)."""
        import torch

        net, out = self._net, []
        with torch.no_grad():
            for p in range(net.n_maps):
                moved = net.transported(torch.tensor([p], device=codes.device), codes)[0]
                out.append((moved - codes).double().mean(dim=0).cpu().numpy())
        return np.stack(out)

    def facts(self) -> dict[str, Any]:
        a = self.averaging
        return {
            "contexts": list(self.codes),
            "control_contexts": list(self.control_means),
            "averaging": {"neighbours": a.neighbours, "temperature": a.temperature},
            "has_features": self.similarity is not None,
            "has_contexts": self.contexts_of is not None,
        }

    def constants(self) -> dict[str, np.ndarray]:
        arrays = {"labels": text_array(list(self.labels)), "shifts": self.shifts}
        arrays |= {f"codes{i}": codes for i, codes in enumerate(self.codes.values())}
        arrays["control_means"] = np.stack(list(self.control_means.values()))
        if self.similarity is not None:
            arrays |= self.similarity.arrays("features")
        if self.contexts_of is not None:
            arrays |= self.contexts_of.arrays("contexts")
        return arrays

    def restore(self, facts: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> None:
        self.labels = tuple(str(label) for label in constants["labels"])
        self.shifts = constants["shifts"]
        self.codes = {context: constants[f"codes{i}"] for i, context in enumerate(facts["contexts"])}
        self.control_means = dict(zip(facts["control_contexts"], constants["control_means"], strict=True))
        self.averaging = Averaging(**facts["averaging"])
        self.similarity = (
            Similarity.from_arrays(constants, "features", self.labels) if facts["has_features"] else None
        )
        self.contexts_of = (
            Similarity.from_arrays(constants, "contexts", self.labels) if facts["has_contexts"] else None
        )

    # --- prediction -------------------------------------------------------------------------------------------------

    @property
    def _net(self) -> CellotModule:
        return cast("CellotModule", self.module)

    def move(self, label: str) -> tuple[Move | None, str, str]:
        """How codes (n, d) move under a label: a function of scaled codes, the status and the reason.

        The function is None for a label that cannot be answered, which does not happen with `unseen=pooled`.
        """
        at = {name: p for p, name in enumerate(self.labels)}
        healthy = self._net.duel.healthy.tolist()
        if label in at and healthy[at[label]]:
            return self._map(at[label]), "predicted", ""
        if label in at:
            return self._pooled(), "fallback", f"the map of {label} diverged; pooled map of all perturbations"
        parts = split_label(label)
        trained = len(parts) > 1 and all(part in at and healthy[at[part]] for part in parts)
        if trained and self.config.combinations != "unseen":
            moves = [self._map(at[part]) for part in parts]
            names = ", ".join(parts)
            if self.config.combinations == "compose":
                return _composed(moves), "predicted", f"maps of {names}, one after the other"
            return _summed(moves), "predicted", f"sum of the displacements of {names}"
        return self._unseen(label, at)

    def _unseen(self, label: str, at: Mapping[str, int]) -> tuple[Move, str, str]:
        chosen = self.config.unseen
        if chosen == "auto":
            chosen = "pooled" if self.similarity is None else "averaged"
        source = self.contexts_of if chosen == "conditional" else self.similarity
        if chosen == "pooled" or source is None:
            return self._pooled(), "fallback", f"{label} was not trained; pooled map of all perturbations"
        vector, missing = source.vector(label)
        if missing:
            why = f"no features for {', '.join(missing)}"
            return self._pooled(), "fallback", f"{why}; pooled map of all perturbations"
        if chosen == "conditional":
            return self._conditional(vector), "predicted", f"conditional map at the features of {label}"
        a = self.averaging
        weights = averaging_weights(source.cosines(vector), a.neighbours, a.temperature)
        used = np.flatnonzero(weights)
        nearest = self.labels[int(weights.argmax())]
        return (
            self._weighted(used, weights[used]),
            "predicted",
            f"average of {len(used)} map(s), nearest {nearest}",
        )

    def _pooled(self) -> Move:
        return self._map(len(self.labels))

    def _map(self, p: int) -> Move:
        return self._weighted(np.array([p]), np.ones(1))

    def _weighted(self, maps: np.ndarray, weights: np.ndarray) -> Move:
        import torch

        net = self._net
        device, dtype = net.scale.device, net.scale.dtype
        factors = torch.as_tensor(weights, dtype=dtype, device=device)
        if self.config.transport == "scgen":
            shift = factors @ torch.as_tensor(self.shifts[maps], dtype=dtype, device=device)
            return lambda codes: codes + shift
        chosen = torch.as_tensor(maps, device=device)
        return lambda codes: torch.einsum("m,mnd->nd", factors, net.transported(chosen, codes))

    def _conditional(self, vector: np.ndarray) -> Move:
        import torch

        net = self._net
        assert net.conditional is not None
        nets = net.conditional
        context = torch.as_tensor(vector, dtype=net.scale.dtype, device=net.scale.device)
        return lambda codes: nets.best.transport(codes, context.expand(len(codes), -1))

    def answers(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> list[Answer]:
        """See `DeepModel.answers`. A context without control cells in training gets the mean over those with some."""
        effects: dict[Key, np.ndarray] = {}
        found = []
        for context, label in keys:
            move, status, reason = self.move(label)
            assert move is not None
            known = [context] if context in self.codes else list(self.codes)
            for own in known:
                if (own, label) not in effects:
                    effects[own, label] = self._effect(own, move)
            effect = np.mean([effects[own, label] for own in known], axis=0)
            # Nothing is expressed below 0.
            effect = np.maximum(effect, -control_means[context])
            found.append(
                Answer(effect, reason=reason) if status == "predicted" else Answer.fall_back(effect, reason)
            )
        return found

    def _effect(self, context: str, move: Move) -> np.ndarray:
        """Mean change of a context's stored control cells, float64 (G,), before any cut at 0."""
        import torch

        net = self._net
        with torch.no_grad():
            codes = torch.as_tensor(self.codes[context], dtype=net.scale.dtype, device=net.scale.device)
            after = net.decode(move(codes)).double().mean(dim=0)
            if not self.config.residual:
                return after.cpu().numpy() - self.control_means[context]
            return (after - net.decode(codes).double().mean(dim=0)).cpu().numpy()

    def cells(self, key: Key, controls: sp.csr_array, *, rng: np.random.Generator) -> np.ndarray:
        """Transported control cells, float32 (n, G), log1p space; see `DeepModel.cells`. Draws nothing."""
        import torch

        net = self._net
        move, _, _ = self.move(key[1])
        assert move is not None
        with torch.no_grad():
            x = torch.as_tensor(controls.toarray(), dtype=net.scale.dtype, device=net.scale.device)
            codes = net.encode(x)
            after = net.decode(move(codes))
            predicted = x + after - net.decode(codes) if self.config.residual else after
            return predicted.clamp_(min=0.0).float().cpu().numpy()


def _summed(moves: Sequence[Move]) -> Move:
    return lambda codes: codes + sum((move(codes) - codes for move in moves[1:]), moves[0](codes) - codes)


def _composed(moves: Sequence[Move]) -> Move:
    def apply(codes: Tensor) -> Tensor:
        for move in moves:
            codes = move(codes)
        return codes

    return apply
