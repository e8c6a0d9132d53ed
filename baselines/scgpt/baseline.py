"""scGPT as a deep model: what it learns from, what it keeps beside the weights, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError
from ...data_specs.labels import CONTROL, targets_of
from ..base import BaselineInfo, Key
from ..deep import DeepModel
from ..features import FeatureTable
from ..simple.common import Answer
from ..simple.effects import text_array
from ..training.config import TrainingConfig
from .config import ScGPTConfig
from .vocabulary import GeneTokens, Place, Vocabulary, map_genes, read_aliases

if TYPE_CHECKING:
    from ..training.data import CellData
    from ..training.protocol import Placement
    from .checkpoint import Checkpoint
    from .effects import Predictor
    from .model import TransformerGenerator
    from .training import ScGPTTraining


class ScGPT(DeepModel[ScGPTConfig]):
    """Transformer over genes: a control cell's expression and flags on the perturbed genes in, expression out.

    From scratch, or from an official checkpoint folder (`--set checkpoint=FOLDER`). Any combination of measured genes
    can be asked for; other targets with `unmeasured_target=token`. `--features` adds fixed features of genes to their
    tokens. `--set preset=upstream` and `upstream-0.2.1` are the two forms of the scgpt package.
    """

    Config = ScGPTConfig
    info = BaselineInfo(
        name="scgpt",
        title="scGPT: transformer over gene tokens, from scratch or from a checkpoint",
        paper="Cui et al. 2024",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    @classmethod
    def resolve(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """See `DeepModel.resolve`. A checkpoint without a preset is fine-tuned with preset=finetune."""
        if settings.get("checkpoint") and "preset" not in settings:
            settings = {"preset": "finetune", **settings}
        return super().resolve(settings)

    def prepare(self, cells: CellData, placement: Placement, *, rng: np.random.Generator) -> ScGPTTraining:
        from .checkpoint import load_pretrained, read_checkpoint
        from .memory import check_memory
        from .training import ScGPTTraining

        checkpoint = read_checkpoint(self.config.checkpoint) if self.config.checkpoint else None
        if checkpoint is not None:
            self.config = checkpoint.configured(self.config)
        self.tokens = self._map(cells, checkpoint)
        self._require_targets(cells)
        self.trained = sorted({target for _, label in cells.train_keys for target in targets_of(label)})
        prior = self._prior(self.tokens)
        self.has_prior = np.zeros(0, dtype=bool) if prior is None else prior.any(axis=1)
        self.n_prior = 0 if prior is None else prior.shape[1]
        network = self._network(prior)
        self.report: dict[str, Any] = {}
        if checkpoint is not None:
            report = load_pretrained(network, checkpoint, self.tokens)
            self.report = {"sha256": checkpoint.sha256, "file": str(checkpoint.folder), **report.to_json()}
            self.notes.append(f"Checkpoint {checkpoint.folder.name}: {report.text()}")
        self._clear_new_rows(network)
        rows = _pool_rows(cells, self.config.pool_size, rng)
        self.pools = {context: cells.x[own] for context, own in rows.items()}
        self.control_means = {context: cells.control_means[context] for context in rows}
        self.draw_seed = int(rng.integers(2**31))
        self._describe(cells)
        check_memory(self.config, len(cells.genes), network, placement.device)
        return ScGPTTraining(network, cells, self.tokens, placement, config=self.config, pools=rows, rng=rng)

    def _map(self, cells: CellData, checkpoint: Checkpoint | None) -> GeneTokens:
        config = self.config
        labels = cells.extras.get("labels", tuple(label for _, label in cells.keys))
        return map_genes(
            [str(gene) for gene in cells.genes],
            labels,
            None if checkpoint is None else checkpoint.vocabulary,
            oov=config.oov,
            unmeasured=config.unmeasured_target,
            aliases=read_aliases(Path(config.aliases)) if config.aliases else None,
            whole=config.vocabulary == "whole",
        )

    def _require_targets(self, cells: CellData) -> None:
        missing = sorted({t for _, label in cells.train_keys for t in self.tokens.place(label).missing})
        if missing:
            raise ModelError(
                f"{len(missing)} training targets are not among the {len(cells.genes):,} genes (first: {missing[0]}): "
                "--set unmeasured_target=token gives each an input token without output."
            )

    def _prior(self, tokens: GeneTokens) -> np.ndarray | None:
        """Features by token, z-scored over the data's tokens that have them, otherwise zero; None without a table."""
        if self.features is None:
            return None
        table = self.features.table
        used = [*self.genes.tolist(), *tokens.targets]
        rows = np.array([table.position.get(name, -1) for name in used])
        if not (rows >= 0).any():
            raise ModelError(
                f"{self.features.text}: no gene or target of the data has features (first gene: {used[0]!r}, first "
                f"feature row: {str(table.names[0])!r})."
            )
        values = table.values[rows[rows >= 0]]
        spread = values.std(axis=0)
        scaled = (table.values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        at = np.array([table.position.get(token, -1) for token in tokens.vocabulary.tokens])
        at[np.concatenate([tokens.ids, list(tokens.targets.values())]).astype(np.int64)] = rows
        prior = np.where((at >= 0)[:, None], scaled[at], 0.0).astype(np.float32)
        self.notes.append(f"{int((rows >= 0).sum()):,} of {len(used):,} genes and targets have features.")
        return prior

    def _clear_new_rows(self, network: TransformerGenerator) -> None:
        """A new token with features starts as its features alone: untrained targets then carry no random part."""
        import torch

        if self.n_prior:
            clear = self.has_prior & ~self.tokens.known
            with torch.no_grad():
                network.encoder.embedding.weight[torch.as_tensor(np.flatnonzero(clear))] = 0.0

    def _describe(self, cells: CellData) -> None:
        tokens, config = self.tokens, self.config
        n_known = int(tokens.known[tokens.ids[tokens.modelled]].sum())
        if config.checkpoint:
            unknown = [t for t in self.trained if not self._is_known(t)]
            self.notes.append(
                f"{n_known:,} of {len(cells.genes):,} genes are in the checkpoint's vocabulary ({len(tokens.renamed)} "
                f"of them under another name); {len(unknown)} of {len(self.trained)} training targets are not."
            )
        if not tokens.modelled.all():
            self.notes.append(
                f"{int((~tokens.modelled).sum()):,} genes stay at their control value (oov=drop)."
            )
        if tokens.targets:
            self.notes.append(
                f"{len(tokens.targets)} targets of the data are not among its genes: input tokens without output."
            )

    def _is_known(self, target: str) -> bool:
        tokens = self.tokens
        at = tokens.columns.get(target)
        token = tokens.targets.get(target, tokens.vocabulary.pad) if at is None else int(tokens.ids[at])
        return bool(tokens.known[token]) and token != tokens.vocabulary.pad

    def _network(self, prior: np.ndarray | None) -> TransformerGenerator:
        import torch

        from .model import TransformerGenerator

        vocabulary = self.tokens.vocabulary
        table = None if prior is None else torch.as_tensor(prior)
        return TransformerGenerator(self.config, len(vocabulary), vocabulary.pad, prior=table)

    def build(self) -> TransformerGenerator:
        shape = (len(self.tokens.vocabulary), self.n_prior)
        return self._network(np.zeros(shape, dtype=np.float32) if self.n_prior else None)

    def facts(self) -> dict[str, Any]:
        return {
            "draw_seed": self.draw_seed,
            "contexts": list(self.pools),
            "trained_targets": self.trained,
            "targets": dict(self.tokens.targets),
            "n_slots": self.tokens.n_slots,
            "renamed": dict(self.tokens.renamed),
            "n_prior": self.n_prior,
            "checkpoint": self.report,
        }

    def constants(self) -> dict[str, np.ndarray]:
        tokens = self.tokens
        arrays = {
            "tokens": text_array(list(tokens.vocabulary.tokens)),
            "ids": tokens.ids,
            "modelled": tokens.modelled,
            "known": tokens.known,
            "has_prior": self.has_prior,
            "control_means": np.stack([self.control_means[context] for context in self.pools]),
        }
        for i, pool in enumerate(self.pools.values()):
            arrays |= {
                f"pool{i}_data": pool.data,
                f"pool{i}_columns": pool.indices,
                f"pool{i}_ends": pool.indptr,
            }
        return arrays

    def restore(self, facts: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> None:
        self.tokens = GeneTokens(
            vocabulary=Vocabulary(tuple(str(token) for token in constants["tokens"])),
            ids=constants["ids"],
            modelled=constants["modelled"],
            targets={str(name): int(token) for name, token in facts["targets"].items()},
            n_slots=int(facts["n_slots"]),
            known=constants["known"],
            columns={str(gene): i for i, gene in enumerate(self.genes)},
            renamed=facts["renamed"],
        )
        self.draw_seed, self.n_prior = int(facts["draw_seed"]), int(facts["n_prior"])
        self.trained, self.report = [str(name) for name in facts["trained_targets"]], facts["checkpoint"]
        self.has_prior = constants["has_prior"]
        self.pools, self.control_means = {}, {}
        for i, context in enumerate(facts["contexts"]):
            parts = tuple(constants[f"pool{i}_{part}"] for part in ("data", "columns", "ends"))
            self.pools[context] = sp.csr_array(parts, shape=(len(parts[2]) - 1, len(self.genes)))
            self.control_means[context] = constants["control_means"][i]

    def answers(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> list[Answer]:
        """See `DeepModel.answers`.

        A context of the training data gets the effect on its own control cells, any other the mean over those.
        """
        predictor = self._predictor()
        effects: dict[str, dict[str, np.ndarray]] = {}
        found = []
        for context, label in keys:
            place = self._place(label)
            refusal = self._without_token(label, place)
            if refusal is not None:
                found.append(refusal)
                continue
            if label not in effects:
                effects[label] = predictor.effects(self.pools, place, label=label)
            found.append(
                Answer(self._effect(effects[label], context, control_means), reason=self._remark(label))
            )
        return found

    def _effect(
        self, effects: Mapping[str, np.ndarray], context: str, control_means: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        from .effects import mean_rows

        absolute = self.config.effect == "absolute"
        if context in effects:
            shift = mean_rows(self.pools[context]) - control_means[context] if absolute else 0.0
            return effects[context] + shift
        shifts = [
            effect + (mean_rows(self.pools[other]) - self.control_means[other] if absolute else 0.0)
            for other, effect in effects.items()
        ]
        return np.mean(shifts, axis=0)

    def predicted_cells(self, context: str, label: str, x: sp.csr_array | None = None) -> np.ndarray:
        """Predicted expression of single cells, float32, shape (n, G): not clipped, smoother than measured cells.

        `x` are control cells in log1p space, shape (n, G); default: the context's own of the training file.

        Raises
        ------
        ModelError
            The context was not trained and no cells are given, or a target has no token.
        """
        place = self._place(label)
        refusal = self._without_token(label, place)
        if refusal is not None:
            raise ModelError(f"{label}: {refusal.reason}.")
        if x is None and context not in self.pools:
            raise ModelError(f"{context!r} was not trained; give its control cells.")
        pool = self.pools[context] if x is None else x
        return self._predictor().cells(pool, place, label=label).float().cpu().numpy()

    def gene_embeddings(self) -> FeatureTable:
        """Token vectors after the layer norm (and features), special tokens left out; float64, shape (n, D)."""
        import torch

        network, vocabulary = cast("TransformerGenerator", self.module), self.tokens.vocabulary
        # Genes first, under the names that the data has for them.
        names = {str(gene): int(token) for gene, token in zip(self.genes, self.tokens.ids, strict=True)}
        names |= self.tokens.targets
        names = {name: token for name, token in names.items() if token != vocabulary.pad}
        for token, i in vocabulary.ids.items():
            if not token.startswith("<"):
                names.setdefault(token, i)
        with torch.no_grad():
            found = network.encoder(torch.tensor(list(names.values()), device=self.device))
        return FeatureTable(np.array(list(names)), found.double().cpu().numpy())

    def _predictor(self) -> Predictor:
        from .effects import Predictor

        network = cast("TransformerGenerator", self.module)
        return Predictor(network, self.tokens, self.config, seed=self.draw_seed)

    def _place(self, label: str) -> Place:
        """Tokens of a label's targets; an unmeasured target that no label of the data had may be in the vocabulary."""
        place = self.tokens.place(label)
        ids = self.tokens.vocabulary.ids
        if self.config.unmeasured_target == "error" or not place.missing:
            return place
        more = tuple(ids[target] for target in place.missing if target in ids)
        rest = tuple(target for target in place.missing if target not in ids)
        return Place(place.columns, (*place.extra, *more), rest)

    def _without_token(self, label: str, place: Place) -> Answer | None:
        """A refusal or fallback for a label whose targets the network cannot tell apart; None where it can."""
        if place.missing and self.config.unmeasured_target == "error":
            return Answer.refuse(f"{', '.join(place.missing)} not among the genes (unmeasured_target=error)")
        named = [*place.missing, *(target for target in targets_of(label) if self._is_untrained(target))]
        names = ", ".join(dict.fromkeys(named))
        if place.missing and self.config.untrained_target == "predict":
            return Answer.refuse(f"no token for {', '.join(place.missing)}")
        if not named or self.config.untrained_target == "predict":
            return None
        if self.config.untrained_target == "refuse":
            return Answer.refuse(f"the token of {names} was not trained")
        return Answer.fall_back(
            self.mean_effect, f"the token of {names} was not trained; mean training effect instead"
        )

    def _is_untrained(self, target: str) -> bool:
        """An unmeasured target that neither training cells, checkpoint nor features say anything about."""
        tokens = self.tokens
        if target in tokens.columns or target in self.trained:
            return False
        token = tokens.targets.get(target, tokens.vocabulary.ids.get(target))
        if token is None:
            return False
        informed = bool(tokens.known[token]) or (self.n_prior > 0 and bool(np.asarray(self.has_prior)[token]))
        return not informed or token == tokens.vocabulary.pad

    def _remark(self, label: str) -> str:
        shared = [
            target
            for target in targets_of(label)
            if target in self.tokens.columns
            and self.tokens.ids[self.tokens.columns[target]] == self.tokens.vocabulary.pad
        ]
        return f"{', '.join(shared)} shares the token <pad> with other genes" if shared else ""


def _pool_rows(cells: CellData, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of the control cells that predictions average over, by context, in random order; all when `size` is 0."""
    found = {}
    for context in cells.contexts:
        if (context, CONTROL) in cells.position:
            rows = rng.permutation(cells.rows_of((context, CONTROL)))
            found[context] = rows[:size] if size else rows
    return found


def with_settings(model: ScGPT, **changes: Any) -> ScGPT:
    """The same model predicting with other settings: `inference`, `partitions`, `effect`, `untrained_target`."""
    allowed = {"inference", "partitions", "effect", "untrained_target", "max_seq_len", "precision"}
    if set(changes) - allowed:
        raise ModelError(
            f"{', '.join(sorted(set(changes) - allowed))}: only prediction settings can be changed."
        )
    other = ScGPT(replace(model.config, **changes))
    other.genes, other.mean_effect, other.notes = model.genes, model.mean_effect, list(model.notes)
    other.restore(model.facts(), model.constants())
    other._module = model._module
    return other
