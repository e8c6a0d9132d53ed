"""`card.md` of a run: what was trained on what, with which settings, how it behaves, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .diagnosis import Diagnosis, finite
from .settings import config_dict

if TYPE_CHECKING:
    from .train import LoadedData


def card_text(
    model: Any,
    loaded: LoadedData,
    figures: Mapping[str, float | None],
    diagnosis: Diagnosis,
    about: Sequence[str],
    cost: str,
    notes: Sequence[str],
) -> str:
    """The card as Markdown.

    `figures` join the diagnosis table; `about` are list items on how the model was fitted; `cost` is one sentence.
    """
    info = model.info
    has_tests = loaded.split is not None and bool(loaded.split.keys("test"))
    where = "test rows (names only)" if has_tests else "training rows"
    settings = [f"| {key} | {value} |" for key, value in config_dict(model.config).items()]
    lines = [
        f"# {info.name}",
        "",
        f"{info.title}. Source: {info.paper}.",
        "",
        f"- data: {loaded.path.name} (sha256 {loaded.sha256[:16]}), {len(loaded.data.keys)} training rows, "
        f"{len(loaded.data.genes):,} genes, {int(np.sum(loaded.data.n_cells)):,} perturbed training cells",
        f"- target sum: {loaded.data.target_sum:g}",
        *about,
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *settings,
        "",
        "## Diagnosis",
        "",
        f"Over {diagnosis.n_rows} {where}; {diagnosis.n_refused} refused.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| mean correlation among predicted effects | {finite(diagnosis.effect_correlation)} |",
        f"| mean distance to the training mean | {finite(diagnosis.distance_to_mean)} |",
        f"| mean distance to no change | {finite(diagnosis.distance_to_no_change)} |",
        *(f"| {name} | {finite(value)} |" for name, value in figures.items()),
        "",
        "## Cost",
        "",
        cost,
    ]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
