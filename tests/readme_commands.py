"""Print the commands of the README's first code block: the two that set up, run and test vcbench."""

import re
from pathlib import Path


def first_commands() -> list[str]:
    """The command lines of the first `sh` block, without comments."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    if block is None:
        raise SystemExit("README.md has no ```sh block")
    return [line for line in block[1].splitlines() if line and not line.startswith("#")]


if __name__ == "__main__":
    print("\n".join(first_commands()))
