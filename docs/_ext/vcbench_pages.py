"""Sphinx extension: reference pages of the installed vcbench, written into `docs/generated` when a build starts.

Links of hand-written pages to Markdown files outside `docs` (benchmark results, READMEs of models), which work in a
checkout, lead to their generated copies in the built pages.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from benchmark_plots import draw, plots_page
from reference_pages import copied_pages, reference_pages


def write_pages(folder: Path) -> list[Path]:
    """Write every generated page under `folder` and remove those that are generated no longer.

    Unchanged files are left alone, so that a build repeats only what changed.
    """
    texts = {**reference_pages(), "benchmarks/plots.md": plots_page()}
    pages = {folder / name: text for name, text in texts.items()}
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        if path not in pages:
            path.unlink()
    return sorted(pages)


def redirected(text: str, page: str) -> str:
    """`text` of the page `page` (a path below `docs`) with links to copied files led to their generated pages."""
    copies = copied_pages()
    depth = len(PurePosixPath(page).parent.parts)

    def to_copy(match: re.Match[str]) -> str:
        target = match[1].removeprefix("../" * (depth + 1))
        if match[1].startswith("../" * (depth + 1)) and target in copies:
            return f"]({'../' * depth}generated/{copies[target]}{match[2] or ''})"
        return match[0]

    return re.sub(r"\]\(([^)#\s]+\.md)(#[^)\s]*)?\)", to_copy, text)


def _on_start(app: Any) -> None:
    folder = Path(app.srcdir) / "generated"
    write_pages(folder)
    draw(folder / "benchmarks" / "plots")


def _on_read(app: Any, name: str, content: list[str]) -> None:
    content[0] = redirected(content[0], f"{name}.md")


def setup(app: Any) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", _on_start)
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
