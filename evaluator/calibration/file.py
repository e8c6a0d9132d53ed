"""The calibration file: what an edition's metrics can tell apart on one truth, and whether it fits ScoreCards."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import make_issue
from ...data_specs.remote import input_path

if TYPE_CHECKING:
    from ..scorecard import ScoreCard

CALIBRATION_VERSION = 1


class MetricCalibration(BaseModel):
    """One metric on one truth.

    The references are aggregated values, null where the metric has none. `dynamic_range_fraction` is the share of the
    way from the mean to the perfect value that the interpolated duplicate covers; `bound_discrimination` the share of
    perturbations in which the duplicate is better than the mean (half for ties). `discriminates` says whether the
    replicate is better than the mean beyond chance, `reason` on what ground, or why a field is null.
    """

    model_config = ConfigDict(extra="forbid")
    no_change: float | None
    mean: float | None
    permuted: float | None
    replicate: float | None
    interpolated_duplicate: float | None
    dynamic_range_fraction: float | None
    bound_discrimination: float | None
    discriminates: bool
    reason: str


class Calibration(BaseModel):
    """A calibration: metrics by name, and the reliability of every perturbation.

    `truth` holds the sha256 of the file, or null and the hashes of several `parts`. `left_out` maps
    `context/perturbation` to the reason.
    """

    model_config = ConfigDict(extra="forbid")
    calibration_version: int = CALIBRATION_VERSION
    edition: str
    profile: str
    truth: dict[str, Any]
    metrics: dict[str, MetricCalibration]
    perturbations: list[dict[str, Any]] = Field(default_factory=list)
    reliability: dict[str, dict[str, Any]] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def to_text(self) -> str:
        """The file's content."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    def mark(self, metric: str) -> str | None:
        """Why the metric cannot tell a replicate from the mean here; None when it can or is not calibrated."""
        found = self.metrics.get(metric)
        return None if found is None or found.discriminates else found.reason


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """The calibration in a JSON file. Raises `InvalidFile` (E731) when it is missing, broken or too new."""
    file = input_path(path)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(file, str(error)) from error
    version = table.get("calibration_version") if isinstance(table, dict) else None
    if not isinstance(version, int) or version > CALIBRATION_VERSION:
        raise _unreadable(file, f"calibration version {version!r}")
    try:
        return Calibration.model_validate(table)
    except ValueError as error:
        raise _unreadable(file, " ".join(str(error).split())) from error


def _unreadable(file: Path, found: str) -> InvalidFile:
    issue = make_issue(
        "E731",
        where=file.name,
        found=found,
        expected=f"a calibration file, version {CALIBRATION_VERSION} or older",
        edition="EDITION",
    )
    return InvalidFile([issue])


def truth_record(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The hash of the truth among the inputs of a ScoreCard, or of its parts by context."""
    parts = {key: item.get("sha256") for key, item in inputs.items() if key.split(":")[0] == "truth"}
    if len(parts) == 1:
        return {"sha256": next(iter(parts.values()))}
    return {"sha256": None, "parts": dict(sorted(parts.items()))}


def check_belongs(calibration: Calibration, card: ScoreCard, *, path: str | os.PathLike[str]) -> None:
    """Refuse a calibration of another edition, profile or truth. Raises `InvalidFile` (E732)."""
    theirs = truth_record(card.inputs)
    for what, mine, wanted in (
        ("edition", calibration.edition, card.edition),
        ("profile", calibration.profile, card.profile),
        ("truth", calibration.truth, theirs),
    ):
        if mine == wanted and not (what == "truth" and not _known(mine)):
            continue
        issue = make_issue(
            "E732",
            where=input_path(path).name,
            found=f"{what} {_shown(mine)}",
            expected=f"{what} {_shown(wanted)}, as in {card.name}",
            what=what,
            edition=shlex.quote(card.edition),
            profile=shlex.quote(card.profile),
        )
        raise InvalidFile([issue])


def _known(truth: Any) -> bool:
    hashes = [truth.get("sha256")] if truth.get("parts") is None else list(truth["parts"].values())
    return bool(hashes) and all(hashes)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts = value.get("parts")
    if parts:
        return ", ".join(f"{key} {_short(digest)}" for key, digest in parts.items())
    return _short(value.get("sha256"))


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}…" if digest else "without a hash (an object in memory)"
