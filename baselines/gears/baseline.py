"""GEARS as a deep model: what it learns from, what it keeps beside the weights, and what it answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError
from ...data_specs.labels import CONTROL
from ..base import BaselineInfo, Key
from ..deep import DeepModel
from ..simple.common import Answer
from ..simple.effects import text_array
from .annotation import read_terms
from .config import GearsConfig
from .data import Vocabulary, candidate_genes, graph_cells, training_rows
from .graphs import Graph, coexpression_graph, empty_graph, go_graph, vocabulary

if TYPE_CHECKING:
    from ..training.data import CellData
    from ..training.protocol import Placement
    from .model import GearsNetwork
    from .training import GearsTraining


class Gears(DeepModel[GearsConfig]):
    """Graph network over a gene co-expression graph and a graph of genes that share GO terms.

    Predicts the shift of any combination of genes with GO terms (`--features go:FILE.gmt`, or an NCBI gene2go or GAF
    file), seen in training or not; the shift does not depend on the cell or the context. `--set preset=upstream` is
    cell-gears 0.1.2.
    """

    Config = GearsConfig
    info = BaselineInfo(
        name="gears",
        title="GEARS: graph network over gene and GO graphs",
        paper="Roohani, Huang, Leskovec 2024",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def prepare(self, cells: CellData, placement: Placement, *, rng: np.random.Generator) -> GearsTraining:
        from .training import GearsTraining

        if self.features is None:
            raise ModelError("gears needs GO terms: give --features go:FILE.gmt.")
        config, terms = self.config, read_terms(self.features)
        self.vocabulary = Vocabulary.of(vocabulary(terms, candidate_genes(cells)))
        rows = training_rows(cells, self.vocabulary, published=config.conditions == "published")
        self.perturbation_graph = go_graph(
            terms,
            self.vocabulary.genes,
            n_similar=config.num_similar_genes_go_graph,
            above=config.go_threshold,
        )
        self.gene_graph = empty_graph(len(cells.genes))
        if config.coexpression != "none":
            chosen = graph_cells(cells, config.coexpress_cells, rng)
            self.gene_graph = coexpression_graph(
                cells.x[chosen],
                n_similar=config.num_similar_genes_co_express_graph,
                above=config.coexpress_threshold,
                contexts=None if config.coexpression == "first" else cells.context_codes[chosen],
            )
        self.draw_seed = int(rng.integers(2**31))
        self.controls = _control_cells(cells) if config.prediction == "draws" else {}
        self._describe(cells, rows.dropped)
        network = self._network(placement.dtype)
        if config.initial_weights:
            from .weights import load_weights

            load_weights(network, Path(config.initial_weights))
            self.notes.append(f"Started from the weights of {Path(config.initial_weights).name}.")
        return GearsTraining(network, cells, rows, self.vocabulary, placement, config=config, rng=rng)

    def _describe(self, cells: CellData, dropped: Sequence[str]) -> None:
        alone = int((self.perturbation_graph.n_neighbours == 0).sum())
        own = self.gene_graph.edges[0] != self.gene_graph.edges[1]
        self.notes.append(
            f"{len(self.vocabulary.genes):,} genes with GO terms in the perturbation graph, {alone:,} of them without "
            f"neighbours; {int(own.sum()):,} co-expression edges over {len(cells.genes):,} genes."
        )
        if dropped:
            shown = ", ".join(dropped[:5]) + (", …" if len(dropped) > 5 else "")
            self.notes.append(
                f"{len(dropped)} training perturbation(s) with a target without GO terms were left out: {shown}."
            )

    def _network(self, dtype: Any = None) -> GearsNetwork:
        import torch

        from .model import GearsNetwork

        kind = dtype or (torch.float64 if self.config.precision == "float64" else torch.float32)
        return GearsNetwork(self.config, self.gene_graph, self.perturbation_graph, dtype=kind)

    def build(self) -> GearsNetwork:
        return self._network()

    def facts(self) -> dict[str, Any]:
        return {"draw_seed": self.draw_seed, "control_contexts": list(self.controls)}

    def constants(self) -> dict[str, np.ndarray]:
        arrays = {"vocabulary": text_array(list(self.vocabulary.genes))}
        for name, graph in (("gene", self.gene_graph), ("perturbation", self.perturbation_graph)):
            arrays |= {f"{name}_edges": graph.edges, f"{name}_weights": graph.weights}
        for i, cells in enumerate(self.controls.values()):
            arrays |= {
                f"controls{i}_data": cells.data,
                f"controls{i}_columns": cells.indices,
                f"controls{i}_ends": cells.indptr,
            }
        return arrays

    def restore(self, facts: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> None:
        self.vocabulary = Vocabulary.of(constants["vocabulary"])
        sizes = {"gene": len(self.genes), "perturbation": len(self.vocabulary.genes)}
        graphs = {
            name: Graph(n, constants[f"{name}_edges"], constants[f"{name}_weights"])
            for name, n in sizes.items()
        }
        self.gene_graph, self.perturbation_graph = graphs["gene"], graphs["perturbation"]
        self.draw_seed = int(facts["draw_seed"])
        self.controls = {}
        for i, context in enumerate(facts["control_contexts"]):
            parts = tuple(constants[f"controls{i}_{part}"] for part in ("data", "columns", "ends"))
            shape = (len(parts[2]) - 1, len(self.genes))
            self.controls[context] = sp.csr_array(parts, shape=shape)

    def answers(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> list[Answer]:
        """See `DeepModel.answers`. A label without GO terms for a target follows `missing_go`."""
        from .effects import effects_of

        network = cast("GearsNetwork", self.module)
        labels = sorted({label for _, label in keys})
        members = {label: self.vocabulary.members(label) for label in labels}
        covered = [label for label in labels if members[label] is not None]
        shifts, _ = effects_of(network, [members[label] or [] for label in covered])
        effects = dict(zip(covered, shifts.double().cpu().numpy(), strict=True))
        neighbours = self.perturbation_graph.n_neighbours
        found = []
        for context, label in keys:
            if label not in effects:
                found.append(self._without_terms(label))
                continue
            own = members[label] or []
            alone = [self.vocabulary.genes[row] for row in own if not neighbours[row]]
            reason = f"no gene shares enough GO terms with {', '.join(alone)}" if alone else ""
            effect = effects[label]
            if self.config.prediction == "draws" and context in self.controls:
                effect = self._drawn(context, label, own) - control_means[context]
            found.append(Answer(effect, reason=reason))
        return found

    def _without_terms(self, label: str) -> Answer:
        names = ", ".join(self.vocabulary.missing(label))
        if self.config.missing_go == "refuse":
            return Answer.refuse(f"no GO terms for {names}")
        return Answer.fall_back(self.mean_effect, f"no GO terms for {names}; mean training effect instead")

    def _drawn(self, context: str, label: str, members: Sequence[int]) -> np.ndarray:
        """Mean profile over drawn controls of the training file. The draw depends on seed, context and label alone."""
        import torch

        from .effects import mean_of_draws

        cells, network = self.controls[context], cast("GearsNetwork", self.module)
        rng = np.random.default_rng([self.draw_seed, zlib.crc32(f"{context}\n{label}".encode())])
        rows = cells[rng.integers(0, cells.shape[0], self.config.n_draws)].toarray()
        weight = network.indv_w1
        drawn = torch.as_tensor(rows, dtype=weight.dtype, device=weight.device)
        return mean_of_draws(network, members, drawn)[0].double().cpu().numpy()

    def uncertainty(self, labels: Sequence[str]) -> dict[str, float]:
        """exp(-mean log-variance) of each covered label, upstream's score; needs `uncertainty=true`.

        Raises
        ------
        ModelError
            The run was trained without the uncertainty head.
        """
        from .effects import effects_of

        if not self.config.uncertainty:
            raise ModelError("the run has no uncertainty head; train with --set uncertainty=true.")
        covered = [label for label in labels if self.vocabulary.members(label) is not None]
        sets = [self.vocabulary.members(label) or [] for label in covered]
        _, spread = effects_of(cast("GearsNetwork", self.module), sets)
        assert spread is not None
        return {
            label: float(np.exp(-row.double().mean().item()))
            for label, row in zip(covered, spread, strict=True)
        }


def _control_cells(cells: CellData) -> dict[str, Any]:
    return {
        context: cells.x[cells.rows_of((context, CONTROL))]
        for context in cells.contexts
        if (context, CONTROL) in cells.position
    }
