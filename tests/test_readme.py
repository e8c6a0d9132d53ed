"""CI runs the README's first two commands as they stand; `tests/docs` runs the others."""

from pathlib import Path

from readme_commands import first_commands

ROOT = Path(__file__).parents[1]


def test_the_two_commands_are_what_ci_runs():
    setup, tests = first_commands()
    assert "pip install" in setup and setup.endswith("vcbench demo")
    assert "pytest" in tests
    assert "readme_commands.py" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
