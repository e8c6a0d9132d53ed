"""Whole profiles with rank sums from torch: every number, table and bundle as on the CPU."""

import json

import numpy as np
import pandas as pd
import pytest
from vcbench.data_specs.cli_support import run
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth
from vcc2026_panels import random_panel

torch = pytest.importorskip("torch", reason="needs the extra vcbench[train]")

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    ],
)
on_devices = pytest.mark.parametrize("device", ["torch-cpu", GPU])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    arms = random_panel(3)
    for arm in ("real", "pred"):
        arms[arm].write_h5ad(folder / f"{arm}.h5ad")
    return folder


@on_devices
@pytest.mark.parametrize(
    ("edition", "profile"), [("vcc2026", "full"), ("celleval-0.8", "vcc"), ("vcc2025", "vcc")]
)
@pytest.mark.parametrize("memory", [None, 1])
def test_scores_are_those_of_the_cpu(files, device, edition, profile, memory):
    chosen = {"edition": edition, "profile": profile, "pert_col": "target", "memory": memory}
    host, found = (
        score(files / "pred.h5ad", files / "real.h5ad", device=name, **chosen) for name in ("cpu", device)
    )
    assert {k: v.value for k, v in found.card.metrics.items()} == {
        k: v.value for k, v in host.card.metrics.items()
    }
    pd.testing.assert_frame_equal(
        found.result.per_perturbation, host.result.per_perturbation, check_exact=True
    )


@on_devices
def test_bundles_are_those_of_the_cpu(files, tmp_path, device):
    options = {"edition": "vcc2026", "pert_col": "target", "n_splits": 2, "baseline": "generic"}
    bundles = [
        build_truth(files / "real.h5ad", tmp_path / name, device=name, **options) for name in ("cpu", device)
    ]
    host, found = (
        {p.relative_to(b.path): np.load(p, allow_pickle=False) for p in sorted(b.path.rglob("*.npy"))}
        for b in bundles
    )
    assert host.keys() == found.keys()
    for name, array in host.items():
        np.testing.assert_array_equal(found[name], array, err_msg=str(name))
    assert bundles[0].sha256 == bundles[1].sha256


@on_devices
def test_command_line(files, device, capsys):
    args = ["score", str(files / "pred.h5ad"), "--truth", str(files / "real.h5ad"), "--edition", "vcc2026"]
    values = []
    for name in ("cpu", device):
        assert run(cli, [*args, "--pert-col", "target", "--device", name, "--format", "json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["metrics"])
    assert values[0] == values[1]
    assert run(cli, [*args, "--pert-col", "target", "--device", "cuda:99"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
