"""ScoreCards of earlier versions stay readable."""

import json
from pathlib import Path

import pytest
from vcbench.data_specs.errors import UsageError
from vcbench.evaluator.scorecard import SCORECARD_VERSION, ScoreCard, read_scorecard

FOLDER = Path(__file__).parents[2] / "golden" / "scorecards"
CARDS = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_committed_card_is_readable(path):
    stored = json.loads(path.read_text())
    card = read_scorecard(path)
    assert card.scorecard_version == stored["scorecard_version"] <= SCORECARD_VERSION
    assert {name: value.value for name, value in card.metrics.items()} == {
        name: value["value"] for name, value in stored["metrics"].items()
    }
    assert ScoreCard.model_validate_json(card.model_dump_json()) == card


def test_every_version_has_a_card():
    found = {json.loads(path.read_text())["scorecard_version"] for path in CARDS}
    assert found == set(range(1, SCORECARD_VERSION))  # the current version is written by every other test


def test_a_version_1_card_has_no_intervals():
    card = read_scorecard(FOLDER / "v1_core_means.json")
    value = card.metrics["pearson_delta"]
    assert value.value is not None
    assert (value.low, value.high, value.level, value.interval_method) == (None, None, None, None)
    assert card.score_interval is None


@pytest.mark.parametrize("name", ["v2_core_means", "v2_vcc2026"])
def test_a_version_2_card_has_intervals_and_no_provenance(name):
    card = read_scorecard(FOLDER / f"{name}.json")
    assert any(value.low is not None for value in card.metrics.values())
    assert card.provenance.model is None and card.provenance.seeds == {}


def test_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "scorecard.json"
    stored = json.loads(CARDS[0].read_text()) | {"scorecard_version": SCORECARD_VERSION + 1}
    path.write_text(json.dumps(stored))
    with pytest.raises(UsageError, match="reads up to"):
        read_scorecard(path)
