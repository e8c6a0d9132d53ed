"""Golden values of CellOT and CondOT (float64, from upstream's code), their fill rule and their points."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
_icnn, _solver, _weights = (
    pytest.importorskip(f"vcbench.baselines.cellot.{name}") for name in ("icnn", "solver", "weights")
)
StackedIcnn, potential, transport = _icnn.StackedIcnn, _icnn.potential, _icnn.transport
Duel, f_terms, g_terms, w2_terms = _solver.Duel, _solver.f_terms, _solver.g_terms, _solver.w2_terms
put_network, take_network = _weights.put_network, _weights.take_network


def fill(shapes, s, q, phase=0.0, positive=lambda name: False):
    """Tensors by name: s·sin(q·k + phase) with one running index k over all of them, row-major."""
    out, k = {}, 0
    for name, shape in shapes.items():
        n = int(np.prod(shape))
        values = s * np.sin(q * np.arange(k, k + n) + phase)
        k += n
        tensor = torch.tensor(values.reshape(shape))
        out[name] = tensor.abs() if positive(name) else tensor
    return out


def points(rows=4, columns=3):
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    return torch.tensor(np.cos(0.5 * i + 0.9 * j)), torch.tensor(np.sin(0.3 * i - 0.4 * j) + 0.2 * j)


def icnn_shapes(dim, hidden):
    outs = [*hidden[1:], 1]
    shapes = {f"W.{k}.weight": (o, i) for k, (i, o) in enumerate(zip(hidden, outs, strict=True))}
    for k, width in enumerate([*hidden, 1]):
        shapes |= {f"A.{k}.weight": (width, dim), f"A.{k}.bias": (width,)}
    return shapes


def numbers(text):
    return np.array([float(v.replace("−", "-")) for v in text.replace("/", " ").split()])
