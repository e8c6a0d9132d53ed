"""What all simple models share: control mean plus effect, statuses, corrections, saving as npz and JSON."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from ...data_specs.errors import ModelError, ShapeError
from ...data_specs.labels import CONTROL
from ..base import BaselineInfo, Key, Prediction, Status, TrainingData
from ..features import FeatureSource
from ..settings import build_config, config_dict
from .corrections import CorrectionConfig, Corrections, is_amplified, reliabilities
from .effects import EffectTable, text_array

MODEL_JSON, MODEL_NPZ = "model.json", "model.npz"
ConfigT = TypeVar("ConfigT", bound=CorrectionConfig)


@dataclass(frozen=True)
class Answer:
    """What a model says for one row: an effect, shape (G,), or None for a refusal, and why."""

    effect: np.ndarray | None
    status: Status = "predicted"
    reason: str = ""

    @classmethod
    def refuse(cls, reason: str) -> Answer:
        return cls(None, "refused", reason)

    @classmethod
    def fall_back(cls, effect: np.ndarray, reason: str) -> Answer:
        return cls(effect, "fallback", reason)


class EffectModel(ABC, Generic[ConfigT]):
    """A model whose prediction is the control mean of the context plus an effect.

    Subclasses learn in `_fit`, answer one row in `_answer`, and say in `_arrays` and `_facts` what to save;
    `_restore` is the inverse. `keeps_table` saves the training effects, which is then `table` again after `load`.
    `notes` collects decisions for the card.
    """

    Config: ClassVar[type[CorrectionConfig]] = CorrectionConfig
    keeps_table: ClassVar[bool] = False
    info: BaselineInfo

    def __init__(self, config: ConfigT | None = None, *, features: FeatureSource | None = None):
        self.config: ConfigT = cast(ConfigT, self.Config()) if config is None else config
        self.features = features
        self.genes: np.ndarray = np.empty(0, dtype="<U1")
        self.table: EffectTable = EffectTable((), np.empty((0, 0)), np.empty(0, dtype=np.int64))
        self.notes: list[str] = []
        self._corrections: Corrections | None = None

    @abstractmethod
    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None: ...

    @abstractmethod
    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer: ...

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    def _facts(self) -> dict[str, Any]:
        return {}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        return None

    @property
    def factor(self) -> float:
        """The product of the factors on predicted effects (the amplification guard looks at it)."""
        return self.config.scale

    @property
    def amplified(self) -> bool:
        """True when `factor` lies outside 0.25 to 4."""
        return is_amplified(self.factor)

    @property
    def n_parameters(self) -> int:
        """Numbers that the fitted model stores."""
        return sum(array.size for array in self._all_arrays().values() if array.dtype.kind in "fiu")

    def fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        """Learn from the training rows, in key order. Raises `ModelError` when they cannot support the model."""
        ordered = data.ordered()
        effects = ordered.effects
        if self.config.reliability == "james-stein":
            factors = reliabilities(ordered)
            effects = effects * factors[:, None]
            controls = np.stack([ordered.control_means[context] for context, _ in ordered.keys])
            ordered = replace(ordered, means=controls + effects)
            self.notes.append(
                f"James-Stein factors of the training effects: {factors.min():.3f} to {factors.max():.3f}."
            )
        self.genes = text_array(list(data.genes))
        self.table = EffectTable(ordered.keys, effects, np.asarray(ordered.n_cells, dtype=np.int64))
        self._corrections = Corrections.fit(self.config, data.ordered(), effects)
        self._fit(ordered, rng)

    def predict(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> Prediction:
        """Profiles for (context, perturbation) rows; see `base.Prediction`.

        A context without a control mean is refused. `control` itself is its control mean.

        Raises
        ------
        ModelError
            The model is not fitted.
        ShapeError
            A control mean has another number of genes than the model.
        """
        if self._corrections is None:
            raise ModelError(f"{self.info.name} is not fitted yet.")
        for context, control in control_means.items():
            if control.shape != (len(self.genes),):
                raise ShapeError(
                    f"the control mean of {context!r} has {control.shape[0]:,} genes, the model {len(self.genes):,}"
                )
        profiles = np.full((len(keys), len(self.genes)), np.nan)
        status: list[Status] = []
        reasons: list[str] = []
        for row, (context, perturbation) in enumerate(keys):
            control = control_means.get(context)
            answer = (
                Answer.refuse(f"context {context!r} has no control profile; give one with --controls")
                if control is None
                else self._row(context, perturbation, control, profiles[row])
            )
            status.append(answer.status)
            reasons.append(answer.reason)
        return Prediction(tuple(keys), profiles, tuple(status), tuple(reasons))

    def _row(self, context: str, perturbation: str, control: np.ndarray, out: np.ndarray) -> Answer:
        if perturbation == CONTROL:
            out[:] = control
            return Answer(control, reason="the control profile itself")
        answer = self._answer(context, perturbation, control)
        corrections = self._corrections
        if answer.effect is not None and corrections is not None:
            effect = corrections.effect(answer.effect, perturbation, control)
            out[:] = corrections.profile(control + effect, perturbation, control)
        return answer

    def _all_arrays(self) -> dict[str, np.ndarray]:
        corrections = {} if self._corrections is None else self._corrections.to_arrays()
        table = {f"table_{name}": array for name, array in self.table.to_arrays().items()}
        table = table if self.keeps_table else {}
        return {"genes": self.genes, **table, **corrections, **self._arrays()}

    def save(self, folder: Path) -> None:
        """Write `model.npz` and `model.json` into an existing folder."""
        if self._corrections is None:
            raise ModelError(f"{self.info.name} is not fitted yet; there is nothing to save.")
        record = {
            "model": self.info.name,
            "config": config_dict(self.config),
            "facts": self._facts(),
            "notes": self.notes,
        }
        (folder / MODEL_JSON).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        np.savez(folder / MODEL_NPZ, **self._all_arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> EffectModel[ConfigT]:
        """The model that `save` wrote; it predicts the same bits.

        Raises
        ------
        ModelError
            Files are missing or broken, or belong to another model.
        """
        try:
            record = json.loads((folder / MODEL_JSON).read_text(encoding="utf-8"))
            with np.load(folder / MODEL_NPZ, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ModelError(f"{folder}: not a saved simple model ({error}).") from error
        if record.get("model") != cls.info.name:
            raise ModelError(f"{folder}: holds the model {record.get('model')!r}, not {cls.info.name!r}.")
        config = build_config(cls.Config, record["config"], model=cls.info.name)
        model = cls(cast(ConfigT, config))
        model.genes = arrays["genes"]
        if cls.keeps_table:
            stored_table = {k[6:]: v for k, v in arrays.items() if k.startswith("table_")}
            model.table = EffectTable.from_arrays(stored_table)
        model.notes = list(record["notes"])
        model._corrections = Corrections.from_arrays(model.config, model.genes, arrays)
        model._restore(arrays, record["facts"])
        return model


def require_rows(data: TrainingData, model: str, n_rows: int = 1) -> None:
    """Raise `ModelError` when there are fewer than `n_rows` training rows."""
    if len(data.keys) < n_rows:
        raise ModelError(
            f"{model} needs at least {n_rows} training perturbation(s); there are {len(data.keys)}."
        )


def elsewhere(parts: Sequence[str]) -> str:
    """The reason text of effects that other contexts lent, "" when there are none."""
    return f"effect of {', '.join(parts)} from other contexts" if parts else ""
