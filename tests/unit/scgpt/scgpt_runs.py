"""Small scGPT runs of the tests: settings, training, and what a run holds."""

from __future__ import annotations

import numpy as np
from builders import standard_h5ad
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.scgpt.baseline import with_settings
from vcbench.data_specs.split_file import Split

GENES = [f"G{i:03d}" for i in range(40)]
LABELS = ("G000", "G001", "G002", "G003", "G004", "G000+G001", "G002+G003")
TEST = ("G003", "G002+G003")
SETTINGS = {
    "epochs": 2,
    "d_model": 8,
    "nhead": 2,
    "nlayers": 2,
    "d_hid": 8,
    "batch_size": 8,
    "max_seq_len": 16,
    "pool_size": 6,
    "validation_cells": 4,
}


def train(files, out, *, data=None, split=None, seed=3, features=None, resume=False, **settings):
    path, own, folder = files
    train_deep(
        "scgpt",
        data or path,
        split or own,
        folder / out,
        settings={**SETTINGS, **settings},
        features=features,
        seed=seed,
        device="cpu",
        resume=resume,
    )
    return load_run(folder / out)


def weights_of(run, which="best"):
    from safetensors.numpy import load_file

    return load_file(run.folder / "checkpoints" / which / "weights.safetensors")


def same_weights(a, b, which="best"):
    mine, theirs = weights_of(a, which), weights_of(b, which)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def effects(run, labels, **settings):
    model = with_settings(run.model, **settings) if settings else run.model
    found = model.predict([("K562", label) for label in labels], run.control_means)
    assert set(found.status) == {"predicted"}
    return found.profiles - run.control_means["K562"]


def unmeasured(files, tmp_path, **settings):
    labels = ("G000", "OUT1", "OUT2", "G001+OUT1", "OUT3")
    data = standard_h5ad(tmp_path / "out.h5ad", perturbations=labels, cells=8, controls=12)
    part = {"OUT3": "test"}
    split = Split({("K562", label): (part.get(label, "train"), "") for label in labels}, {})
    return train((data, split, tmp_path), "run", **settings)
