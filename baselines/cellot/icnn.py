"""Input-convex networks of many maps as one batch: potential, its gradient in closed form, projection, penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        A and b of the hidden layers: (P, m_l, d) and (P, 1, m_l).
    linear, constant
        A and b of the output: (P, 1, d) and (P, 1, 1).
    curvature
        Factor of |x|²/2, (P, 1, 1), or None.
    slope
        Slope of the activation below 0.
    """

    kernels: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor
    constant: Tensor
    curvature: Tensor | None
    slope: float

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
            inputs=tuple(change(matrix) for matrix in self.inputs),
            biases=tuple(change(bias) for bias in self.biases),
            linear=change(self.linear),
            constant=change(self.constant),
            curvature=None if self.curvature is None else change(self.curvature),
        )


def _last_hidden(weights: Weights, x: Tensor) -> Tensor:
    """z_L, (P, B, m_L)."""
    from_input = [torch.baddbmm(b, x, a.mT) for a, b in zip(weights.inputs, weights.biases, strict=True)]
    z = functional.leaky_relu(from_input[0], weights.slope).square()
    for kernel, own in zip(weights.kernels[:-1], from_input[1:], strict=True):
        z = functional.leaky_relu(torch.baddbmm(own, z, kernel.mT), weights.slope)
    return z


def potential(weights: Weights, x: Tensor) -> Tensor:
    """φ_p(x), shape (P, B), of points (P, B, d).

    z_1 = σ(A_0 x + b_0)², z_l = σ(W z_{l-1} + A x + b), φ = W z_L + A x + b: convex in x for kernels of at least 0.
    """
    return _value(weights, x, _last_hidden(weights, x))


def _value(weights: Weights, x: Tensor, last: Tensor) -> Tensor:
    out = torch.baddbmm(weights.constant, last, weights.kernels[-1].mT)
    out = torch.baddbmm(out, x, weights.linear.mT).squeeze(2)
    if weights.curvature is not None:
        out = out + 0.5 * weights.curvature.squeeze(2) * (x * x).sum(dim=2)
    return out


def transport(weights: Weights, x: Tensor) -> Tensor:
    """∇φ_p(x), shape (P, B, d), in closed form; differentiable once in the weights, not in `x`."""
    own = (*weights.inputs, *weights.biases, *weights.kernels)
    out = _Gradient.apply(x, weights.slope, weights.linear, *own)
    return _with_curvature(weights, x, out)  # type: ignore[arg-type]


def _with_curvature(weights: Weights, x: Tensor, out: Tensor) -> Tensor:
    return out if weights.curvature is None else out + weights.curvature * x


@torch.no_grad()
def potential_and_transport(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both from one forward pass, without gradients."""
    passed = _forward(x, weights.slope, weights.inputs, weights.biases, weights.linear, weights.kernels)
    value = _value(weights, x, passed.outputs[-1] if len(weights.kernels) > 1 else passed.outputs[0].square())
    return value, _with_curvature(weights, x, passed.gradient)


class _Pass(NamedTuple):
    """`outputs` σ(h_l) and `pushes` ∂φ/∂h_l of every layer; `gated` is ∂φ/∂z_1 times the slope of the first layer."""

    gradient: Tensor
    outputs: list[Tensor]
    pushes: list[Tensor]
    gated: Tensor


_gate = torch.ops.aten.leaky_relu_backward


def _forward(
    x: Tensor,
    slope: float,
    inputs: Sequence[Tensor],
    biases: Sequence[Tensor],
    linear: Tensor,
    kernels: Sequence[Tensor],
) -> _Pass:
    """The closed form, layer by layer in place: on small networks memory traffic costs as much as arithmetic."""
    outputs: list[Tensor] = []
    for level, (matrix, bias) in enumerate(zip(inputs, biases, strict=True)):
        own = torch.baddbmm(bias, x, matrix.mT)
        if level:
            own.baddbmm_(outputs[0] * outputs[0] if level == 1 else outputs[-1], kernels[level - 1].mT)
        outputs.append(functional.leaky_relu_(own, slope))
    pushes: list[Tensor] = []
    gradient, delta = linear.expand(-1, x.shape[1], -1), kernels[-1].expand(-1, x.shape[1], -1)
    for level in range(len(kernels) - 1, 0, -1):
        pushes.append(_gate(delta, outputs[level], slope, True))
        delta = torch.bmm(pushes[-1], kernels[level - 1])
        gradient = torch.baddbmm(gradient, pushes[-1], inputs[level])
    gated = _gate(delta, outputs[0], slope, True)
    pushes.append((gated * outputs[0]).mul_(2.0))
    gradient = torch.baddbmm(gradient, pushes[-1], inputs[0])
    return _Pass(gradient, outputs, pushes[::-1], gated)


class _Gradient(torch.autograd.Function):
    """∇φ with its derivative in the weights. Slopes are constant almost everywhere, so only h_1 carries a gradient
    through the forward values: biases behind the first layer have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, linear: Tensor, *weights: Tensor):
        n = len(weights) // 3
        inputs, biases, kernels = weights[:n], weights[n : 2 * n], weights[2 * n :]
        passed = _forward(x, slope, inputs, biases, linear, kernels)
        ctx.slope, ctx.passed = slope, passed
        ctx.save_for_backward(x, *inputs, *kernels)
        return passed.gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[override]
        x, *saved = ctx.saved_tensors
        n = len(saved) // 2
        inputs, kernels = saved[:n], saved[n:]
        _, outputs, pushes, gated = ctx.passed
        slope, grad = ctx.slope, grads[0]
        d_inputs = [torch.bmm(push.mT, grad) for push in pushes]
        first = torch.bmm(grad, inputs[0].mT).mul_(2.0)
        d_hidden = _gate(first * gated, outputs[0], slope, True)
        d_inputs[0].baddbmm_(d_hidden.mT, x)
        d_biases = [torch.zeros_like(matrix[:, None, :, 0]) for matrix in inputs]
        d_biases[0] = d_hidden.sum(dim=1, keepdim=True)
        d_delta = _gate(first.mul_(outputs[0]), outputs[0], slope, True)
        d_kernels = []
        for level in range(1, n):
            d_kernels.append(torch.bmm(pushes[level].mT, d_delta))
            own = torch.bmm(grad, inputs[level].mT).baddbmm_(d_delta, kernels[level - 1].mT)
            d_delta = _gate(own, outputs[level], slope, True)
        d_kernels.append(d_delta.sum(dim=1, keepdim=True))
        return None, None, grad.sum(dim=1, keepdim=True), *d_inputs, *d_biases, *d_kernels


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
        self.A = nn.ParameterList([empty(width, dim) for width in hidden])
        self.b = nn.ParameterList([empty(1, width) for width in hidden])
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
            for tensor in (*self.W, *self.A, self.A_out):
                tensor.uniform_(0.0, UPSTREAM_SPREAD)
            for tensor in (*self.b, self.b_out):
                tensor.zero_()
            return
        for tensor in (*self.W, *self.A, self.A_out):
            bound = tensor.shape[2] ** -0.5
            tensor.uniform_(-bound, bound)
        for tensor in (*self.b, self.b_out):
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
        inputs, biases = tuple(self.A), tuple(self.b)
        return Weights(kernels, inputs, biases, self.A_out, self.b_out, self.curvature, self.slope)

    def penalty(self) -> Tensor:
        """Σ_l ‖max(-W_l, 0)‖ (Frobenius, not squared) of each map, shape (P,); 0 with softplus kernels."""
        if self.softplus_beta:
            return self.A_out.new_zeros(self.n_maps)
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
