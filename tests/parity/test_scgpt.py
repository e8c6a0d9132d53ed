"""scGPT against PyPI scgpt 0.2.4 on the same random weights and cells, float32: outputs, losses, gradients, steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from parity.official import tool_python

torch = pytest.importorskip("torch", reason="torch is not installed")

from vcbench.baselines.scgpt.checkpoint import load_pretrained, read_checkpoint, write_checkpoint  # noqa: E402
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator, elastic_cell_similarity  # noqa: E402
from vcbench.baselines.scgpt.vocabulary import Vocabulary  # noqa: E402

pytestmark = pytest.mark.parity
RUNNER = Path(__file__).parent / "run_scgpt.py"
N_GENES, N_CELLS, LR = 120, 6, 1e-3
VOCABULARY = Vocabulary.of_genes([f"G{i:03d}" for i in range(N_GENES)])
TOLERANCE = 1e-4
CASES = {
    "default": {},
    "wide": {"d_model": 96, "nhead": 8, "d_hid": 160, "nlayers": 4},
    "adaptive": {"decoder_adaptive_bias": True, "decoder_activation": "Softplus"},
    "pad row 2": {"pert_pad_id": 2},
}


def config_of(case: str) -> ScGPTConfig:
    return ScGPTConfig(**{"d_model": 48, "nhead": 4, "d_hid": 32, "nlayers": 3, **CASES[case]})


@pytest.fixture(scope="module", params=list(CASES))
def both(request, tmp_path_factory):
    """(our network with the same weights, the job's arrays, upstream's results)."""
    python = tool_python("VCBENCH_PARITY_MODELS_PYTHON", None)
    config = config_of(request.param)
    folder = tmp_path_factory.mktemp("scgpt")
    torch.manual_seed(3)
    net = TransformerGenerator(config, len(VOCABULARY), VOCABULARY.pad, mvc="inner product")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        net.pert_encoder.weight[config.pert_pad_id] = 0.0
    rng = np.random.default_rng(5)
    flags = np.zeros((N_CELLS, N_GENES), dtype=np.int64)
    flags[np.arange(N_CELLS), rng.integers(0, N_GENES, N_CELLS)] = 1
    flags[0] = 0
    sparse = rng.random((N_CELLS, N_GENES)) < 0.3
    arrays = {
        "genes": rng.permutation(len(VOCABULARY))[:N_GENES],
        "values": (sparse * rng.gamma(2.0, 0.8, sparse.shape)).astype(np.float32),
        "flags": flags,
        "targets": (sparse * rng.gamma(2.0, 0.8, sparse.shape)).astype(np.float32),
    }
    meta = {
        "pad": VOCABULARY.pad,
        "lr": LR,
        "arguments": {
            "ntoken": len(VOCABULARY),
            **{name: getattr(config, name) for name in ("d_model", "nhead", "d_hid", "nlayers", "dropout")},
            "nlayers_cls": config.n_layers_cls,
            "n_cls": 1,
            "pert_pad_id": config.pert_pad_id,
            "do_mvc": True,
            "decoder_activation": config.decoder_activation or None,
            "decoder_adaptive_bias": config.decoder_adaptive_bias,
        },
    }
    state = {f"state/{name}": value.numpy() for name, value in net.state_dict().items()}
    np.savez(folder / "job.npz", meta=np.array(json.dumps(meta)), **arrays, **state)
    command = [python, str(RUNNER), str(folder / "job.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return net, {name: torch.as_tensor(value) for name, value in arrays.items()}, np.load(folder / "out.npz")


def gap(found, expected) -> float:
    return float(np.abs(found.detach().numpy() - expected).max())


def run(net, arrays):
    return net(arrays["genes"], arrays["values"], arrays["flags"])


def test_the_release_and_its_names(both):
    net, _, out = both
    assert str(out["version"]) == "0.2.4"
    assert [str(name) for name in out["names"]] == list(net.state_dict())


def test_outputs(both):
    net, arrays, out = both
    found = run(net.train(), arrays)
    cell = net.cell_vectors(found, arrays["values"])
    assert gap(found.values, out["train/mlm_output"]) < TOLERANCE
    assert (
        gap(net.mvc(cell, found).values, out["train/mvc_output"])
        < TOLERANCE * np.abs(out["train/mvc_output"]).max()
    )
    assert gap(net.cls_decoder(cell), out["train/cls_output"]) < TOLERANCE
    assert gap(elastic_cell_similarity(cell), out["train/loss_ecs"]) < TOLERANCE
    with torch.no_grad():
        evaluated = run(net.eval(), arrays).values
    assert gap(evaluated, out["eval/mlm_output"]) < TOLERANCE
    assert gap(evaluated, out["pred_perturb"]) < TOLERANCE


def test_loss_and_gradients(both):
    net, arrays, out = both
    net.train().zero_grad()
    found = run(net, arrays)
    cell = net.cell_vectors(found, arrays["values"])
    loss = ((found.values - arrays["targets"]) ** 2).mean()
    loss.backward()
    assert cell.shape == (N_CELLS, net.config.d_model)
    assert loss.item() == pytest.approx(float(out["loss"]), rel=1e-5)
    mine = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    theirs = {name[5:]: out[name] for name in out.files if name.startswith("grad/")}
    assert mine.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    assert max(gap(mine[name], theirs[name]) for name in theirs) < TOLERANCE * largest


def test_three_training_steps(both, tmp_path):
    net, arrays, out = both
    write_checkpoint(net, VOCABULARY, tmp_path)
    net = TransformerGenerator(net.config, len(VOCABULARY), VOCABULARY.pad, mvc="inner product")
    load_pretrained(net, read_checkpoint(tmp_path), prefixes=("",))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for expected in out["steps/loss"]:
        optimizer.zero_grad()
        loss = ((run(net.train(), arrays).values - arrays["targets"]) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(expected, rel=TOLERANCE)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    # Adam turns a gradient of rounding noise into a whole step, so a few weights may differ by one.
    gaps = np.concatenate([np.abs(state[n] - out[f"steps/state/{n}"]).ravel() for n in state])
    assert np.quantile(gaps, 0.999) < TOLERANCE
    assert gaps.max() < 6 * LR
