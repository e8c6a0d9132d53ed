"""What every deep model must do on a GPU: train there, and predict the same on either device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest


def check_training_on_cuda(train: Callable[[str], Path], keys: Sequence[tuple[str, str]]) -> None:
    """`train(device)` trains and returns the run folder.

    The run trained on the GPU predicts alike on both devices, and close to the run trained on the CPU, whose random
    draws are others.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from vcbench.baselines.run_folder import load_run

    folders = {device: train(device) for device in ("cpu", "cuda")}
    assert "cuda" in (folders["cuda"] / "card.md").read_text()
    found = {}
    for name, trained, device in (("cpu", "cpu", "cpu"), ("moved", "cuda", "cpu"), ("cuda", "cuda", "cuda")):
        run = load_run(folders[trained], device=device)
        assert run.model.device.type == device
        found[name] = run.model.predict(list(keys), run.control_means)
    assert found["cuda"].status == found["moved"].status == found["cpu"].status
    given = [status == "predicted" for status in found["cuda"].status]
    assert any(given)
    on_gpu, moved, on_cpu = (found[name].profiles[given] for name in ("cuda", "moved", "cpu"))
    np.testing.assert_allclose(on_gpu, moved, atol=1e-3)
    assert np.isfinite(on_gpu).all()
    assert np.corrcoef(on_gpu.ravel(), on_cpu.ravel())[0, 1] > 0.9
