"""Reference pages as Markdown, made from what the installed vcbench declares and from files of the checkout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vcbench.data_specs.issues import catalogue

ROOT = Path(__file__).parents[2]


def cell(value: object) -> str:
    """A value as the text of a table cell: no line breaks, bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    return lines + ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]


def issue_page() -> str:
    """Every issue code with its explanation and fix."""
    lines = [
        "# Issue codes",
        "",
        "Problems of a file that `vcbench validate`, `data check`, `pack` and `score` report. `E` codes make a file "
        "invalid, `W` codes are warnings and notes. `vcbench explain CODE` prints the same.",
        "",
    ]
    for kind in catalogue().values():
        lines += [f"## {kind.code}: {kind.title}", "", f"*{kind.severity}*. {cell(kind.explanation)}", ""]
        if kind.fix:
            lines += [f"Fix: `{cell(kind.fix)}`", ""]
        if kind.rules:
            lines += [f"Official rules: {', '.join(kind.rules)}", ""]
    return "\n".join(lines)


def copied_pages() -> dict[str, str]:
    """Markdown files of the checkout that get a page: path from the root to path below `docs/generated`."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    models = sorted((ROOT / "baselines").glob("*/README.md"))
    return {
        **{f"benchmarks/results/{path.name}": f"benchmarks/{path.name}" for path in results},
        **{f"baselines/{path.parent.name}/README.md": f"models/{path.parent.name}.md" for path in models},
    }


def reference_pages() -> dict[str, str]:
    """Path below `docs/generated` to the Markdown text of every generated page."""
    copies = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in copied_pages().items()}
    return {"issues.md": issue_page(), **copies}
