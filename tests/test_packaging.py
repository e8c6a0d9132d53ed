"""The wheel holds exactly the packages on disk, under one import name."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("data_specs", "evaluator", "submission", "baselines")


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_list_equals_folders_on_disk():
    on_disk = {
        "vcbench." + ".".join(init.parent.relative_to(ROOT).parts)
        for part in PARTS
        for init in (ROOT / part).rglob("__init__.py")
    }
    assert on_disk == set(settings()["tool"]["setuptools"]["packages"])


def test_every_data_file_is_packaged():
    patterns = settings()["tool"]["setuptools"]["package-data"]
    for part in PARTS:
        packaged = {file for pattern in patterns[f"vcbench.{part}"] for file in (ROOT / part).glob(pattern)}
        data = {
            f
            for f in (ROOT / part).rglob("*")
            if f.is_file() and f.suffix not in (".py", ".pyc", ".nbi", ".nbc")
        }
        left_out = {f for f in data - packaged if "__pycache__" not in f.parts and f.suffix != ".md"}
        assert not left_out, f"not in the wheel: {sorted(map(str, left_out))}"


def test_version_stands_in_the_changelog():
    version = settings()["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


def test_no_init_file_claims_the_namespace():
    assert not (ROOT / "vcbench").exists()
