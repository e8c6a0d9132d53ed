"""Every name a part exports is what it says, whatever was imported before: functions never hide behind modules."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

PARTS = ("data_specs", "evaluator", "submission")
FUNCTIONS = {
    "data_specs": ("convert", "load_edition", "load_dataset"),
    "evaluator": ("score", "validate", "compare", "read_entries"),
    "submission": ("pack", "unpack", "inspect_file", "emit_cells"),
}


@pytest.mark.parametrize("part", PARTS)
def test_exports_resolve_to_objects(part):
    package = import_module(f"vcbench.{part}")
    for name in package.__all__:
        assert not inspect.ismodule(getattr(package, name)), name
    with pytest.raises(AttributeError):
        _ = package.no_such_name


@pytest.mark.parametrize("part", PARTS)
def test_verbs_stay_functions_after_every_module_is_imported(part):
    code = (
        "import pkgutil, inspect; from importlib import import_module\n"
        f"p = import_module('vcbench.{part}')\n"
        "for m in pkgutil.iter_modules(p.__path__, p.__name__ + '.'): import_module(m.name)\n"
        f"for n in {FUNCTIONS[part]!r}: assert callable(getattr(p, n)), n\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
