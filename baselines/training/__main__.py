"""`torchrun -m vcbench.baselines.training NAME DATA ... -o RUN`: the command `vcbench train` on several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vcbench train` with these arguments and return its exit code."""
    from ...data_specs.cli_support import run
    from ..cli import train

    return run(train, arguments)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
