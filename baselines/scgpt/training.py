"""scGPT in the training loop: paired cells, genes of a step, the loss of its share, validation on mean profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data_specs.errors import ModelError
from ..training.data import CellData, pair_controls
from ..training.device_matrix import DeviceMatrix
from ..training.distributed import n_processes
from ..training.optimizers import adam
from ..training.protocol import Better, Logs, Part, Placement, SingleLoss
from ..training.selection import ValidationSet, validation_set
from .config import PARTS, ScGPTConfig
from .effects import Predictor, expressed_genes
from .inputs import InputMaker, Inputs, LabelTable
from .model import TransformerGenerator
from .sampling import bucketed_order, genes_per_cell, shared_genes
from .vocabulary import GeneTokens

# Above this share of the sequence, perturbed genes of a step are drawn for each cell alone.
MOST_FORCED = 0.5


@dataclass(frozen=True)
class Batch:
    """One pass: inputs, targets of its gene positions, shape (n, L), and the gene tokens of the whole step."""

    inputs: Inputs
    targets: Tensor
    n_tokens: int


class ScGPTTraining(SingleLoss):
    """An scGPT network and its training cells.

    The genes of a step depend on seed, epoch and the step's cells alone, so processes and accumulated passes agree.
    Validation metrics are `selection`'s and `pearson` (of whole profiles), on the mean profile of each row; in a
    paired validation also `cell_mse`, the mean squared error of single cells. `pearson_delta` selects.
    """

    reduction = "share"
    select: tuple[str, Better] = ("pearson_delta", "max")

    def __init__(
        self,
        network: TransformerGenerator,
        cells: CellData,
        tokens: GeneTokens,
        placement: Placement,
        *,
        config: ScGPTConfig,
        pools: Mapping[str, np.ndarray],
        rng: np.random.Generator,
    ):
        self.module = network.to(device=placement.device, dtype=placement.dtype)
        self.network, self.config, self.cells, self.tokens = network, config, cells, tokens
        if config.select == "cell_mse":
            self.select = ("cell_mse", "min")
        self.rows = training_rows(cells, include_control=config.include_control)
        self.n_rows = len(self.rows)
        places = [tokens.place(label) for _, label in cells.keys]
        self._targets = LabelTable.of(places, tokens.n_slots)
        self._maker = InputMaker(tokens, placement.device)
        self._x = DeviceMatrix(cells.x, placement, where=config.data)
        self._modelled = np.flatnonzero(tokens.modelled)
        self._epoch_seed = int(rng.integers(2**62))
        self.pairs = pair_controls(cells, self.rows, rng)
        means = [cells.control_means.get(context, np.zeros(len(cells.genes))) for context in cells.contexts]
        self._control_means = torch.as_tensor(np.stack(means), dtype=placement.dtype, device=placement.device)
        self._prepare_validation(pools, rng)

    def _prepare_validation(self, pools: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        cells, config = self.cells, self.config
        listed = cells.validation_keys or cells.train_keys
        usable = [key for key in listed if not self.tokens.place(key[1]).missing]
        self._truth: ValidationSet = validation_set(cells, keys=usable)
        self._validation_seed = int(rng.integers(2**31))
        self._validation_pools = {
            context: cells.x[np.sort(rows[: config.validation_cells])] for context, rows in pools.items()
        }
        self._validation_pairs: list[tuple[np.ndarray, np.ndarray]] = []
        if config.paired_validation:
            for key in self._truth.keys:
                rows = cells.rows_of(key, held_out=not cells.validation_keys)
                self._validation_pairs.append((rows, pair_controls(cells, rows, rng)))

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        freeze(self.network, self.config)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if not trained:
            raise ModelError(f"freeze={self.config.freeze}: nothing is left to train.")
        return {"main": adam(trained, self.config)}

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch; its pairs and the seed of its gene draws come from the same generator."""
        config = self.config
        self._epoch_seed = int(rng.integers(2**62))
        if config.pairing == "epoch":
            self.pairs = pair_controls(self.cells, self.rows, rng)
        order = rng.permutation(self.n_rows)
        if config.include_zero_gene != "cell-wise":
            return order
        lengths = np.diff(self.cells.x.indptr)[self.pairs]
        step_rows = config.batch_size * config.accumulate * n_processes()
        return bucketed_order(order, lengths, step_rows, rng)

    def batch(self, part: Part) -> Batch:
        codes = self.cells.codes[self.rows[part.rows]]
        targets = self._targets.rows(codes)
        columns, n_tokens = self._columns(part)
        if self.config.pairing == "mean":
            contexts = self.cells.context_codes[self.rows[part.rows]]
            x = self._control_means[torch.as_tensor(contexts, device=self._control_means.device)]
        else:
            x = self._x.rows(self.pairs[part.rows])
        inputs = self._maker.make(x, targets, columns)
        y = self._x.rows(self.rows[part.rows])
        shared = inputs.columns.dim() == 1
        wanted = y.index_select(1, inputs.columns) if shared else y.gather(1, inputs.columns)
        return Batch(inputs, wanted, n_tokens)

    def _columns(self, part: Part) -> tuple[np.ndarray | list[np.ndarray], int]:
        """Genes of the pass, for all cells or one by one, and the number of gene tokens of the whole step."""
        config, whole = self.config, part.whole
        if config.include_zero_gene == "cell-wise":
            return self._per_cell(self._expressed(part.rows), part.rows), self._n_tokens(
                self._expressed(whole)
            )
        candidates = self._modelled
        if config.include_zero_gene == "batch-wise":
            candidates = self._expressed_in_any(whole)
        forced = self._targets.rows(self.cells.codes[self.rows[whole]]).forced()
        if config.gene_sampling == "random":
            forced = forced[:0]
        limit = config.max_seq_len
        if limit and len(forced) > MOST_FORCED * limit and len(np.union1d(candidates, forced)) > limit:
            own = [np.union1d(candidates, must) for must in self._forced_per_cell(part.rows)]
            of_step = [np.union1d(candidates, must) for must in self._forced_per_cell(whole)]
            return self._per_cell(own, part.rows), self._n_tokens(of_step)
        # Each cell is in one step of an epoch, so its first cell names the step.
        rng = np.random.default_rng([self._epoch_seed, int(whole[0])])
        genes = shared_genes(candidates, forced, limit, rng)
        return genes, len(whole) * len(genes)

    def _n_tokens(self, genes: list[np.ndarray]) -> int:
        limit = self.config.max_seq_len
        return sum(min(limit, len(own)) if limit else len(own) for own in genes)

    def _per_cell(self, candidates: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        """Genes of each cell: its perturbed ones and a draw of its candidates."""
        seeds = [(self._epoch_seed, 1, int(row)) for row in rows]
        return genes_per_cell(candidates, self._forced_per_cell(rows), self.config.max_seq_len, seeds)

    def _forced_per_cell(self, rows: np.ndarray) -> list[np.ndarray]:
        table = self._targets.columns[self.cells.codes[self.rows[rows]]]
        return [np.unique(own[own >= 0]) for own in table]

    def _expressed(self, rows: np.ndarray) -> list[np.ndarray]:
        """Per row: genes expressed in its control cell, and its perturbed genes."""
        forced = self._targets.columns[self.cells.codes[self.rows[rows]]]
        return [
            expressed_genes(self.cells.x, int(pair), self.tokens.modelled, must)
            for pair, must in zip(self.pairs[rows], forced, strict=True)
        ]

    def _expressed_in_any(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(len(self.cells.genes), dtype=bool)
        x = self.cells.x[self.pairs[rows]]
        found[x.indices[x.data != 0]] = True
        return np.flatnonzero(found & self.tokens.modelled)

    def loss(self, batch: Batch) -> tuple[Tensor, Logs]:
        inputs = batch.inputs
        output = self.network(*inputs[:5])
        n_genes = inputs.n_genes
        values = output.values[:, :n_genes].to(batch.targets.dtype)
        error = (values - batch.targets) ** 2
        if inputs.gene_padding is not None:
            error = error.masked_fill(inputs.gene_padding, 0.0)
        fit = error.sum() / batch.n_tokens
        if output.nonzero is None:
            return fit, {}
        # -log of the probability of what was observed, zero or not.
        observed = torch.where(
            batch.targets > 0, output.nonzero[:, :n_genes], 1 - output.nonzero[:, :n_genes]
        )
        surprise = -torch.log(observed.clamp(min=1e-7))
        if inputs.gene_padding is not None:
            surprise = surprise.masked_fill(inputs.gene_padding, 0.0)
        zero = surprise.sum() / batch.n_tokens
        return fit + zero, {"fit": fit.detach(), "zero": zero.detach()}

    def validate(self) -> dict[str, float]:
        if not self._truth.keys:
            return {}
        predictor = Predictor(self.network, self.tokens, self.config, seed=self._validation_seed)
        more: dict[str, float] = {}
        if self.config.paired_validation:
            profiles, more["cell_mse"] = self._paired_profiles(predictor)
        else:
            profiles = self._pool_profiles(predictor)
        return {**self._truth.scores(profiles), "pearson": _pearson(self._truth.means, profiles), **more}

    def _pool_profiles(self, predictor: Predictor) -> np.ndarray:
        by_label: dict[str, dict[str, np.ndarray]] = {}
        profiles = []
        for (context, label), control in zip(self._truth.keys, self._truth.controls, strict=True):
            if label not in by_label:
                place = self.tokens.place(label)
                by_label[label] = predictor.effects(self._validation_pools, place, label=label)
            profiles.append(control + by_label[label][context])
        return np.stack(profiles)

    def _paired_profiles(self, predictor: Predictor) -> tuple[np.ndarray, float]:
        """Mean prediction of each row's cells, and the mean squared error over all of them."""
        profiles, squares, n = [], 0.0, 0
        for (_, label), (rows, pairs) in zip(self._truth.keys, self._validation_pairs, strict=True):
            place = self.tokens.place(label)
            found = predictor.cells(self.cells.x[pairs], place, label=label)
            profiles.append(found.double().mean(dim=0).cpu().numpy())
            error = (found - self._x.rows(rows)) ** 2
            if self.config.validation_genes == "sampled" and self.config.max_seq_len:
                error = error[:, self._sampled_for(rows, error.device)]
            squares += float(error.double().sum())
            n += error.numel()
        return np.stack(profiles), squares / n

    def _sampled_for(self, rows: np.ndarray, device: torch.device) -> Tensor:
        rng = np.random.default_rng([self._epoch_seed, 2, int(rows[0])])
        drawn = shared_genes(self._modelled, self._modelled[:0], self.config.max_seq_len, rng)
        return torch.as_tensor(drawn, device=device)


def training_rows(cells: CellData, *, include_control: bool) -> np.ndarray:
    """Rows of training cells in file order, int64, with the control cells of training contexts or without."""
    rows = cells.train_rows
    if not include_control:
        return rows
    contexts = np.unique(cells.context_codes[rows])
    control = cells.control_rows[np.isin(cells.context_codes[cells.control_rows], contexts)]
    return np.sort(np.concatenate([rows, control]))


def freeze(network: TransformerGenerator, config: ScGPTConfig) -> None:
    """Take the parts that `freeze` and `freeze_layers` name, and the unused head, out of training."""
    prefixes = [PARTS[part] for part in config.frozen_parts] + ["cls_decoder."]
    prefixes += [f"transformer_encoder.layers.{i}." for i in range(config.freeze_layers)]
    if config.explicit_zero_prob and config.variant == "affine":
        prefixes.append("decoder.bias_decoder.zero_logit.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(prefixes)))


def _pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over rows of the correlation of whole profiles; rows without variance are left out."""
    from ...evaluator.metrics.expression import pearson

    found = [pearson(y, p) for y, p in zip(truth, predicted, strict=True)]
    values = [value for value in found if isinstance(value, float)]
    return float(np.mean(values)) if values else float("nan")
