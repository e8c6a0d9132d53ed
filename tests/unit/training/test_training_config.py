"""Settings: presets, TOML and `--set` text, without torch."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from vcbench.baselines.settings import config_dict, describe, parse_assignments
from vcbench.baselines.training.config import TrainingConfig, preset_names, read_toml, resolve_config
from vcbench.baselines.training.sampler import BatchPlan
from vcbench.baselines.training.seeding import numpy_generator, torch_seed
from vcbench.data_specs.errors import ModelError, UnknownName, UsageError


@dataclass(frozen=True)
class SmallConfig(TrainingConfig):
    hidden: int = 8
    lr: float = 0.01


def resolve(*assignments, presets=None):
    return resolve_config(SmallConfig, parse_assignments(assignments), model="small", presets=presets)


def test_text_becomes_typed_fields():
    config = resolve("lr=3e-4", "hidden=16", "compile=true", "clip=norm", "precision=bf16", "select=mse")
    assert (config.lr, config.hidden, config.compile, config.clip) == (3e-4, 16, True, "norm")
    assert resolve() == SmallConfig() and resolve().lr == 0.01


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("learning_rate=1", UnknownName, "no setting of small 'learning_rate'"),
        ("batchsize=2", UnknownName, "Did you mean 'batch_size'"),
        ("lr=fast", UsageError, "--set lr=fast: expected a number"),
        ("batch_size=1.5", UsageError, "expected a whole number"),
        ("clip=maybe", UsageError, "none|norm|value"),
        ("preset=upstram", UnknownName, "Did you mean 'upstream'"),
    ],
)
def test_wrong_settings_name_the_problem(tmp_path, assignment, error, message):
    (tmp_path / "upstream.toml").write_text("lr = 0.5\n")
    with pytest.raises(error, match=message.replace("|", r"\|")):
        resolve(assignment, presets=tmp_path)


def test_values_out_of_range_are_refused_together():
    with pytest.raises(
        UsageError, match=r"lr must be positive, not 0.0; batch_size must be at least 1, not 0"
    ):
        resolve("lr=0", "batch_size=0")
    with pytest.raises(UsageError, match="patience needs a validation"):
        resolve("patience=2", "validation=none")


def test_presets_lie_between_defaults_and_settings(tmp_path):
    (tmp_path / "upstream.toml").write_text('hidden = 64\nlr = 0.5\nclip = "value"\n')
    config = resolve("preset=upstream", "lr=0.25", presets=tmp_path)
    assert (config.preset, config.hidden, config.lr, config.clip) == ("upstream", 64, 0.25, "value")
    assert preset_names(tmp_path) == ["upstream"] and preset_names(None) == []
    (tmp_path / "upstream.toml").write_text("hiden = 64\n")
    with pytest.raises(UnknownName, match="Did you mean 'hidden'"):
        resolve("preset=upstream", presets=tmp_path)


def test_toml_files_are_flat_tables(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("lr = 0.5\nepochs = 3\n")
    assert read_toml(file) == {"lr": 0.5, "epochs": 3}
    for text, message in (("lr = ", "not a TOML file"), ("[a]\nlr = 1\n", "a is not")):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_toml(file)
    with pytest.raises(UsageError, match="not a TOML file"):
        read_toml(tmp_path / "absent.toml")


def test_every_field_is_described():
    rows = describe(TrainingConfig)
    assert [name for name, _, _ in rows] == list(config_dict(TrainingConfig()))
    for name, _, _ in rows:
        assert name in (TrainingConfig.__doc__ or "")


def test_importing_training_loads_no_heavy_library():
    code = (
        "import sys, vcbench.baselines.deep, vcbench.baselines.training.data, vcbench.baselines.training.selection\n"
        "print([m for m in ('torch', 'pydantic', 'anndata', 'scanpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("n_rows", "batch", "accumulate", "processes"), [(48, 8, 1, 1), (50, 4, 3, 2), (7, 8, 1, 2)]
)
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_row_is_taken_once_per_epoch(n_rows, batch, accumulate, processes, drop_last):
    plan = BatchPlan(n_rows, batch, accumulate, processes, drop_last=drop_last)
    order = np.random.default_rng(0).permutation(n_rows)
    taken = []
    for step in range(plan.n_steps):
        ranks = [plan.passes(order, step, rank) for rank in range(processes)]
        own = [rows for passes in ranks for rows in passes.own]
        assert len(own) == accumulate * processes and all(len(rows) for rows in own)
        assert sorted(np.concatenate(own)) == sorted(ranks[0].whole)
        taken += list(ranks[0].whole)
    assert len(taken) == len(set(taken))
    rest = n_rows % plan.step_rows
    # A rest too small to give each pass a row is left out as well.
    left_out = rest if (drop_last and rest < n_rows) or rest < plan.n_parts else 0
    assert len(taken) == n_rows - left_out


def test_steps_depend_on_the_product_of_batch_accumulation_and_processes():
    order = np.arange(40)
    wholes = [
        BatchPlan(40, batch, accumulate, processes).passes(order, 1).whole.tolist()
        for batch, accumulate, processes in [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]
    ]
    assert wholes == [list(range(8, 16))] * 4
    with pytest.raises(ModelError, match="3 training cells cannot fill one step of 4 passes"):
        BatchPlan(3, 1, 4)


def test_named_generators_are_reproducible_and_distinct():
    first = numpy_generator(1, "order", 3).integers(0, 2**60, 4).tolist()
    assert first == numpy_generator(1, "order", 3).integers(0, 2**60, 4).tolist()
    others = [
        numpy_generator(*args).integers(0, 2**60, 4).tolist()
        for args in [(2, "order", 3), (1, "order", 4), (1, "epoch", 3)]
    ]
    assert all(other != first for other in others)
    assert torch_seed(1, "a") == torch_seed(1, "a") != torch_seed(1, "b") and 0 <= torch_seed(1, "a") < 2**63
