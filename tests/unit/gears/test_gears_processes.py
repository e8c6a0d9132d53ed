"""Two GEARS processes equal one with the doubled batch."""

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


@pytest.mark.parametrize("uncertainty", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, uncertainty):
    data = standard_h5ad(tmp_path / "data.h5ad", perturbations=LABELS, cells=20, controls=30)
    write_split(Split({("K562", label): ("train", "") for label in LABELS}, {}), tmp_path / "split.csv")
    genes = [f"G{i:03d}" for i in range(40)]
    rng = np.random.default_rng(2)
    terms = [f"T{i}\t-\t" + "\t".join(sorted(rng.choice(genes, 12, replace=False))) for i in range(12)]
    (tmp_path / "go.gmt").write_text("\n".join([*terms, "all\t-\t" + "\t".join(genes)]) + "\n")
    common = [
        "gears",
        str(data),
        "--split",
        str(tmp_path / "split.csv"),
        "--features",
        f"go:{tmp_path / 'go.gmt'}",
    ]
    common += ["--device", "cpu", "--seed", "4"]
    for setting in (
        "steps=20",
        "precision=float64",
        "validation=none",
        "hidden_size=8",
        f"uncertainty={uncertainty}",
    ):
        common += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    effects = []
    for name, start, batch in (("one", [sys.executable], 8), ("two", torchrun, 4)):
        out = tmp_path / name
        command = [
            *start,
            "-m",
            "vcbench.baselines.training",
            *common,
            "--set",
            f"batch_size={batch}",
            "-o",
            str(out),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        keys = [("K562", label) for label in ("G000", "G003+G017", "G001+G002+G020")]
        effects.append(run.model.predict(keys, run.control_means).profiles)
    np.testing.assert_allclose(effects[1], effects[0], rtol=0, atol=1e-6)
    assert np.abs(effects[0] - effects[0].mean(axis=0)).max() > 1e-3
