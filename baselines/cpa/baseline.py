"""CPA as a deep model: what it learns from, what it keeps beside the weights, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError, ShapeError
from ...data_specs.labels import CONTROL
from ..base import BaselineInfo, Key
from ..deep import DeepModel
from ..features import FeatureSource
from ..simple.common import Answer
from .config import CpaConfig
from .data import Covariates, Pool, condition_classes, control_pools, encode_cells, training_cells
from .embeddings import MEAN, FeatureRows, feature_rows
from .encoding import DoseScale, Part, PerturbationTable, parts_of

if TYPE_CHECKING:
    import torch

    from ..training.data import CellData
    from ..training.protocol import Placement, Trainable
    from .counterfactual import Counterfactuals
    from .network import CpaNetwork
    from .queries import Uncertainty
    from .training import CpaModule


class Cpa(DeepModel[CpaConfig]):
    """Autoencoder whose latent state is a cell's basal state plus vectors of its perturbations and covariates.

    Control cells are decoded under any trained drug, dose, gene or combination; with a feature table (`--features`)
    also under unseen ones. Trained on raw counts (`nb`, `zinb`) or log1p values (`gauss`); an adversary takes
    perturbation and covariates out of the basal state. `--set preset=upstream` is cpa-tools 0.8.8.
    """

    Config = CpaConfig
    has_cells = True
    info = BaselineInfo(
        name="cpa",
        title="CPA: compositional perturbation autoencoder",
        paper="Lotfollahi et al. 2023",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def __init__(self, config: CpaConfig | None = None, *, features: FeatureSource | None = None):
        super().__init__(config, features=features)
        self.space = "log1p" if self.config.recon_loss == "gauss" else "counts"
        self.columns = self.config.columns

    def prepare(self, cells: CellData, placement: Placement, *, rng: np.random.Generator) -> Trainable:
        from .training import CpaTraining
        from .validation import Validation

        config = self.config
        labels = sorted({label for _, label in cells.train_keys})
        self.scale = DoseScale.fit(config.doses, labels)
        known, dropped = self._prepare_table(cells, labels)
        keys = [key for key in cells.train_keys if key[1] in known]
        rows, notes = training_cells(cells, keys, empty_cells=config.empty_cells)
        covariates = Covariates.of(cells, rows, config.columns)
        self.covariates = dict(covariates.values)
        classes = condition_classes(cells, rows, everything=config.classes == "all")
        self.n_classes = len(classes.names)
        encoded = encode_cells(cells, rows, covariates, self.table, self.scale, classes.names, config)
        self.trained = np.zeros(len(self.table), dtype=bool)
        self.trained[np.unique(encoded.slots)] = True
        self.trained[0] = False
        self.pools = control_pools(cells, encoded, config.control_cells, rng)
        self.control_means = {context: cells.log1p.control_means[context] for context in self.pools}
        self.target_sum = cells.target_sum
        self.draw_seed = int(rng.integers(2**31))
        self.conditions = _sizes_of_conditions(cells, rows)
        self._describe(dropped, notes)
        module = self._module_of(classes.n_cells)
        if config.initial_weights:
            from .weights import load_weights

            load_weights(module.network, Path(config.initial_weights))
            self.notes.append(f"Started from the weights of {Path(config.initial_weights).name}.")
        self._module = module
        validation = Validation(self, cells, covariates, classes.names)
        return CpaTraining(
            module,
            cells,
            encoded,
            placement,
            config=config,
            select=validation.select,
            validate_with=validation.scores,
            mix_seed=int(rng.integers(2**31)),
        )

    def _prepare_table(self, cells: CellData, labels: Sequence[str]) -> tuple[set[str], list[str]]:
        """Set the perturbation table; the training labels that it covers, and those it does not."""
        config = self.config
        self.feature_values: np.ndarray | None = None
        listed = [label for label in cells.extras.get("labels", ()) if label != CONTROL]
        if self.features is None:
            if config.projection == "frozen" and config.control_row == "learned":
                self.notes.append("projection=frozen has no effect without --features.")
            named = {*labels, *(listed if config.unseen == "row" else ())}
            self.table = PerturbationTable.of(part.name for label in named for part in parts_of(label))
            return set(labels), []
        found: FeatureRows = feature_rows(
            self.features.table,
            labels,
            {*labels, *listed},
            n_components=config.n_feature_components,
            with_mean=config.missing_features == "mean",
        )
        self.table, self.feature_values = found.table, found.values
        dropped = [label for label in labels if self.table.missing(label)]
        self.without_features = sorted(
            {
                part.name
                for label in labels
                for part in parts_of(label)
                if part.target not in self.features.table.position
            }
        )
        if self.without_features and not dropped:
            self.notes.append(
                f"{len(self.without_features)} training target(s) without features got the mean vector: "
                f"{_first(self.without_features)}."
            )
        return set(labels) - set(dropped), dropped

    def _describe(self, dropped: Sequence[str], notes: Sequence[str]) -> None:
        config, n_names = self.config, len(self.table) - 2
        self.notes += notes
        kind = (
            "learned vectors" if self.feature_values is None else f"{self.feature_values.shape[1]} features"
        )
        sizes = ", ".join(f"{name} ({len(values)})" for name, values in self.covariates.items())
        self.notes.append(
            f"{n_names:,} perturbations with {kind}, {int(self.trained[2:].sum())} of them trained; covariates: "
            f"{sizes}; {self.n_classes} conditions for the adversary."
        )
        if self.scale.unit:
            self.notes.append(
                f"Doses from {self.scale.lowest:g} to {self.scale.highest:g} {self.scale.unit}, as {config.doses}."
            )
        if dropped:
            self.notes.append(
                f"{len(dropped)} training perturbation(s) with a target without features were left out: "
                f"{_first(dropped)}."
            )
        if config.recon_loss != "gauss":
            self.notes.append(
                f"Profiles are means of ln(1 + x) over {config.n_samples:,} sampled cells; `predict --cells` returns "
                "sampled counts of the model itself."
            )

    def _module_of(self, class_cells: np.ndarray) -> CpaModule:
        import torch

        from .adversary import Adversaries, class_weights
        from .network import CpaNetwork, Sizes
        from .training import CpaModule

        sizes = Sizes(
            len(self.genes),
            len(self.table),
            {name: len(values) for name, values in self.covariates.items()},
        )
        values = self.feature_values
        table = None if values is None else torch.as_tensor(values, dtype=torch.float32)
        network = CpaNetwork(self.config, sizes, table=table)
        weights = class_weights(torch.as_tensor(class_cells, dtype=torch.float64))
        self.class_cells = class_cells
        return CpaModule(network, Adversaries(self.config, weights.float(), sizes.covariates))

    def build(self) -> CpaModule:
        return self._module_of(self.class_cells)

    @property
    def network(self) -> CpaNetwork:
        """The autoencoder."""
        return cast("CpaModule", self.module).network

    def facts(self) -> dict[str, Any]:
        return {
            "names": list(self.table.names[2:]),
            "has_features": self.feature_values is not None,
            "scale": {
                "form": self.scale.form,
                "unit": self.scale.unit,
                "raw_unit": self.scale.raw_unit,
                "lowest": self.scale.lowest,
                "highest": self.scale.highest,
            },
            "covariates": {name: list(values) for name, values in self.covariates.items()},
            "pools": list(self.pools),
            "conditions": [[*key, n] for key, n in self.conditions.items()],
            "target_sum": self.target_sum,
            "draw_seed": self.draw_seed,
        }

    def constants(self) -> dict[str, np.ndarray]:
        arrays = {"class_cells": self.class_cells, "trained": self.trained}
        arrays["control_means"] = np.stack([self.control_means[context] for context in self.pools])
        if self.feature_values is not None:
            arrays["feature_values"] = self.feature_values
        for i, pool in enumerate(self.pools.values()):
            arrays |= {f"pool{i}_data": pool.x.data, f"pool{i}_columns": pool.x.indices}
            arrays |= {f"pool{i}_ends": pool.x.indptr}
            arrays |= {f"pool{i}_{name}": codes for name, codes in pool.covariates.items()}
        return arrays

    def restore(self, facts: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> None:
        self.table = PerturbationTable.of(facts["names"])
        self.scale = DoseScale(**facts["scale"])
        self.covariates = {name: tuple(values) for name, values in facts["covariates"].items()}
        self.class_cells, self.trained = constants["class_cells"], constants["trained"]
        self.n_classes = len(self.class_cells)
        self.feature_values = constants["feature_values"] if facts["has_features"] else None
        self.target_sum, self.draw_seed = float(facts["target_sum"]), int(facts["draw_seed"])
        self.conditions = {(context, label): int(n) for context, label, n in facts["conditions"]}
        self.pools, self.control_means = {}, {}
        for i, context in enumerate(facts["pools"]):
            parts = tuple(constants[f"pool{i}_{part}"] for part in ("data", "columns", "ends"))
            x = sp.csr_array(parts, shape=(len(parts[2]) - 1, len(self.genes)))
            self.pools[context] = Pool(x, {name: constants[f"pool{i}_{name}"] for name in self.covariates})
            self.control_means[context] = constants["control_means"][i]

    def encodable(self, label: str) -> tuple[tuple[list[int], list[float]] | None, str]:
        """Rows and doses of a label, or None and why not: a target without a row, or a dose that does not fit."""
        missing = self._missing(label)
        problems = [text for part in parts_of(label) if (text := self.scale.problem(part))]
        if problems:
            return None, "; ".join(problems)
        replaced = [part.name if part.name not in missing else MEAN for part in parts_of(label)]
        if missing and (MEAN not in self.table.position or len(set(replaced)) < len(replaced)):
            what = "has no features" if self.feature_values is not None else "was not trained"
            return None, f"{', '.join(missing)} {what}"
        try:
            if not missing:
                return self.table.encode(label, self.scale, match_doses=self.config.match_doses), ""
            doses = [self.scale.value(part) for part in parts_of(label)]
            found = self.table.slots(replaced, doses)
        except ModelError as error:
            return None, str(error).rstrip(".")
        return found, f"no features for {', '.join(missing)}; the mean vector instead"

    def _missing(self, label: str) -> list[str]:
        def known(part: Part) -> bool:
            return part.name in self.table.position

        return [part.name for part in parts_of(label) if not known(part)]

    def answers(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> list[Answer]:
        """See `DeepModel.answers`. A context that was not trained gets the mean effect over those that were."""
        codes = {label: self.encodable(label) for _, label in keys}
        usable = {label: found for label, (found, _) in codes.items() if found is not None}
        effects = self.effects(usable, sorted({context for context, _ in keys}))
        answers = []
        for context, label in keys:
            found, reason = codes[label]
            if found is None and self.config.unseen == "refuse":
                answers.append(Answer.refuse(reason))
            elif found is None:
                answers.append(Answer.fall_back(self.mean_effect, f"{reason}; mean training effect instead"))
            elif reason:
                answers.append(Answer.fall_back(effects[context, label], reason))
            else:
                elsewhere = "" if context in self.pools else "mean effect over the training contexts"
                answers.append(Answer(effects[context, label], reason=elsewhere))
        return answers

    def cells(self, key: Key, controls: sp.csr_array, *, rng: np.random.Generator) -> np.ndarray:
        """See `DeepModel.cells`: sampled counts (log1p values of `gauss`) with the library sizes of the controls."""
        from .queries import own_cells

        return own_cells(self, key, controls, rng)

    def counterfactual(
        self,
        key: Key,
        controls: sp.csr_array,
        labels: Sequence[str],
        *,
        output: Literal["mean", "sample"] = "mean",
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Control cells decoded as if they had the perturbation of `key`, float64, shape (n, G).

        Parameters
        ----------
        controls
            Expression in `space`, shape (n, G). Not modified.
        labels
            The cells' own labels. All must be `control`: perturbed cells would leak their answer into the prediction
            (`reconstruct` decodes those).
        output
            Expected counts (log1p values of `gauss`), or one draw per cell, cut at 0.
        rng
            Of draws, and of covariates beside the context, which are drawn from those of the training controls.

        Raises
        ------
        ModelError
            A cell is no control, or the perturbation cannot be decoded.
        ShapeError
            Cells, labels and genes disagree.
        """
        from .queries import counterfactual

        if len(labels) != controls.shape[0]:  # type: ignore[index]
            raise ShapeError(f"{len(labels)} labels for {controls.shape[0]} cells")  # type: ignore[index]
        perturbed = sorted(set(labels) - {CONTROL})
        if perturbed:
            raise ModelError(
                f"counterfactuals start from control cells, not {perturbed[0]!r}; `reconstruct` decodes those."
            )
        generator = np.random.default_rng(self.draw_seed) if rng is None else rng
        return counterfactual(self, key, controls, output=output, rng=generator)

    def reconstruct(
        self,
        x: sp.csr_array,
        keys: Sequence[Key],
        covariates: Mapping[str, Sequence[str]] | None = None,
    ) -> np.ndarray:
        """Expected expression of cells decoded from themselves, float64, shape (n, G): counts, or log1p of `gauss`.

        A measure of fit, never a prediction: each cell is its own input. `keys` are the cells' own (context,
        perturbation), `covariates` the values of further trained columns.

        Raises
        ------
        ModelError
            A context, covariate value or perturbation that was not trained.
        ShapeError
            Cells, keys and genes disagree.
        """
        from .queries import reconstruct

        return reconstruct(self, x, keys, covariates or {})

    def uncertainty(self, keys: Sequence[Key]) -> list[Uncertainty]:
        """Cosine and Euclidean distance of each condition to the nearest of those trained on more than 30 cells.

        In latent space: dosed perturbation plus context vector. Raises `ModelError` for conditions without a vector.
        """
        from .queries import uncertainty

        return uncertainty(self, keys)

    def dose_response(self, name: str, doses: Sequence[float], unit: str) -> np.ndarray:
        """The factor on the vector of `name` at each dose, float64, shape (len(doses),). Raises `ModelError`."""
        row = self.table.position.get(name)
        parts = [Part(name, name, float(dose), unit) for dose in doses]
        problems = [text for part in parts if (text := self.scale.problem(part))]
        if row is None or problems:
            raise ModelError(problems[0] if problems else f"no perturbation called {name!r} was trained.")
        from .counterfactual import dose_factors

        scaled = [self.scale.value(part) for part in parts]
        return dose_factors(self.network, row, scaled, self.trained).double().cpu().numpy()

    def effects(
        self,
        encoded: Mapping[str, tuple[list[int], list[float]]],
        contexts: Sequence[str],
        *,
        n_samples: int | None = None,
    ) -> dict[Key, np.ndarray]:
        """Effects in log1p space, float64, shape (G,), of encoded labels in some contexts."""
        vectors = dict(zip(encoded, self.vectors(list(encoded.values())), strict=True))
        trained = [context for context in contexts if context in self.pools]
        wanted = list(self.pools) if len(trained) < len(contexts) else trained
        found = {context: self._effects_in(context, vectors, n_samples) for context in wanted}
        out = {}
        for context in contexts:
            for label in encoded:
                if context in found:
                    out[context, label] = found[context][label]
                else:
                    out[context, label] = np.mean([own[label] for own in found.values()], axis=0)
        return out

    def _effects_in(
        self, context: str, vectors: Mapping[str, torch.Tensor], n_samples: int | None
    ) -> dict[str, np.ndarray]:
        asked = dict(vectors)
        if self.config.reference == "decoded":
            asked[CONTROL] = self.vectors([([1], [1.0])])[0]
        profiles = self.counterfactuals.profiles(context, asked, n_samples=n_samples or self.config.n_samples)
        reference = profiles[CONTROL] if self.config.reference == "decoded" else self.control_means[context]
        return {label: profiles[label] - reference for label in vectors}

    def vectors(self, encoded: Sequence[tuple[list[int], list[float]]]) -> torch.Tensor:
        """Latent vectors of encoded labels, shape (n, L)."""
        from .counterfactual import perturbation_vectors

        return perturbation_vectors(
            self.network, [rows for rows, _ in encoded], [doses for _, doses in encoded], self.trained
        )

    @property
    def counterfactuals(self) -> Counterfactuals:
        """Control cells decoded under perturbations."""
        from .counterfactual import Counterfactuals

        return Counterfactuals(self.network, self.pools, self.target_sum, self.draw_seed)


def _sizes_of_conditions(cells: CellData, rows: np.ndarray) -> dict[Key, int]:
    """Training cells of each (context, label), control included."""
    sizes = np.bincount(cells.codes[rows], minlength=len(cells.keys))
    return {key: int(n) for key, n in zip(cells.keys, sizes, strict=True) if n}


def _first(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")
