"""Data flows one way, start-up is light, and no module outgrows its readers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "data_specs": set(),
    "evaluator": {"data_specs"},
    "submission": {"data_specs", "evaluator"},
    "baselines": {"data_specs", "evaluator", "submission"},
}
MODULES = sorted(file for part in MAY_IMPORT for file in (ROOT / part).rglob("*.py"))
HEAVY = ("torch", "scanpy", "anndata")


def imported_parts(file: Path) -> set[str]:
    """Parts other than its own that a module imports, relatively or by full name."""
    inside = file.relative_to(ROOT).parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            if node.level:
                package = ("vcbench", *inside[:-1])
                base = package[: len(package) - node.level + 1]
                names = [".".join([*base, *([node.module] if node.module else [])])]
                names += [f"{names[0]}.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "vcbench" and len(pieces) > 1:
                found.add(pieces[1])
    return (found & set(MAY_IMPORT)) - {inside[0]}


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_follow_the_direction(file):
    part = file.relative_to(ROOT).parts[0]
    assert imported_parts(file) <= MAY_IMPORT[part]


def test_the_rule_sees_a_reversed_arrow(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "data_specs" / "x.py"
    file.parent.mkdir()
    file.write_text("from ..evaluator.bulk import group_moments\n")
    assert imported_parts(file) == {"evaluator"}


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(ROOT)))
def test_modules_stay_readable(file):
    assert len(file.read_text().splitlines()) <= 520


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy():
    code = (
        "from vcbench.evaluator.cli import cli; from vcbench.data_specs.cli_support import run\n"
        "assert run(cli, ['--help']) == 0\nimport sys; assert 'numpy' not in sys.modules"
    )
    assert loaded_after(code) == set()


def test_validate_loads_nothing_heavy(tmp_path):
    from builders import standard_h5ad

    path = standard_h5ad(tmp_path / "a.h5ad")
    code = (
        "from vcbench.evaluator.cli import cli; from vcbench.data_specs.cli_support import run\n"
        f"assert run(cli, ['validate', {str(path)!r}, '--edition', 'core']) == 0"
    )
    assert loaded_after(code) == set()


def test_help_takes_under_300_ms_of_cpu():
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vcbench.evaluator.cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.3
