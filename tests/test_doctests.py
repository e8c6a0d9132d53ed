"""Every example in a docstring runs and prints what it says."""

import doctest
import pkgutil
from importlib import import_module

import pytest

PARTS = ("data_specs", "evaluator", "submission", "baselines")


def module_names():
    for part in PARTS:
        package = import_module(f"vcbench.{part}")
        yield package.__name__
        for info in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}."):
            yield info.name


@pytest.mark.parametrize("name", sorted(module_names()))
def test_examples(name):
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vcbench"):
            raise
        pytest.skip(f"{name} needs {error.name}")
    assert doctest.testmod(module).failed == 0
