"""Batch order: an epoch's rows cut into optimizer steps, and each step into the passes of all processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import ModelError


@dataclass(frozen=True)
class Passes:
    """The passes of one optimizer step for one process; `whole` holds the rows of all passes and processes."""

    whole: np.ndarray
    own: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class BatchPlan:
    """How many steps an epoch has, and which rows each takes. The state of the order is (epoch, step in epoch).

    One step takes `batch_size * accumulate * n_processes` rows: pass by pass, in each pass process by process, so
    the rows of a step depend on their product only. An incomplete last step is left out with `drop_last` (unless
    it is the only one), and otherwise split evenly; rows too few to give every pass one are left out.
    """

    n_rows: int
    batch_size: int
    accumulate: int = 1
    n_processes: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.n_rows < self.n_parts:
            raise ModelError(
                f"{self.n_rows} training cells cannot fill one step of {self.n_parts} passes "
                f"(accumulate {self.accumulate}, processes {self.n_processes})."
            )

    @property
    def n_parts(self) -> int:
        """Passes of one step over all processes."""
        return self.accumulate * self.n_processes

    @property
    def step_rows(self) -> int:
        """Rows of a full step."""
        return self.batch_size * self.n_parts

    @property
    def cells_per_step(self) -> int:
        """Rows of a step, unless it is an incomplete last one."""
        return min(self.step_rows, self.n_rows)

    @property
    def n_steps(self) -> int:
        """Optimizer steps of an epoch, at least 1."""
        full, rest = divmod(self.n_rows, self.step_rows)
        if full == 0:
            return 1
        return full + (not self.drop_last and rest >= self.n_parts)

    def passes(self, order: np.ndarray, step: int, rank: int = 0) -> Passes:
        """The rows of step `step` of an epoch with this order, and the passes of process `rank`."""
        whole = order[step * self.step_rows : (step + 1) * self.step_rows]
        parts = np.array_split(whole, self.n_parts)
        return Passes(whole, tuple(parts[rank :: self.n_processes]))
