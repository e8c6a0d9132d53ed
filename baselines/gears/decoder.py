"""The shared decoder in training, without (cells, genes, 2H) arrays: blocks that fit the cache, recomputed backward.

On the CPU, threads take slices of genes and run single-threaded operations: one wait per pass instead of one per
operation. Slices have a fixed length and their sums a fixed order, so results do not depend on the threads.

One pass gives the moments of relu(gene + perturbation), from which the first batch norm follows; the second keeps one
(K, G, H) array for the backward pass. Equal to `recovery_w` and the gene-wise dot product in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .statistics import Moments, Reduce

_GENES_PER_SLICE = 1024
_CUDA_BLOCK_BYTES = 2**31
Result = TypeVar("Result")


@dataclass(frozen=True)
class Decoded:
    """First-stage outputs without bias, shape (K, G), and the batch moments of the two norms (biases included)."""

    first_stage: Tensor
    inner: Moments
    outer: Moments


def decode(
    genes: Tensor,
    perturbed: Tensor,
    variants: Tensor,
    counts: Tensor,
    n_rows: Tensor,
    mlp: Any,
    gene_weights: Tensor,
    *,
    reduce: Reduce,
) -> Decoded:
    """The decoder of relu(genes[variants] + perturbed) in training mode.

    Parameters
    ----------
    genes, perturbed, variants, counts
        Shapes (V, G, H), (K, H), (K,), (K,): joint vectors before the ReLU, in parts; counts weigh the statistics.
    n_rows
        Rows that the statistics run over, in all processes: cells times genes.
    mlp
        Linear, batch norm, ReLU, Linear, batch norm. The biases of its Linear layers get a gradient of exactly 0.
    gene_weights
        The gene-wise weights, shape (G, H).
    """
    linear1, norm1, _, linear2, norm2 = mlp.network
    parameters = (linear1.weight, linear1.bias, norm1.weight, norm1.bias)
    parameters += (linear2.weight, linear2.bias, norm2.weight, norm2.bias)
    found: Any = _Decoder.apply(
        genes,
        perturbed,
        gene_weights,
        *parameters,
        variants,
        counts,
        n_rows,
        (norm1.eps, norm2.eps),
        reduce,
    )
    output, mean1, variance1, mean2, variance2 = found
    inner = Moments(mean1 + linear1.bias.detach(), variance1, n_rows)
    return Decoded(output, inner, Moments(mean2 + linear2.bias.detach(), variance2, n_rows))


class _Blocks:
    """Joint vectors in blocks: some groups, a slice of the genes.

    `of_slice(genes, each)` calls a function for every slice; each call walks over the groups in reused buffers.
    """

    def __init__(self, genes: Tensor, perturbed: Tensor, variants: Tensor, counts: Tensor):
        self.genes, self.perturbed, self.counts = genes, perturbed, counts
        self.n_genes, self.hidden = genes.shape[1:]
        self.variant_of = variants.tolist() if len(genes) > 1 else [0] * len(perturbed)
        length, self.n_together = _GENES_PER_SLICE, 1
        if genes.is_cuda:
            length = self.n_genes
            bytes_per_group = 4 * length * self.hidden * genes.element_size()
            self.n_together = max(1, _CUDA_BLOCK_BYTES // bytes_per_group)
        self.slices = [slice(i, min(i + length, self.n_genes)) for i in range(0, self.n_genes, length)]

    def map(self, each: Callable[[slice], Result]) -> list[Result]:
        """The results of `each` for every slice, in order, computed in as many threads as torch uses."""
        n_threads = min(torch.get_num_threads(), len(self.slices))
        if self.genes.is_cuda or n_threads == 1:
            return [each(part) for part in self.slices]

        def quietly(part: slice) -> Result:
            with torch.no_grad():
                return each(part)

        return list(_pool(n_threads).map(quietly, self.slices))

    def groups(self) -> Iterator[slice]:
        """Consecutive groups of one variant, at most `n_together`."""
        first = 0
        for stop in range(1, len(self.perturbed) + 1):
            full = stop - first == self.n_together
            if stop == len(self.perturbed) or full or self.variant_of[stop] != self.variant_of[first]:
                yield slice(first, stop)
                first = stop

    def joint(self, part: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(groups, their joint vectors for a slice of genes as rows, their counts as a column per group)."""
        n_genes = part.stop - part.start
        buffer = self.buffer(part, self.hidden)
        for groups in self.groups():
            n = groups.stop - groups.start
            out = buffer[:n]
            genes = self.genes[self.variant_of[groups.start], part]
            torch.add(genes, self.perturbed[groups].unsqueeze(1), out=out).clamp_(min=0)
            yield groups, out.view(n * n_genes, self.hidden), self.counts[groups].view(n, 1, 1)

    def buffer(self, part: slice, width: int) -> Tensor:
        """Room for the most groups of one block, shape (groups, genes of the slice, width)."""
        n_together = min(self.n_together, len(self.perturbed))
        return self.genes.new_empty((n_together, part.stop - part.start, width))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads whose torch operations are single-threaded."""
    pool = ThreadPoolExecutor(n_threads, "decoder", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(n_threads)))
    return pool


def _weighted(rows: Tensor, counts: Tensor) -> Tensor:
    """Rows times the number of cells that each stands for."""
    return (rows.view(len(counts), -1, rows.shape[1]) * counts).view_as(rows)


class _Decoder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        genes: Tensor,
        perturbed: Tensor,
        gene_weights: Tensor,
        w1: Tensor,
        b1: Tensor,
        gamma1: Tensor,
        beta1: Tensor,
        w2: Tensor,
        b2: Tensor,
        gamma2: Tensor,
        beta2: Tensor,
        variants: Tensor,
        counts: Tensor,
        n_rows: Tensor,
        eps: tuple[float, float],
        reduce: Reduce,
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(genes, perturbed, variants, counts)
        total, gram = _added(blocks.map(lambda part: _joint_moments(blocks, part)))
        mean = reduce(total) / n_rows
        # Rows of this process about the common mean: sum of n (z - mean) z.
        about = gram - torch.outer(mean, total)
        covariance = reduce(gram) / n_rows - torch.outer(mean, mean)
        wide = w1.double()
        variance1 = ((wide @ covariance) * wide).sum(dim=1).clamp(min=0).to(w1.dtype)
        mean1 = (wide @ mean).to(w1.dtype)
        scale1 = gamma1 * torch.rsqrt(variance1 + eps[0])
        folded, offset = w1 * scale1.unsqueeze(1), beta1 - mean1 * scale1
        decoded = genes.new_empty((len(perturbed), blocks.n_genes, blocks.hidden))
        base = _first_decoded(blocks, folded, offset, w2)

        def outer(part: slice) -> tuple[Tensor, Tensor]:
            inner, spread = blocks.buffer(part, len(w1)), blocks.buffer(part, blocks.hidden)
            sums, squares = (torch.zeros_like(total) for _ in range(2))
            for groups, joint, n in blocks.joint(part):
                rows = torch.addmm(offset, joint, folded.T, out=_rows(inner, n)).clamp_(min=0)
                out = decoded[groups, part].view(len(joint), blocks.hidden)
                torch.addmm(-base, rows, w2.T, out=out)
                weighted = torch.mul(out.view(len(n), -1, blocks.hidden), n, out=spread[: len(n)])
                weighted = weighted.view_as(out)
                sums += weighted.sum(dim=0)
                squares += weighted.mul_(out).sum(dim=0)
            return sums, squares

        sums, squares = _added(blocks.map(outer))
        n_own = counts.sum().double() * blocks.n_genes
        # `decoded` is stored about `base`, which every process chose for itself.
        far = reduce(sums + n_own * base.double()) / n_rows
        apart = base.double() - far
        variance2 = (reduce(squares + 2 * apart * sums + n_own * apart**2) / n_rows).to(w1.dtype)
        mean2, stored_mean = far.to(w1.dtype), (-apart).to(w1.dtype)
        scale2 = gamma2 * torch.rsqrt(variance2 + eps[1])
        weights = gene_weights * scale2
        output = genes.new_empty((len(perturbed), blocks.n_genes))

        def dots(part: slice) -> None:
            for groups in blocks.groups():
                output[groups, part] = (decoded[groups, part] * weights[part]).sum(dim=-1)

        blocks.map(dots)
        output += gene_weights @ (beta2 - stored_mean * scale2)
        ctx.save_for_backward(
            *(genes, perturbed, gene_weights, w1, gamma1, beta1, w2, gamma2, beta2, variants, counts, n_rows),
            *(decoded, mean, total, about, mean1, variance1, stored_mean, variance2),
        )
        ctx.eps, ctx.reduce = eps, reduce
        ctx.mark_non_differentiable(mean1, variance1, mean2, variance2)
        return output, mean1, variance1, mean2, variance2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        genes, perturbed, gene_weights, w1, gamma1, beta1, w2, gamma2, beta2, variants, counts, n_rows = (
            saved[:12]
        )
        decoded, mean, total, about, mean1, variance1, mean2, variance2 = saved[12:]
        reduce, kind = ctx.reduce, w1.dtype
        grad = grads[0].contiguous()
        hidden = w1.shape[1]
        blocks = _Blocks(genes, perturbed, variants, counts)
        inverse1, inverse2 = torch.rsqrt(variance1 + ctx.eps[0]), torch.rsqrt(variance2 + ctx.eps[1])
        scale1, scale2 = gamma1 * inverse1, gamma2 * inverse2

        # Through the dot product and the second norm.
        of_gene = grad.sum(dim=0).unsqueeze(1)
        product = torch.zeros_like(gene_weights)

        def products(part: slice) -> None:
            for groups in blocks.groups():
                product[part] += (decoded[groups, part] * grad[groups, part].unsqueeze(-1)).sum(dim=0)

        blocks.map(products)
        d_gene_weights = product * scale2 + of_gene * (beta2 - mean2 * scale2)
        d_beta2 = (of_gene * gene_weights).sum(dim=0)
        d_gamma2 = ((product - of_gene * mean2) * gene_weights).sum(dim=0) * inverse2
        first2, second2 = reduce(d_beta2), reduce(d_gamma2)
        slope = scale2 * inverse2 * second2 / n_rows
        level = scale2 * first2 / n_rows - mean2 * slope
        scaled_weights = gene_weights * scale2

        # Through the second Linear layer, the ReLU and, up to its statistics, the first norm.
        folded, offset = w1 * scale1.unsqueeze(1), beta1 - mean1 * scale1
        stored = torch.empty_like(decoded)

        def inner_layers(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            inner, back = blocks.buffer(part, len(w1)), blocks.buffer(part, len(w1))
            spread = blocks.buffer(part, hidden)
            d_w2, crossed, d_beta1 = torch.zeros_like(w2), torch.zeros_like(w1), torch.zeros_like(beta1)
            for groups, joint, n in blocks.joint(part):
                rows = torch.addmm(offset, joint, folded.T, out=_rows(inner, n)).clamp_(min=0)
                d_out = torch.mul(decoded[groups, part], slope, out=spread[: len(n)])
                d_out.add_(level).mul_(-n)
                d_out.addcmul_(grad[groups, part].unsqueeze(-1), scaled_weights[part])
                d_out = d_out.view(len(joint), hidden)
                d_w2.addmm_(d_out.T, rows)
                d_rows = torch.mm(d_out, w2, out=_rows(back, n))
                _through_relu(d_rows, rows)
                crossed.addmm_(d_rows.T, joint)
                d_beta1 += d_rows.sum(dim=0)
                torch.mm(d_rows, folded, out=stored[groups, part].view(len(joint), hidden))
            return d_w2, crossed, d_beta1

        d_w2, crossed, d_beta1 = _added(blocks.map(inner_layers))
        d_gamma1 = ((crossed * w1).sum(dim=1) - mean1 * d_beta1) * inverse1
        first1, second1 = reduce(d_beta1), reduce(d_gamma1)
        correlated = (w1.double() @ about).to(kind) * inverse1.unsqueeze(1)
        means = torch.outer(first1, total.to(kind)) + second1.unsqueeze(1) * correlated
        d_w1 = scale1.unsqueeze(1) * (crossed - means / n_rows)

        # The statistics of the first norm, then the ReLU of the joint vectors.
        mixing = w1.T @ (w1 * (scale1 * inverse1 * second1 / n_rows).unsqueeze(1))
        constant = (scale1 * first1 / n_rows) @ w1 - mean.to(kind) @ mixing
        d_genes = torch.zeros_like(genes)

        def outer_layer(part: slice) -> tuple[Tensor]:
            spread = blocks.buffer(part, hidden)
            d_perturbed = torch.zeros_like(perturbed)
            for groups, joint, n in blocks.joint(part):
                through = torch.addmm(constant, joint, mixing, out=_rows(spread, n)).view(len(n), -1, hidden)
                d_joint = torch.addcmul(stored[groups, part], through, n, value=-1, out=through)
                _through_relu(d_joint, joint.view(d_joint.shape))
                d_perturbed[groups] = d_joint.sum(dim=1)
                d_genes[blocks.variant_of[groups.start], part] += d_joint.sum(dim=0)
            return (d_perturbed,)

        (d_perturbed,) = _added(blocks.map(outer_layer))
        zero1, zero2 = torch.zeros_like(beta1), torch.zeros_like(beta2)
        return (
            *(d_genes, d_perturbed, d_gene_weights, d_w1, zero1, d_gamma1, d_beta1),
            *(d_w2, zero2, d_gamma2, d_beta2, None, None, None, None, None),
        )


def _rows(buffer: Tensor, counts: Tensor) -> Tensor:
    """The part of a buffer that as many groups as `counts` need, as rows."""
    return buffer[: len(counts)].view(-1, buffer.shape[-1])


def _through_relu(grad: Tensor, output: Tensor) -> None:
    """The gradient before a ReLU, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, output, 0.0, grad_input=grad)


def _added(parts: list[Any]) -> list[Tensor]:
    """Sums over slices of each returned tensor, in slice order."""
    return [torch.stack(values).sum(dim=0) for values in zip(*parts, strict=True)]


def _first_decoded(blocks: _Blocks, folded: Tensor, offset: Tensor, w2: Tensor) -> Tensor:
    """Mean decoded vector of the first block: sums of squares about it do not cancel."""
    for _, joint, _ in blocks.joint(blocks.slices[0]):
        return torch.addmm(offset, joint, folded.T).clamp_(min=0).mean(dim=0) @ w2.T
    return w2.new_zeros(len(w2))


def _joint_moments(blocks: _Blocks, part: slice) -> tuple[Tensor, Tensor]:
    """Weighted sum and Gram matrix of the joint vectors of a slice, float64, shapes (H,) and (H, H).

    Products are taken about the mean of the slice's first block: the variances do not cancel in float32.
    """
    total = torch.zeros(blocks.hidden, dtype=torch.float64, device=blocks.genes.device)
    gram = torch.zeros(blocks.hidden, blocks.hidden, dtype=torch.float64, device=blocks.genes.device)
    base = total
    for groups, joint, n in blocks.joint(part):
        if groups.start == 0:
            base = joint.mean(dim=0).double()
        joint -= base.to(joint.dtype)
        weighted = _weighted(joint, n)
        total += weighted.sum(dim=0)
        gram += weighted.T @ joint
    base = base.to(blocks.genes.dtype).double()
    n_own = blocks.counts.sum().double() * (part.stop - part.start)
    cross = torch.outer(base, total)
    return total + n_own * base, gram + cross + cross.T + n_own * torch.outer(base, base)
