"""The card beside an entry: what it holds, how it was made and from what, as Markdown for people."""

from __future__ import annotations

from typing import Any

import numpy as np


def entry_card(record: dict[str, Any], next_command: str) -> str:
    """The card of a manifest record. Equal records give equal text."""
    planned, result = record["planned"], record.get("result", {})
    entry = record.get("entry", {})
    lines = [
        f"# Entry {entry.get('name', '')}",
        "",
        f"- Edition: {record['edition']}",
        f"- Rows x genes: {planned['n_rows']:,} x {planned['n_genes']:,}; stored entries {result.get('n_stored', 0):,}",
        f"- Contexts: {', '.join(record.get('contexts', [])) or 'not named'}",
        f"- Seed: {record['seed']}; effect scale: {record['effect_scale']:g}"
        + (" (amplified)" if record.get("amplified") else ""),
        f"- Emission: {record.get('mode_reason') or 'cells as predicted'}",
        f"- SHA-256: {entry.get('sha256', 'unknown')}",
        "",
        "## Made from",
        "",
        *_inputs(record["inputs"]),
        *_model(record.get("model")),
        "",
        "## Emission",
        "",
        *_emission(record.get("emission", [])),
        *_emission_scores(record.get("emission_scores")),
        "",
        "## Checks",
        "",
        *_checks(record.get("validation", {})),
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {value}" for name, value in sorted(record["versions"].items())),
        "",
        f"Next: `{next_command}`",
        "",
    ]
    return "\n".join(lines)


def _inputs(inputs: dict[str, Any]) -> list[str]:
    lines = []
    for role, facts in inputs.items():
        for one in facts if isinstance(facts, list) else [facts]:
            context = f" ({one['context']})" if "context" in one else ""
            lines.append(
                f"- {role}{context}: `{one['path']}`, {one['bytes']:,} bytes, sha256 {one['sha256']}"
            )
    return lines or ["- an AnnData in memory"]


def _model(model: dict[str, Any] | None) -> list[str]:
    if not model:
        return []
    return ["", "## Model", "", *(f"- {key}: {value}" for key, value in sorted(model.items()))]


def _emission(reports: list[dict[str, Any]]) -> list[str]:
    if not reports:
        return ["No cells were drawn."]
    rows = [
        ("Error of group means in counts (genes above 1 per cell)", "max_rel_error_counts", max, "{:.2%}"),
        ("Error of log means against the profile, same genes", "max_rel_error_expressed", max, "{:.2%}"),
        ("Variance / mean, relative to controls", "dispersion_ratio", np.median, "{:.3f}"),
        ("Library size", "library_median", np.median, "{:,.0f}"),
        ("Library size of controls", "library_median_control", np.median, "{:,.0f}"),
        ("Detected genes", "detected_median", np.median, "{:,.0f}"),
        ("Detected genes of controls", "detected_median_control", np.median, "{:,.0f}"),
        ("Total implied by the profile / target sum", "implied_total", np.median, "{:.3f}"),
        ("Genes beyond the largest factor", "n_capped", max, "{:,.0f}"),
    ]
    lines = ["| over all groups | worst or median |", "|---|---|"]
    for title, key, gather, form in rows:
        values: list[float] = [report[key] for report in reports if report.get(key) is not None]
        if values:
            lines.append(f"| {title} | {form.format(float(gather(values)))} |")  # type: ignore[operator]
    return lines


def _emission_scores(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    shown = [
        [score["metric"], *(_shown(score[key]) for key in ("entry", "second_draw", "perfect"))]
        for score in found["metrics"]
    ]
    return [
        "",
        f"What emission alone costs ({found['n_perturbations']} perturbations per context; {found['note']}):",
        "",
        "| metric | this emission | second draw of real-like cells | perfect |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in shown),
    ]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _checks(validation: dict[str, Any]) -> list[str]:
    issues = validation.get("issues", [])
    if not issues:
        return ["Valid, without a remark."]
    return ["Valid, with remarks:", "", *(f"- {i['code']} {i['message']}: {i['found']}" for i in issues)]
