"""Marks, which describe an entry, and flags, which suspect an exploit; each with the numbers behind it.

The limits lie outside what real cells and trained models show and inside what the exploits do;
`benchmarks/results/probes.md` has the measured ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .diagnostics import Diagnostics

# Marks.
NO_CHANGE_RATIO = 0.1
ALIKE_SPREAD = 0.1
COLLAPSE_CORRELATION = 0.9
COLLAPSE_EXCESS = 0.1
FLAT_SHARE = 0.5
DISTINCT_SHARE = 0.5
COPIED_SHARE = 0.05
# Flags.
AMPLIFIED_RATIO = 1.7
DEPTH_FACTOR = 2.0
VARIANCE_RATIO = 2.0
SIGNIFICANT_FACTOR = 3.0
SIGNIFICANT_SHARE = 0.3
SPIKE_FACTOR = 2.0
SPIKE_INDEX = 2.5
CONTROL_SHIFT = 0.5
# A discrimination score this high leaves no room for an honest increase.
SATURATED = 0.95
DISCRIMINATION = ("pds_cosine", "discrimination_score_l1", "pds_l1")


@dataclass(frozen=True)
class Finding:
    """A mark or a flag by name, with its evidence in words and numbers."""

    name: str
    evidence: str

    def to_json(self) -> dict[str, str]:
        """The finding as a dict."""
        return asdict(self)


def marks(found: Diagnostics) -> list[Finding]:
    """What describes the entry without suspicion."""
    out = []
    size, collapse, cells = found["effect_size"], found["mode_collapse"], found["cells"]
    ratio, spread = size["ratio"], collapse["spread_ratio"]
    if ratio is not None and ratio < NO_CHANGE_RATIO:
        out.append(Finding("no-change", f"effects are {ratio:.3g} times as large as the truth's"))
    if spread is not None and spread < ALIKE_SPREAD:
        text = f"effects differ among perturbations {spread:.3g} times as much as the truth's"
        out.append(Finding("all-alike", text))
    ours, theirs = collapse["mean_correlation"], collapse["truth_mean_correlation"]
    if ours is not None and ours > max(COLLAPSE_CORRELATION, (theirs or 0.0) + COLLAPSE_EXCESS):
        text = f"mean correlation among predicted effects {ours:.3f}"
        out.append(Finding("mode-collapse", text + ("" if theirs is None else f", truth {theirs:.3f}")))
    flat, distinct, copied = (cells[k] for k in ("flat_share", "distinct_share", "copied_control_share"))
    if flat is not None and flat > FLAT_SHARE:
        out.append(Finding("tiled-cells", f"all cells are equal in {flat:.0%} of the perturbations"))
    elif distinct is not None and distinct < DISTINCT_SHARE:
        text = f"half of the perturbations have at most {distinct:.0%} different cells"
        out.append(Finding("repeated-cells", text))
    if copied is not None and copied > COPIED_SHARE:
        out.append(
            Finding("copied-controls", f"{copied:.0%} of the perturbed cells equal a real control cell")
        )
    return out


def flags(found: Diagnostics, scores: Mapping[str, float | None]) -> list[Finding]:
    """What suspects an exploit. `scores` are the entry's metric values, which join the evidence."""
    out = []
    tiled = any(mark.name == "tiled-cells" for mark in marks(found))
    ratio = found["effect_size"]["ratio"]
    if ratio is not None and ratio > AMPLIFIED_RATIO:
        text = f"effects are {ratio:.3g} times as large as the truth's (limit {AMPLIFIED_RATIO:g})"
        out.append(Finding("amplified-effects", text + _saturated(scores)))
    for name, what in (("ratio", "median cell total"), ("profile_ratio", "total behind the mean profiles")):
        depth = found["library_size"][name]
        if depth is not None and not 1 / DEPTH_FACTOR <= depth <= DEPTH_FACTOR:
            text = (
                f"{what} is {depth:.3g} times that of the real controls (limit {DEPTH_FACTOR:g} either way)"
            )
            out.append(Finding("implausible-depth", text))
            break
    variance = found["variance"]["ratio"]
    if variance is not None and variance > VARIANCE_RATIO:
        text = f"cells vary {variance:.3g} times as much as the real controls (limit {VARIANCE_RATIO:g})"
        out.append(Finding("inflated-variance", text))
    out += _significant(found, tiled=tiled)
    out += _spikes(found["target_genes"])
    shift = found["controls"]["shift_ratio"]
    if shift is not None and shift > CONTROL_SHIFT:
        text = f"submitted control rows lie {shift:.3g} typical effects from the real ones (limit {CONTROL_SHIFT:g})"
        out.append(Finding("twisted-controls", text))
    return out


def _saturated(scores: Mapping[str, float | None]) -> str:
    for name in DISCRIMINATION:
        value = scores.get(name)
        if value is not None and value > SATURATED:
            return f", with {name} at {value:.3f}"
    return ""


def _significant(found: Diagnostics, *, tiled: bool) -> list[Finding]:
    """Cells without spread make every gene significant; that is the mark of tiled cells, not a flag."""
    numbers: dict[str, Any] = found["significant_genes"]
    ours, theirs = numbers["mean_share"], numbers["truth_mean_share"]
    if tiled or ours is None or theirs is None:
        return []
    if ours <= SIGNIFICANT_SHARE or ours <= SIGNIFICANT_FACTOR * theirs:
        return []
    text = f"{ours:.0%} of the genes are significant on average, {theirs:.0%} in the truth"
    return [Finding("significant-genes-out-of-range", text)]


def _spikes(numbers: dict[str, Any]) -> list[Finding]:
    index, real = numbers["index"], numbers["truth_index"]
    if index is None or real is None:
        return []
    if index <= SPIKE_INDEX or index <= SPIKE_FACTOR * real:
        return []
    text = (
        f"the common change at the {numbers['n']} target genes of other perturbations is {index:.3g} times that of "
        f"other genes ({real:.3g} in the truth)"
    )
    return [Finding("target-spikes", text)]
