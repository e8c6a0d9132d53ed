"""Every preset that a deep model ships can be used, and the data sets' presets are told about."""

from pathlib import Path

import pytest
from vcbench.baselines.registry import baseline_class, create

ROOT = Path(__file__).parents[3]
DEEP = ("gears", "cpa", "cellot", "scgpt")
OF_DATA_SETS = ("norman2019", "adamson2016", "replogle2022")


@pytest.mark.parametrize("model", DEEP)
def test_presets_are_settings(model):
    pytest.importorskip("torch", reason="torch is not installed")
    levels = (ROOT / "docs" / "levels.md").read_text(encoding="utf-8")
    for name in baseline_class(model).preset_names():
        config = create(model, {"preset": name}).config
        assert config.preset == name
        if name in OF_DATA_SETS:
            assert f"`{model}` `preset={name}`" in levels
