"""What all deep models share outside training: settings, saving beside the weights, control mean plus effect.

Importing this module needs no torch.
"""

from __future__ import annotations

import inspect
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from ..data_specs.errors import ModelError, ShapeError
from ..data_specs.labels import CONTROL
from .base import BaselineInfo, Key, Prediction, Status, TrainingData
from .features import FeatureSource, FeatureTable
from .settings import build_config, config_dict
from .simple.common import Answer
from .simple.effects import text_array
from .training.config import TrainingConfig, preset_names, resolve_config
from .training.data import CellData, Space

if TYPE_CHECKING:
    import scipy.sparse as sp
    import torch
    from torch import nn

    from .training.protocol import Placement, Trainable

MODEL_JSON, CONSTANTS = "model.json", "constants.npz"
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def has_torch() -> bool:
    """Whether the packages that deep models need are installed; imports none of them."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("torch", "safetensors"))


def require_torch(model: str) -> None:
    """Raise `ModelError` with the extra to install when torch or safetensors is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise ModelError(f"{model} needs {' and '.join(missing)}: pip install 'vcbench[train]'.")


def placement_of(config: TrainingConfig, device: torch.device) -> Placement:
    """Device and parameter type of a config: float64 with `precision=float64`, otherwise float32."""
    import torch

    from .training.protocol import Placement

    return Placement(device, torch.float64 if config.precision == "float64" else torch.float32)


class DeepModel(ABC, Generic[ConfigT]):
    """A trained network whose prediction is the control mean of the context plus an effect.

    Subclasses prepare training in `prepare`, and answer rows in `answers` from `module` and what `facts` and
    `constants` keep. Their module imports torch inside methods only.

    Attributes
    ----------
    genes
        Genes of the profiles, shape (G,); set before `prepare` and by `load`.
    mean_effect
        Equal-weight mean of the training effects, float64, shape (G,): the fallback for targets without features.
    notes
        Decisions for the card, one sentence each.
    space, columns
        What `CellData.x` holds for this model, and what its own cells are; the obs columns that it reads beside. Both
        may depend on the config.
    has_cells
        `predict --cells` writes what `cells` returns; otherwise cells are emitted from the mean profile.
    """

    Config: ClassVar[type[TrainingConfig]] = TrainingConfig
    info: ClassVar[BaselineInfo]
    space: Space = "log1p"
    columns: Sequence[str] = ()
    has_cells: ClassVar[bool] = False

    def __init__(self, config: ConfigT | None = None, *, features: FeatureSource | None = None):
        self.config: ConfigT = cast(ConfigT, self.Config()) if config is None else config
        self.features = features
        self.genes: np.ndarray = np.empty(0, dtype="<U1")
        self.mean_effect: np.ndarray = np.empty(0)
        self.notes: list[str] = []
        self._module: nn.Module | None = None

    @abstractmethod
    def prepare(self, cells: CellData, placement: Placement, *, rng: np.random.Generator) -> Trainable:
        """Build module and data for training. Draws come from `rng` and, for weights, torch's default generators.

        Called once, by `start`. Raises `ModelError` when the cells cannot support the model.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """The module from config, facts and constants, before weights are loaded."""

    @abstractmethod
    def answers(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> list[Answer]:
        """An effect, status and reason for each row, never control. Every context has a control mean.

        Effects are float64, shape (G,), in log1p space.
        """

    def cells(
        self, key: Key, controls: sp.csr_array, *, rng: np.random.Generator
    ) -> sp.csr_array | np.ndarray:
        """One predicted cell for each control cell of the row's context, shape (n, G), with `has_cells`.

        `controls` are CSR, shape (n, G), in `space`, and so are the cells returned: no NaN, nothing negative. Called
        for rows that `answers` does not refuse, never for control.
        """
        raise ModelError(f"{self.info.name} predicts no cells of its own.")

    def facts(self) -> dict[str, Any]:
        """JSON values that prediction needs beside weights and config."""
        return {}

    def constants(self) -> dict[str, np.ndarray]:
        """Number and text arrays that prediction needs beside the weights: graphs, vocabularies."""
        return {}

    def gene_embeddings(self) -> FeatureTable:
        """A vector of every gene that the model knows. Raises `ModelError` for a model without such vectors."""
        raise ModelError(f"{self.info.name} has no gene embeddings to write.")

    def restore(self, facts: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> None:
        """Take back what `facts` and `constants` gave. Called before `build`."""
        return

    @classmethod
    def presets(cls) -> Path:
        """The folder of the model's preset TOML files."""
        return Path(inspect.getfile(cls)).parent

    @classmethod
    def resolve(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """The config of some settings and their preset. Raises `UnknownName` or `UsageError`."""
        return resolve_config(cls.Config, settings, model=cls.info.name, presets=cls.presets())

    @classmethod
    def preset_names(cls) -> list[str]:
        """Presets other than `default`."""
        return preset_names(cls.presets())

    @property
    def module(self) -> nn.Module:
        """The network. Raises `ModelError` before training or loading."""
        if self._module is None:
            raise ModelError(f"{self.info.name} is not trained yet.")
        return self._module

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    @property
    def n_parameters(self) -> int:
        """Trained numbers of the network."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)

    def start(
        self,
        cells: CellData,
        placement: Placement,
        *,
        rng: np.random.Generator,
        data: TrainingData | None = None,
    ) -> Trainable:
        """What the training loop needs, from the training cells.

        Takes genes and mean effect first, from `data` or else from log1p cells.
        """
        self.genes = text_array([str(gene) for gene in cells.genes])
        self.mean_effect = (cells.training_data if data is None else data).effects.mean(axis=0)
        trainable = self.prepare(cells, placement, rng=rng)
        self._module = trainable.module
        return trainable

    def write(self, folder: Path) -> None:
        """Write `model.json` and `constants.npz` beside the weights."""
        record = {
            "model": self.info.name,
            "config": config_dict(self.config),
            "facts": self.facts(),
            "notes": self.notes,
        }
        (folder / MODEL_JSON).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        arrays = {f"own_{name}": array for name, array in self.constants().items()}
        arrays |= {"genes": self.genes, "mean_effect": self.mean_effect}
        np.savez(folder / CONSTANTS, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> DeepModel[ConfigT]:
        """The model of a checkpoint folder, in evaluation mode.

        Raises
        ------
        ModelError
            torch is missing; the folder is missing or broken, or belongs to another model.
        """
        require_torch(cls.info.name)
        from .training.checkpoint import find_checkpoint, load_into
        from .training.distributed import choose_device

        if find_checkpoint(folder.parent, folder.name) is None:
            raise ModelError(f"{folder}: no checkpoint yet; train on with --resume.")
        try:
            record = json.loads((folder / MODEL_JSON).read_text(encoding="utf-8"))
            with np.load(folder / CONSTANTS, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            found, config_values, facts = record["model"], record["config"], record["facts"]
            genes, mean_effect = arrays.pop("genes"), arrays.pop("mean_effect")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ModelError(f"{folder}: not a saved deep model ({error}).") from error
        if found != cls.info.name:
            raise ModelError(f"{folder}: holds the model {found!r}, not {cls.info.name!r}.")
        model = cls(cast(ConfigT, build_config(cls.Config, config_values, model=cls.info.name)))
        model.genes, model.mean_effect, model.notes = genes, mean_effect, list(record["notes"])
        model.restore(facts, {name.removeprefix("own_"): array for name, array in arrays.items()})
        placement = placement_of(model.config, choose_device(device))
        module = model.build().to(device=placement.device, dtype=placement.dtype)
        load_into(module, folder)
        module.eval()
        model._module = module
        return model

    def predict(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> Prediction:
        """Profiles for (context, perturbation) rows; see `base.Prediction`.

        A context without a control mean is refused. `control` itself is its control mean.

        Raises
        ------
        ShapeError
            A control mean has another number of genes than the model.
        """
        for context, control in control_means.items():
            if control.shape != (len(self.genes),):
                raise ShapeError(
                    f"the control mean of {context!r} has {control.shape[0]:,} genes, the model {len(self.genes):,}"
                )
        asked = [i for i, (c, label) in enumerate(keys) if c in control_means and label != CONTROL]
        found = dict(zip(asked, self.answers([keys[i] for i in asked], control_means), strict=True))
        profiles = np.full((len(keys), len(self.genes)), np.nan)
        status: list[Status] = []
        reasons: list[str] = []
        for i, (context, _) in enumerate(keys):
            if context not in control_means:
                answer = Answer.refuse(
                    f"context {context!r} has no control profile; give one with --controls"
                )
            else:
                answer = found.get(i, Answer(np.zeros(len(self.genes)), reason="the control profile itself"))
            if answer.effect is not None:
                profiles[i] = control_means[context] + answer.effect
            status.append(answer.status)
            reasons.append(answer.reason)
        return Prediction(tuple(keys), profiles, tuple(status), tuple(reasons))
