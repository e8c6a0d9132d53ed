"""The demo trains a network only where torch is installed, and its settings are ones that the model takes."""

from vcbench.baselines import demo
from vcbench.baselines.registry import create, is_deep


def test_network_joins_only_where_torch_is_installed(monkeypatch):
    monkeypatch.setattr(demo, "has_torch", lambda: False)
    simple = demo.demo_models()
    assert simple and not any(is_deep(model.name) for model in simple)
    monkeypatch.setattr(demo, "has_torch", lambda: True)
    assert demo.demo_models() == [*simple, demo.NETWORK]


def test_settings_of_every_model_are_accepted(monkeypatch):
    monkeypatch.setattr(demo, "has_torch", lambda: True)
    for model in demo.demo_models():
        assert create(model.name, model.settings) is not None
