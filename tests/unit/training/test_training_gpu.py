"""The same training on a CUDA device."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch", reason="deep models need the extra vcbench[train]")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("where", ["device", "host"])
def test_device_rows_are_the_dense_rows(where):
    from vcbench.baselines.training.device_matrix import DeviceMatrix
    from vcbench.baselines.training.protocol import Placement

    dense = np.random.default_rng(0).random((50, 70)).astype(np.float32)
    dense[dense < 0.7] = 0
    matrix = DeviceMatrix(sp.csr_array(dense), Placement(torch.device("cuda"), torch.float32), where=where)
    rows = np.array([3, 3, 49, 0])
    np.testing.assert_array_equal(matrix.rows(rows).cpu().numpy(), dense[rows])


def test_training_on_the_gpu_follows_the_cpu_and_resumes(tmp_path, monkeypatch):
    from builders import standard_h5ad
    from vcbench.baselines import registry
    from vcbench.baselines.training.__main__ import main

    monkeypatch.setitem(registry.DEEP, "mock", ("mock_deep:MockDeep", "Embedding times decoder"))
    data = str(standard_h5ad(tmp_path / "data.h5ad", cells=16, controls=30))
    for device in ("cpu", "cuda"):
        options = ["--device", device, "--set", "precision=float64", "--quiet"]
        assert main(["mock", data, *options, "-o", str(tmp_path / device)]) == 0
    assert main(["mock", data, *options, "-o", str(tmp_path / "cuda"), "--resume"]) == 0
    lines = [(tmp_path / device / "metrics.jsonl").read_text().splitlines()[-1] for device in ("cpu", "cuda")]
    cpu, cuda = (json.loads(line)["loss"] for line in lines)
    assert cpu > 0 and "device" in (tmp_path / "cuda" / "card.md").read_text()
    assert cuda == pytest.approx(cpu, rel=0.2)


def test_nan_is_found_at_its_step_though_checked_later(tmp_path):
    from vcbench.baselines.training.config import TrainingConfig
    from vcbench.baselines.training.optimizers import NotFinite, Optimizers
    from vcbench.baselines.training.protocol import Position

    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizers = Optimizers({"main": torch.optim.SGD([weight], lr=0.1)}, TrainingConfig(), weight.device)
    for step in range(6):
        optimizers.start_pass(Position(step, 0), 1.0)
        optimizers.update("main", weight.sum() * (float("nan") if step == 2 else 1.0))
    with pytest.raises(NotFinite, match="at step 2"):
        optimizers.check()
