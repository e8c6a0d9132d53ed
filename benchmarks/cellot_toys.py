"""CellOT on samples with known answers: MMD over iterations, error against the optimal map, CPU time to a given MMD.

Usage: cellot_toys.py [--iterations 4000] [--every 250] [--upstream-iterations 4000] [--report FILE.md]

Three problems of 50 dimensions, 4,000 cells a side, a fifth of them for tests: the mixture of the specification (three
components, shifts of different size, times 1.1), two Gaussians (the optimal map is affine), and a mixture pushed by the
gradient of a convex function (the optimal map by construction). All are maps of one stack.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from cellot_loop import Loop
from cellot_stack import Stack, joined
from machine import machine
from torch import Tensor
from vcbench.baselines.cellot.config import CellotConfig
from vcbench.baselines.cellot.measures import EVALUATION_GAMMAS, TRAINING_GAMMAS, mmd

DIM, CELLS, TESTED = 50, 4000, 500
LIMIT = 0.006


@dataclass(frozen=True)
class Problem:
    """A name, both samples (n, d), and the optimal map of the source, None where it is not known."""

    name: str
    source: Tensor
    target: Tensor
    optimal: Tensor | None


def mixture(seed: int) -> Problem:
    """The toy of the specification: not a gradient map, but components stay apart, so each goes to its own."""
    g = torch.Generator().manual_seed(seed)
    means, shifts = 1.5 * torch.randn(3, DIM, generator=g), torch.randn(3, DIM, generator=g)
    shifts = shifts * torch.tensor([[1.0], [0.2], [0.0]])

    def draw() -> tuple[Tensor, Tensor]:
        which = torch.randint(3, (CELLS,), generator=g)
        return means[which] + 0.5 * torch.randn(CELLS, DIM, generator=g), which

    source, _ = draw()
    fresh, which = draw()
    return Problem(f"mixture, seed {seed}", source, 1.1 * fresh + shifts[which], None)


def gaussians(seed: int) -> Problem:
    """N(0, I) to N(m, S): T(x) = m + S^(1/2) x."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=g))[0]
    root = basis @ torch.diag(0.6 + 0.8 * torch.rand(DIM, generator=g)) @ basis.mT
    mean = 0.5 * torch.randn(DIM, generator=g)
    source, fresh = (torch.randn(CELLS, DIM, generator=g) for _ in range(2))
    return Problem("Gaussians", source, mean + fresh @ root, mean + source @ root)


def pushed_mixture(seed: int) -> Problem:
    """A mixture under the gradient of 1.05/2·|x|² + Σ_k softplus(a_k·x - b_k)."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(3, DIM, generator=g)
    directions, offsets = 0.3 * torch.randn(4, DIM, generator=g), torch.randn(4, generator=g)

    def draw() -> Tensor:
        which = torch.randint(3, (CELLS,), generator=g)
        return means[which] + 0.5 * torch.randn(CELLS, DIM, generator=g)

    def push(x: Tensor) -> Tensor:
        return 1.05 * x + 3.0 * torch.sigmoid(x @ directions.mT - offsets) @ directions

    source = draw()
    return Problem("pushed mixture", source, push(draw()), push(source))


def curve(
    problems: list[Problem], config: CellotConfig, iterations: int, every: int
) -> tuple[list[tuple[int, float, list[float], list[float]]], list[float | None]]:
    """(iteration, CPU seconds per map, MMD, MMD with evaluation gammas) on test cells; the map errors at the end."""
    n_train = CELLS * 4 // 5
    test = slice(n_train, n_train + TESTED)
    source, target = (joined([getattr(p, side) for p in problems]) for side in ("source", "target"))
    torch.manual_seed(0)
    stack = Stack(source[:, :n_train], target[:, :n_train], config)
    rows, spent = [], 0.0
    for iteration in range(1, iterations + 1):
        start = time.process_time()
        stack.iteration()
        spent += time.process_time() - start
        if iteration % every == 0:
            moved = stack.move(source[:, test])
            found = [
                mmd(moved, target[:, test], gammas=gammas).tolist()
                for gammas in (TRAINING_GAMMAS, EVALUATION_GAMMAS)
            ]
            rows.append((iteration, spent / len(problems), *found))
    moved = stack.move(source[:, test])
    errors = [
        None if p.optimal is None else map_error(moved[i], p.optimal[test], target[i])
        for i, p in enumerate(problems)
    ]
    return rows, errors


def map_error(moved: Tensor, optimal: Tensor, target: Tensor) -> float:
    """Mean |T - T*|² over the total variance of the target: 0 is the optimal map, 1 the constant one."""
    return float(((moved - optimal) ** 2).sum(dim=1).mean() / target.var(dim=0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--upstream-iterations", type=int, default=4000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--loop-iterations", type=int, default=40)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = [mixture(0), mixture(1), gaussians(2), pushed_mixture(3)]
    lines = [
        "# CellOT on samples with known answers",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} on {machine()}, torch "
        f"{version('torch')} CPU, one thread; batch 256, ten steps of g for each of f; MMD with the training gammas on "
        f"{TESTED} test cells a side. Identity: "
        + ", ".join(f"{p.name} {reference(p):.4f}" for p in problems)
        + ".",
        "",
    ]
    first: dict[str, tuple[int, float] | None] = {}
    for title, config, iterations in (
        ("default initial weights", CellotConfig(lr=args.lr), args.iterations),
        ("upstream's initial weights", CellotConfig(init="upstream"), args.upstream_iterations),
    ):
        if not iterations:
            continue
        rows, errors = curve(problems, config, iterations, args.every)
        lines += table(title, problems, rows, errors)
        reached = [(i, spent) for i, spent, found, _ in rows if max(found[:2]) <= LIMIT]
        first[title] = reached[0] if reached else None
        lines += [f"Both mixtures at {LIMIT} or below: {shown(first[title])}.", ""]
    loop = Loop(problems[0].source[: CELLS * 4 // 5], problems[0].target[: CELLS * 4 // 5])
    loop.iteration()
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(max(1, args.loop_iterations // 5)):
            loop.iteration()
        times.append((time.process_time() - start) / max(1, args.loop_iterations // 5))
    step = statistics.median(times)
    lines.append(f"The module loop takes {1000 * step:.1f} CPU ms per outer iteration.")
    theirs, ours = first.get("upstream's initial weights"), first.get("default initial weights")
    if theirs and ours:
        lines.append(
            f"With upstream's settings it needs {theirs[0]:,} iterations to {LIMIT}, so {theirs[0] * step:.0f} CPU s; "
            f"the stack with the default ones {ours[1]:.0f} CPU s per map: {theirs[0] * step / ours[1]:.1f} times less."
        )
    text = "\n".join(lines) + "\n"
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    print(text)


def reference(problem: Problem) -> float:
    test = slice(CELLS * 4 // 5, CELLS * 4 // 5 + TESTED)
    return float(mmd(problem.source[None, test], problem.target[None, test])[0])


def shown(reached: tuple[int, float] | None) -> str:
    return (
        "not reached"
        if reached is None
        else f"after {reached[0]:,} iterations, {reached[1]:.0f} CPU s per map"
    )


def table(title: str, problems: list[Problem], rows, errors) -> list[str]:
    lines = [f"## {title.capitalize()}", ""]
    lines += ["| iterations | CPU s per map | " + " | ".join(p.name for p in problems) + " |"]
    lines += ["|---" * (len(problems) + 2) + "|"]
    for iteration, spent, found, _ in rows:
        cells = " | ".join(f"{value:.4f}" for value in found)
        lines.append(f"| {iteration:,} | {spent:.0f} | {cells} |")
    last = ", ".join(f"{p.name} {v:.4f}" for p, v in zip(problems, rows[-1][3], strict=True))
    known = ", ".join(
        f"{p.name} {100 * e:.1f} %" for p, e in zip(problems, errors, strict=True) if e is not None
    )
    return [*lines, "", f"Evaluation gammas at the end: {last}. Error of the map at the end: {known}.", ""]


if __name__ == "__main__":
    main()
