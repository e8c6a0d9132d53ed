"""The training loop on a 30-line model: equal runs, accumulation, stopping, NaN, what is kept and logged."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="deep models need the extra vcbench[train]")

import torch
from mock_model import MockModel
from vcbench.baselines.training.checkpoint import load_training, load_weights
from vcbench.baselines.training.config import TrainingConfig
from vcbench.baselines.training.distributed import Processes
from vcbench.baselines.training.loop import fit
from vcbench.baselines.training.optimizers import NotFinite, rate_factor
from vcbench.data_specs.errors import ModelError, UsageError

ALONE = Processes(torch.device("cpu"))
CONFIG = TrainingConfig(epochs=4, batch_size=8, lr=0.02, precision="float64")


def run(folder, config=CONFIG, *, seed=1, weights_seed=0, model=None, resume=False, **options):
    torch.manual_seed(weights_seed)
    model = MockModel(config, **options) if model is None else model
    return model, fit(model, config, seed=seed, folder=folder, processes=ALONE, resume=resume)


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(tmp_path):
    first, _ = run(tmp_path / "a", dropout=0.2, norm=True)
    again, _ = run(tmp_path / "b", dropout=0.2, norm=True)
    other, _ = run(tmp_path / "c", dropout=0.2, norm=True, seed=2)
    assert same(first.module.state_dict(), again.module.state_dict())
    assert not same(first.module.state_dict(), other.module.state_dict())


def test_training_leaves_the_callers_generators_alone(tmp_path):
    torch.manual_seed(11)
    model = MockModel(CONFIG, dropout=0.5)
    before = torch.get_rng_state()
    fit(model, CONFIG, seed=1, folder=tmp_path, processes=ALONE)
    assert torch.equal(before, torch.get_rng_state())


def test_the_loop_learns_and_keeps_the_best_weights(tmp_path):
    config = replace(CONFIG, epochs=40)
    model, result = run(tmp_path, config)
    found = lines(tmp_path)
    values = [line["valid_mse"] for line in found]
    assert result.best == min(values) and result.stopped == "all steps done" and result.steps == 240
    assert values[-1] < 0.1 * values[0] and found[-1]["loss"] < 0.1 * found[0]["loss"]
    assert found[values.index(min(values))]["step"] == result.best_step
    module = MockModel(config).module
    module.load_state_dict(load_weights(tmp_path / "checkpoints" / "best"))
    model.module = module.eval()
    assert model.validate()["mse"] == pytest.approx(result.best, rel=1e-12)


def test_the_first_step_is_that_of_plain_torch(tmp_path):
    config = replace(CONFIG, steps=1, clip="norm", clip_at=0.1)
    model, _ = run(tmp_path, config)
    torch.manual_seed(0)
    plain = MockModel(config)
    from vcbench.baselines.training.seeding import numpy_generator

    rows = torch.from_numpy(numpy_generator(1, "order", 0).permutation(48)[:8])
    optimizer = torch.optim.Adam(plain.module.parameters(), lr=0.02)
    ((plain.module(plain.x[rows]) - plain.y[rows]) ** 2).mean().backward()
    torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 0.1)
    optimizer.step()
    assert same(model.module.state_dict(), plain.module.state_dict())


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_equals_a_bigger_batch(tmp_path, accumulate):
    small, _ = run(
        tmp_path / "a", replace(CONFIG, batch_size=24 // accumulate, accumulate=accumulate, clip="norm")
    )
    big, _ = run(tmp_path / "b", replace(CONFIG, batch_size=24, clip="norm"))
    for left, right in zip(small.module.parameters(), big.module.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
    assert lines(tmp_path / "a")[-1]["loss"] == pytest.approx(lines(tmp_path / "b")[-1]["loss"], rel=1e-9)


def test_resuming_at_every_checkpoint_gives_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    class Stopping(MockModel):
        stop_at = -1

        def train_step(self, batch, optimizers, position):
            if position.step == self.stop_at:
                raise Stop
            return super().train_step(batch, optimizers, position)

    config = replace(CONFIG, checkpoint_every=4, schedule="cosine", warmup=3)
    options = {"dropout": 0.3, "norm": True}
    whole, result = run(tmp_path / "whole", config, **options)
    for stop_at in (0, 3, 5, 6, 11, 23):
        folder = tmp_path / str(stop_at)
        torch.manual_seed(0)
        first = Stopping(config, **options)
        first.stop_at = stop_at
        with pytest.raises(Stop):
            run(folder, config, model=first)
        second, resumed = run(folder, config, weights_seed=99 if stop_at > 4 else 0, resume=True, **options)
        assert same(whole.module.state_dict(), second.module.state_dict()), stop_at
        assert (resumed.best, resumed.best_step, resumed.steps) == (
            result.best,
            result.best_step,
            result.steps,
        )
        timings = ("elapsed_s", "cells_per_s")
        expected = [{k: v for k, v in line.items() if k not in timings} for line in lines(tmp_path / "whole")]
        found = [{k: v for k, v in line.items() if k not in timings} for line in lines(folder)]
        assert [line["step"] for line in found] == [6, 12, 18, 24]
        for left, right in zip(found, expected, strict=True):
            assert left == pytest.approx(right, rel=1e-12)


def test_a_finished_run_resumes_to_itself(tmp_path):
    _, first = run(tmp_path)
    weights = load_weights(tmp_path / "checkpoints" / "last")
    _, again = run(tmp_path, resume=True)
    assert (again.steps, again.best, again.train_s) == (first.steps, first.best, first.train_s)
    assert same(weights, load_weights(tmp_path / "checkpoints" / "last"))


def test_resuming_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UsageError, match=r"setting lr \(was 0.02, is 0.5\)"):
        run(tmp_path, replace(CONFIG, lr=0.5), resume=True)
    with pytest.raises(UsageError, match=r"changed: seed \(was 1, is 2\)"):
        run(tmp_path, seed=2, resume=True)


class Diverging(MockModel):
    """Its loss is NaN, or only its gradient infinite, at one step."""

    def __init__(self, config, at, kind):
        super().__init__(config)
        self.at, self.kind, self.step = at, kind, -1

    def train_step(self, batch, optimizers, position):
        self.step = position.step
        return super().train_step(batch, optimizers, position)

    def loss(self, batch):
        loss = super().loss(batch)
        if self.step != self.at:
            return loss
        if self.kind == "loss":
            return loss * float("nan")
        first = next(self.module.parameters())
        # The square root has an infinite slope at 0 and the value 0.
        return loss + ((first - first.detach()) ** 2).sum().sqrt()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path, kind):
    config = replace(CONFIG, checkpoint_every=2)
    torch.manual_seed(0)
    model = Diverging(config, 9, kind)
    with pytest.raises(
        NotFinite, match=r"not finite at step 9\. The last good state stays in checkpoints/last"
    ) as caught:
        run(tmp_path, config, model=model)
    assert caught.value.step == 9 and isinstance(caught.value, ModelError)
    kept = load_weights(tmp_path / "checkpoints" / "last")
    assert load_training(tmp_path / "checkpoints" / "last")["loop"]["step"] == 8
    # The step with the NaN changed nothing: only step 8 lies between the checkpoint and the weights in memory.
    reference, _ = run(tmp_path / "reference", replace(config, steps=9))
    assert same(model.module.state_dict(), reference.module.state_dict()) and not same(
        kept, reference.module.state_dict()
    )


def test_early_stopping_counts_validations_without_a_better_value(tmp_path):
    class Worsening(MockModel):
        values = iter([5.0, 4.0, 4.0, 4.5, 6.0, 1.0])

        def validate(self):
            return {"mse": next(self.values)}

    config = replace(CONFIG, epochs=6, patience=3)
    torch.manual_seed(0)
    _, result = run(tmp_path, config, model=Worsening(config))
    assert (result.best, result.best_step, result.epochs) == (4.0, 12, 5)
    assert result.stopped == "no better mse in 3 validations"


def test_a_select_of_the_evaluator_has_its_direction(tmp_path):
    class TwoValues(MockModel):
        values = iter([0.1, 0.5, 0.3, 0.2])

        def validate(self):
            return {"mse": 1.0, "pearson_delta": next(self.values)}

    config = replace(CONFIG, select="pearson_delta")
    torch.manual_seed(0)
    _, result = run(tmp_path / "a", config, model=TwoValues(config))
    assert (result.select, result.best, result.best_step) == ("pearson_delta", 0.5, 12)
    with pytest.raises(ModelError, match="select=mae is no validation metric; there are mse"):
        run(tmp_path / "b", replace(CONFIG, select="mae"))


def test_without_validation_the_latest_weights_are_the_best(tmp_path):
    class Blind(MockModel):
        def validate(self):
            return {}

    torch.manual_seed(0)
    model, result = run(tmp_path, model=Blind(CONFIG))
    assert result.best != result.best and result.best_step == result.steps == 24
    assert same(load_weights(tmp_path / "checkpoints" / "best"), model.module.state_dict())


def test_no_epochs_keep_the_initial_weights(tmp_path):
    model, result = run(tmp_path, replace(CONFIG, epochs=0))
    torch.manual_seed(0)
    assert same(load_weights(tmp_path / "checkpoints" / "best"), MockModel(CONFIG).module.state_dict())
    assert result.steps == 0 and result.best == model.validate()["mse"]


def test_rate_factors():
    step = TrainingConfig(schedule="step", schedule_factor=0.5, schedule_every=2)
    assert [rate_factor(step, step=0, epoch=e, n_steps=9) for e in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = TrainingConfig(schedule="cosine", schedule_factor=0.1, warmup=2)
    found = [rate_factor(cosine, step=s, epoch=0, n_steps=7) for s in range(7)]
    assert (
        found[:3] == [0.5, 1.0, 1.0] and found[4] == pytest.approx(0.55) and found[-1] == pytest.approx(0.1)
    )


def test_bf16_trains_float32_weights(tmp_path):
    config = replace(CONFIG, precision="bf16", epochs=2)
    model, result = run(tmp_path, config, dtype=torch.float32)
    assert result.steps == 12 and next(model.module.parameters()).dtype == torch.float32
    plain, _ = run(tmp_path / "plain", replace(config, precision="float32"), dtype=torch.float32)
    assert not same(model.module.state_dict(), plain.module.state_dict())
