"""Attention without masks, whole graphs for the compiler, memory kept for the backward pass; and the same on CUDA."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from unit.scgpt.scgpt_golden import inputs, network  # noqa: E402
from vcbench.baselines.scgpt.attention import Encoder, SelfAttention  # noqa: E402
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.memory import pass_bytes  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    ours = SelfAttention(16, 4).double()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    for mask in (None, padding):
        attend = None if mask is None else ~mask[:, None, None, :]
        expected = theirs(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        torch.testing.assert_close(ours(x, attend), expected, rtol=0, atol=1e-12)


def test_no_mask_is_built_without_padding(monkeypatch):
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, dropout_p=0.0):
        seen.append((attn_mask, dropout_p))
        return plain(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    encoder = Encoder(8, 2, 8, 2, 0.3)
    encoder(torch.randn(2, 5, 8))
    encoder.eval()(torch.randn(2, 5, 8))
    assert seen == [(None, 0.3)] * 2 + [(None, 0.0)] * 2


@pytest.mark.parametrize("changes", [{}, {"variant": "legacy_bn", "activation_checkpointing": True}])
def test_the_network_is_one_graph(changes):
    net = network(dtype=torch.float32, mvc="none", **changes).train()
    genes, values, flags, target = inputs(torch.float32)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    found = compiled(genes, values, flags).values
    torch.testing.assert_close(found, net(genes, values, flags).values, rtol=0, atol=1e-6)
    ((found - target) ** 2).mean().backward()


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_of_memory_is_near_what_is_kept(precision, recompute):
    config = ScGPTConfig(
        d_model=64,
        nhead=4,
        nlayers=6,
        d_hid=64,
        precision=precision,
        activation_checkpointing=recompute,
        batch_size=8,
    )
    net = TransformerGenerator(config, 200, 0).train()
    net = net.double() if precision == "float64" else net
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, tuple[int, object]] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # Casts of weights are kept too; they have no batch dimension.
        if storage.data_ptr() not in weights and tensor.numel() >= 8 * 150:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    values = torch.rand(8, 150, dtype=torch.float64 if precision == "float64" else torch.float32)
    flags = torch.zeros(8, 150, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        out = net(torch.arange(150), values, flags).values
    found = sum(size for size, _ in kept.values())
    # With recomputation one layer's tensors come on top, in the backward pass.
    assert out.shape == (8, 150)
    estimate = pass_bytes(config, 150)
    assert 0.8 * found < estimate < (2.2 if recompute else 1.3) * found


def test_bf16_is_near_float32():
    net = network(dtype=torch.float32)
    genes, values, flags, _ = inputs(torch.float32)
    full = net(genes, values, flags).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(genes, values, flags).values
    gap = (low.float() - full).abs().max().item()
    assert 0 < gap < 0.1 * full.abs().mean().item() + 0.02


@pytest.mark.gpu
@needs_cuda
def test_cuda_follows_the_cpu():
    net = network(dtype=torch.float32)
    genes, values, flags, _ = inputs(torch.float32)
    expected = net(genes, values, flags).values.detach()
    found = net.cuda()(genes.cuda(), values.cuda(), flags.cuda()).values
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
def test_flash_kernels_run_without_a_mask():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    encoder = Encoder(64, 4, 64, 2).cuda()
    x = torch.randn(2, 100, 64, device="cuda", requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cuda", dtype=torch.bfloat16):
        encoder(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_training_on_cuda(tmp_path, compiled):
    from builders import standard_h5ad
    from vcbench.baselines.deep_train import train_deep
    from vcbench.baselines.run_folder import load_run

    data = standard_h5ad(
        tmp_path / "data.h5ad", perturbations=("G000", "G001", "G002"), cells=20, controls=40
    )
    settings = {"preset": "tiny", "epochs": 3, "precision": "bf16", "fused": "true", "compile": compiled}
    result = train_deep("scgpt", data, None, tmp_path / "run", settings=settings, seed=1, device="cuda")
    assert result is not None and result.device.startswith("cuda")
    keys = [("K562", "G000"), ("K562", "G001+G002")]
    found = [load_run(tmp_path / "run", device=device) for device in ("cpu", "cuda")]
    profiles = [run.model.predict(keys, run.control_means).profiles for run in found]
    np.testing.assert_allclose(profiles[0], profiles[1], atol=0.05)
