"""A small deep model for the tests: one effect vector per target, learned from paired control cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vcbench.baselines.base import BaselineInfo
from vcbench.baselines.deep import DeepModel
from vcbench.baselines.simple.common import Answer
from vcbench.baselines.simple.effects import text_array
from vcbench.baselines.training.config import TrainingConfig
from vcbench.data_specs.labels import split_label


@dataclass(frozen=True)
class MockConfig(TrainingConfig):
    """Settings of the mock: `hidden` numbers per target."""

    hidden: int = 3
    lr: float = 0.05
    batch_size: int = 16
    epochs: int = 3


class MockDeep(DeepModel[MockConfig]):
    """Effect of a target: its embedding times a decoder. Unknown targets get the mean effect."""

    Config = MockConfig
    info = BaselineInfo("mock", "Embedding times decoder", "none", False, False, True, True)

    def prepare(self, cells, placement, *, rng):
        from mock_trainable import MockTrainable

        self.targets = sorted({part for _, label in cells.train_keys for part in split_label(label)})
        self.notes = [f"{len(self.targets)} targets."]
        return MockTrainable(self, cells, placement, rng)

    def build(self):
        from torch import nn

        return nn.Sequential(
            nn.Linear(len(self.targets), self.config.hidden, bias=False),
            nn.Linear(self.config.hidden, len(self.genes), bias=False),
        )

    def hot(self, label):
        return np.array([float(target in split_label(label)) for target in self.targets])

    def facts(self):
        return {"n_targets": len(self.targets)}

    def constants(self):
        return {"targets": text_array(self.targets)}

    def restore(self, facts, constants):
        self.targets = [str(name) for name in constants["targets"]]
        assert facts["n_targets"] == len(self.targets)

    def answers(self, keys, control_means):
        import torch

        out = []
        for _, label in keys:
            if not set(split_label(label)) <= set(self.targets):
                out.append(Answer.fall_back(self.mean_effect, f"{label} was not trained; mean effect"))
                continue
            hot = torch.tensor(
                self.hot(label), dtype=next(self.module.parameters()).dtype, device=self.device
            )
            with torch.no_grad():
                out.append(Answer(self.module(hot).double().cpu().numpy()))
        return out
