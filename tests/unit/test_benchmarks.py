"""The benchmark scripts name only what the package has."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
OPTIONAL = ("torch", "safetensors")


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_imports_of_vcbench_exist(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    named = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vcbench")
        for alias in node.names
    ]
    for module, name in named:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                pytest.skip(f"needs {error.name}")
            raise
        inside = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}")
        assert hasattr(found, name) or inside, f"{script.name}: {module} has no {name}"
