"""Two scGPT processes equal one with the doubled batch: gene draws, padding, loss shares and batch norm."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.split_file import Split, write_split

pytest.importorskip("torch", reason="torch is not installed")

LABELS = ("G000", "G001", "G002", "G003", "G000+G001")
SETTINGS = {
    "steps": 12,
    "precision": "float64",
    "validation": "none",
    "d_model": 8,
    "nhead": 2,
    "nlayers": 2,
    "d_hid": 8,
    "max_seq_len": 20,
    "warmup": 0,
}


@pytest.mark.parametrize(
    "more",
    [
        {"variant": "legacy_bn", "include_zero_gene": "cell-wise"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"include_zero_gene": "batch-wise"}, marks=pytest.mark.slow),
        pytest.param({"variant": "legacy_bn", "max_seq_len": 6}, marks=pytest.mark.slow),
    ],
    ids=lambda more: "-".join(more) or "default",
)
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, more):
    data = standard_h5ad(tmp_path / "data.h5ad", perturbations=LABELS, cells=20, controls=30)
    write_split(Split({("K562", label): ("train", "") for label in LABELS}, {}), tmp_path / "split.csv")
    common = ["scgpt", str(data), "--split", str(tmp_path / "split.csv"), "--device", "cpu", "--seed", "4"]
    for name, value in {**SETTINGS, **more}.items():
        common += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    effects = []
    for name, start, batch in (("one", [sys.executable], 8), ("two", torchrun, 4)):
        out = tmp_path / name
        size = ["--set", f"batch_size={batch}", "-o", str(out)]
        command = [*start, "-m", "vcbench.baselines.training", *common, *size]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        keys = [("K562", label) for label in ("G000", "G003+G017", "G001+G002+G020")]
        effects.append(run.model.predict(keys, run.control_means).profiles)
    np.testing.assert_allclose(effects[1], effects[0], rtol=0, atol=1e-6)
    assert np.abs(effects[0] - effects[0].mean(axis=0)).max() > 1e-3
