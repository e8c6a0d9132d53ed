"""Input-convex networks of many maps as one batch: potential, its gradient in closed form, projection, penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["leakyrelu", "relu"]
Init = Literal["torch", "upstream", "identity"]
LEAK = 0.2
UPSTREAM_SPREAD = 0.1
SMALL = 1e-3


@dataclass(frozen=True)
class Weights:
    """Tensors of P networks with hidden widths m_1..m_L on d inputs.

    Attributes
    ----------
    kernels
        Effective (non-negative) kernels W: (P, m_{l+1}, m_l) for l = 1..L-1, and (P, 1, m_L).
    inputs, biases
        All A and b of the hidden layers behind each other: (P, sum m, d) and (P, 1, sum m).
    linear, constant
        A and b of the output: (P, 1, d) and (P, 1, 1).
    curvature
        Factor of |x|²/2, (P, 1, 1), or None.
    slope
        Slope of the activation below 0.
    """

    kernels: tuple[Tensor, ...]
    inputs: Tensor
    biases: Tensor
    linear: Tensor
    constant: Tensor
    curvature: Tensor | None
    slope: float

    @property
    def widths(self) -> list[int]:
        return [kernel.shape[2] for kernel in self.kernels]

    def rows(self, index: Tensor) -> Weights:
        """The networks of some rows, in that order; an index may occur repeatedly."""
        return self._each(lambda t: t.index_select(0, index))

    def detached(self) -> Weights:
        """The same values without gradients."""
        return self._each(lambda t: t.detach())

    def _each(self, change) -> Weights:
        return replace(
            self,
            kernels=tuple(change(kernel) for kernel in self.kernels),
            inputs=change(self.inputs),
            biases=change(self.biases),
            linear=change(self.linear),
            constant=change(self.constant),
            curvature=None if self.curvature is None else change(self.curvature),
        )


@dataclass(frozen=True)
class _Layers:
    """Slopes a_l of every hidden unit, σ(h_1), and the last hidden output; (P, B, m_l) each."""

    slopes: list[Tensor]
    first: Tensor
    last: Tensor


def _hidden(weights: Weights, x: Tensor) -> _Layers:
    from_input = torch.baddbmm(weights.biases, x, weights.inputs.mT).split(weights.widths, dim=2)
    slopes, first, z = [], from_input[0], from_input[0]
    above, below = x.new_ones(()), x.new_full((), weights.slope)
    for level, own in enumerate(from_input):
        h = own if level == 0 else torch.baddbmm(own, z, weights.kernels[level - 1].mT)
        slope = torch.where(h.detach() > 0, above, below)
        slopes.append(slope)
        z = h * slope
        if level == 0:
            first, z = z, z * z
    return _Layers(slopes, first, z)


def _value(weights: Weights, x: Tensor, layers: _Layers) -> Tensor:
    out = torch.baddbmm(weights.constant, layers.last, weights.kernels[-1].mT)
    out = torch.baddbmm(out, x, weights.linear.mT).squeeze(2)
    if weights.curvature is not None:
        out = out + 0.5 * weights.curvature.squeeze(2) * (x * x).sum(dim=2)
    return out


def _gradient(weights: Weights, x: Tensor, layers: _Layers) -> Tensor:
    pushes = []
    delta = weights.kernels[-1]
    for level in range(len(layers.slopes) - 1, -1, -1):
        push = delta * layers.slopes[level]
        if level == 0:
            push = push * (2.0 * layers.first)
        else:
            delta = torch.bmm(push, weights.kernels[level - 1])
        pushes.append(push)
    out = torch.baddbmm(weights.linear, torch.cat(pushes[::-1], dim=2), weights.inputs)
    return out if weights.curvature is None else out + weights.curvature * x


def potential(weights: Weights, x: Tensor) -> Tensor:
    """φ_p(x), shape (P, B), of points (P, B, d).

    z_1 = σ(A_0 x + b_0)², z_l = σ(W z_{l-1} + A x + b), φ = W z_L + A x + b: convex in x for kernels of at least 0.
    """
    return _value(weights, x, _hidden(weights, x))


def transport(weights: Weights, x: Tensor) -> Tensor:
    """∇φ_p(x), shape (P, B, d), in closed form: one backward pass gives its gradient in the weights."""
    return _gradient(weights, x, _hidden(weights, x))


def potential_and_transport(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both, from one forward pass."""
    layers = _hidden(weights, x)
    return _value(weights, x, layers), _gradient(weights, x, layers)


class StackedIcnn(nn.Module):
    """P input-convex networks of equal shape.

    Parameters hold all maps along their first axis, so Adam treats them as P separate networks as long as losses are
    summed over maps. `softplus_beta` above 0 makes kernels softplus(weight) instead of projecting them.
    """

    def __init__(
        self,
        n_maps: int,
        dim: int,
        hidden: Sequence[int],
        *,
        activation: Activation = "leakyrelu",
        softplus_beta: float = 0.0,
        init: Init = "torch",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.n_maps, self.dim, self.hidden = n_maps, dim, tuple(hidden)
        self.slope = LEAK if activation == "leakyrelu" else 0.0
        self.softplus_beta = softplus_beta
        outs = [*hidden[1:], 1]

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n_maps, *shape, dtype=dtype))

        self.W = nn.ParameterList([empty(o, i) for i, o in zip(hidden, outs, strict=True)])
        self.A = empty(sum(hidden), dim)
        self.b = empty(1, sum(hidden))
        self.A_out = empty(1, dim)
        self.b_out = empty(1, 1)
        self.curvature = empty(1, 1) if init == "identity" else None
        self.reset(init)

    @torch.no_grad()
    def reset(self, init: Init) -> None:
        """Draw weights from torch's default generator.

        `upstream`: all kernels U[0, 0.1], biases 0. `torch`: what nn.Linear draws. `identity`: ∇φ(x) = x to about
        0.1 %: |x|²/2, nn.Linear's draw with negative kernels cut, an output near 0.
        """
        if init == "upstream":
            for tensor in (*self.W, self.A, self.A_out):
                tensor.uniform_(0.0, UPSTREAM_SPREAD)
            self.b.zero_()
            self.b_out.zero_()
            return
        for tensor in (*self.W, self.A, self.A_out):
            bound = tensor.shape[2] ** -0.5
            tensor.uniform_(-bound, bound)
        for tensor in (self.b, self.b_out):
            tensor.uniform_(-(self.dim**-0.5), self.dim**-0.5)
        if self.curvature is not None:
            self.curvature.fill_(1.0)
            for tensor in self.W:
                tensor.clamp_(min=0.0)
            self.W[-1].uniform_(0.0, SMALL)
            self.A_out.zero_()

    def weights(self) -> Weights:
        """The tensors that `potential` and `transport` take."""
        beta = self.softplus_beta
        kernels = tuple(functional.softplus(w, beta=beta) if beta else w for w in self.W)
        return Weights(kernels, self.A, self.b, self.A_out, self.b_out, self.curvature, self.slope)

    def penalty(self) -> Tensor:
        """Σ_l ‖max(-W_l, 0)‖ (Frobenius, not squared) of each map, shape (P,); 0 with softplus kernels."""
        if self.softplus_beta:
            return self.A.new_zeros(self.n_maps)
        return torch.stack([torch.linalg.vector_norm(w.neg().relu(), dim=(1, 2)) for w in self.W]).sum(dim=0)

    @torch.no_grad()
    def project(self) -> None:
        """Set negative kernels (and curvature) to 0; kernels are left alone with softplus."""
        if not self.softplus_beta:
            for w in self.W:
                w.clamp_(min=0.0)
        self.project_curvature()

    @torch.no_grad()
    def project_curvature(self) -> None:
        """Set negative curvature to 0."""
        if self.curvature is not None:
            self.curvature.clamp_(min=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """∇φ of points (P, B, d)."""
        return transport(self.weights(), x)
