"""Pieces of Markdown that every generated page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cell(value: object) -> str:
    """A value as the text of a table cell: one line, bars escaped, nothing for None."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """A value in code style, bars not escaped (`cell` does that); nothing for an empty one."""
    text = "" if value is None else " ".join(str(value).split())
    return f"`{text}`" if text else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    return lines + ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]


def page(*parts: str | Iterable[str]) -> str:
    """Parts, each a line or lines, joined with blank lines between them."""
    texts = [part if isinstance(part, str) else "\n".join(part) for part in parts]
    return "\n\n".join(text.strip("\n") for text in texts if text.strip()) + "\n"
