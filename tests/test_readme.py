"""The README's commands exist, and CI runs its first two as they stand."""

import re
from pathlib import Path

import pytest
from command_lines import parse
from readme_commands import first_commands

ROOT = Path(__file__).parents[1]


def command_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`(vcbench [^`]+)`", text)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = [line for line in [*lines, *inline] if line.startswith("vcbench ")]
    return [re.split(r"\s{2,}#", line)[0] for line in found]


@pytest.mark.parametrize("line", command_lines())
def test_command_parses(line):
    parse(line)


def test_the_two_commands_are_what_ci_runs():
    setup, tests = first_commands()
    assert "pip install" in setup and setup.endswith("vcbench demo")
    assert "pytest" in tests
    assert "readme_commands.py" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "doctor" in " ".join(command_lines())
