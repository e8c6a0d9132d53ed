"""What threads do that have nothing to do. Imports nothing of numba or torch: it must come before them."""

from __future__ import annotations

import os


def let_idle_threads_sleep() -> None:
    """Have OpenMP's waiting threads sleep, unless the user chose otherwise (`OMP_WAIT_POLICY`).

    Spinning ones doubled the CPU seconds of a scoring run on 16 cores and made it no shorter. Has an effect only before
    the first parallel kernel of the process, so commands call it first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
