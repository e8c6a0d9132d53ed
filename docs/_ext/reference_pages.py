"""Reference pages as Markdown, made from what the installed vcbench declares and from files of the checkout."""

from __future__ import annotations

from pathlib import Path

from command_page import command_page
from page_parts import cell, code, page, table
from vcbench.baselines import registry
from vcbench.data_specs.dataset_pages import dataset_page
from vcbench.data_specs.issues import catalogue
from vcbench.data_specs.spec_models import DatasetSpec, Edition
from vcbench.data_specs.specs import card_ids, edition_ids, load_card, load_edition
from vcbench.evaluator.metrics.spec import FAMILIES, family_metrics
from vcbench.evaluator.profiles import resolve_profile

ROOT = Path(__file__).parents[2]
FAMILY_TITLES = {
    "core": "The field's standard metrics",
    "gears": "GEARS' own metrics",
    "cellot": "CellOT's own metrics",
    "celleval": "cell-eval and the 2025 challenge",
    "vcc2026": "The 2026 challenge (cell-eval2)",
    "openproblems": "Open Problems (OP3)",
}


def issue_page() -> str:
    """Every issue code with its explanation and fix."""
    parts = [
        "# Issue codes",
        "Problems of a file that `vcbench validate`, `data check`, `pack` and `score` report. `E` codes make a file "
        "invalid, `W` codes are warnings and notes. `vcbench explain CODE` prints the same.",
    ]
    for kind in catalogue().values():
        parts += [f"## {kind.code}: {kind.title}", f"*{kind.severity}*. {cell(kind.explanation)}"]
        parts += [f"Fix: {code(kind.fix)}"] if kind.fix else []
        parts += [f"Official rules: {', '.join(kind.rules)}"] if kind.rules else []
    return page(*parts)


def metric_page(family: str) -> str:
    """Every metric of a family: meaning, formula, direction, perfect value, and when it has no value."""
    metrics = family_metrics(family).values()
    rows = [
        (
            code(spec.name),
            spec.title,
            code(spec.formula),
            spec.better,
            "" if spec.perfect is None else f"{spec.perfect:g}",
            spec.scope,
            spec.nulls,
        )
        for spec in metrics
    ]
    headers = ("metric", "what", "formula", "better", "perfect", "scope", "no value")
    sources = dict.fromkeys(spec.source for spec in metrics)
    users = [
        f"{name} ({', '.join(profiles)})"
        for name in edition_ids()
        if (profiles := [p for p in load_edition(name).profiles if _family(load_edition(name), p) == family])
    ]
    return page(
        f"# {FAMILY_TITLES.get(family, family)}",
        f"Metric family `{family}`, {len(rows)} metrics. Editions and profiles that use it: {'; '.join(users)}.",
        table(headers, rows),
        "## Sources",
        [f"- {source}" for source in sources],
    )


def _family(edition: Edition, profile: str) -> str:
    return resolve_profile(edition, profile).family


def edition_page(name: str) -> str:
    """File rules, panel rules, parameters, profiles and score of an edition."""
    edition = load_edition(name)
    rules = {**edition.file.model_dump(), **edition.panel.model_dump()}
    shown = [
        (key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, tuple) else value)
        for key, value in rules.items()
        if value not in (None, (), False)
    ]
    parts = [
        f"# {edition.id}: {edition.title}",
        edition.summary,
        f"Source: {edition.source}. Released {edition.released}; a released edition never changes.",
        "## Files and panel",
        table(("rule", "value"), shown),
        "## Scoring",
        table(("parameter", "value"), [(key, code(v)) for key, v in edition.scoring.parameters.items()])
        if edition.scoring.parameters
        else "",
    ]
    if edition.score.kind != "none":
        parts.append(
            f"Overall score by the rule `{edition.score.kind}` over {_listed(edition.score.members)}."
        )
    for key, profile in edition.profiles.items():
        found = resolve_profile(edition, key)
        default = " (default)" if key == edition.scoring.default_profile else ""
        parts += [f"## Profile {key}{default}", profile.description]
        parts.append(f"{len(found.metrics)} metrics of family `{found.family}`: {_listed(found.metrics)}.")
    return page(*parts)


def _listed(names: object) -> str:
    return ", ".join(code(name) for name in names)  # type: ignore[attr-defined]


def datasets_page() -> str:
    """All datasets in one table, with links to their pages."""
    rows = []
    for name in card_ids():
        card = load_card(name)
        form = card.matrix.kind if isinstance(card, DatasetSpec) else "fetch only"
        count = f"{card.n_cells.value:,}" if card.n_cells else ""
        rows.append((f"[{name}]({name}.md)", card.modality, form, count, card.title))
    return page(
        "# Datasets",
        "Published files that `vcbench data check` recognises and `data convert` turns into standard ones; some can "
        "only be fetched.",
        table(("dataset", "modality", "matrix", "cells", "title"), rows),
        ["```{toctree}", ":hidden:", "", *card_ids(), "```"],
    )


def model_page() -> str:
    """Every baseline with its settings and their defaults."""
    parts = [
        "# Models and their settings",
        "What `vcbench explain NAME` prints. `--set KEY=VALUE` changes a setting.",
    ]
    for name, title in registry.titles().items():
        info = registry.baseline_class(name).info
        facts = [
            ("source", info.paper),
            ("answers unseen targets", "yes" if info.unseen_targets else "no"),
            ("answers combinations", "yes" if info.combinations else "no"),
            ("needs torch", "yes" if registry.is_deep(name) else "no"),
        ]
        rows = [(code(key), words, code(default)) for key, words, default in registry.settings_of(name)]
        parts += [f"## {name}", f"{title}.", table(("fact", "value"), facts)]
        parts.append(table(("setting", "values", "default"), rows))
    return page(*parts)


def copied_pages() -> dict[str, str]:
    """Markdown files of the checkout that get a page: path from the root to path below `docs/generated`."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    models = sorted((ROOT / "baselines").glob("*/README.md"))
    return {
        **{f"benchmarks/results/{path.name}": f"benchmarks/{path.name}" for path in results},
        **{f"baselines/{path.parent.name}/README.md": f"models/{path.parent.name}.md" for path in models},
        "CHANGELOG.md": "changelog.md",
    }


def reference_pages() -> dict[str, str]:
    """Path below `docs/generated` to the Markdown text of every generated page."""
    return {
        "issues.md": issue_page(),
        "commands.md": command_page(),
        "settings.md": model_page(),
        **{f"metrics/{family}.md": metric_page(family) for family in FAMILIES},
        **{f"editions/{name}.md": edition_page(name) for name in edition_ids()},
        "datasets/index.md": datasets_page(),
        **{f"datasets/{name}.md": dataset_page(load_card(name)) for name in card_ids()},
        **{page: (ROOT / source).read_text(encoding="utf-8") for source, page in copied_pages().items()},
    }
