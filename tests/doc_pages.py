"""Read the blocks of documentation pages and run them, in order, as a reader would.

| in a page | what a test does |
|---|---|
| ```` ```console ```` | runs each line after `$ `; the lines below it must appear in its output, in order |
| ```` ```sh ```` | runs every line |
| ```` ```python ```` | runs it; blocks of a page share their names |
| ```` ```{code-block} LANGUAGE ```` with `:caption: FILE` | writes FILE |
| `<!-- setup` ... `-->` | runs the lines, which readers do not see; `<!-- setup python` for Python |
| `<!-- not run: REASON -->` | leaves out the next block, which must still parse |

In expected lines `...` stands for anything, on a line of its own for any lines. A command that ends with `# exit 1`
must end with that status, every other one with 0. Front matter `run: slow` moves a page to the tests marked `docs`,
`needs: torch` skips it where the package is missing.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Languages of blocks that show something and run nothing.
SHOWN = ("text", "toml", "json", "csv", "html", "bibtex", "yaml", "dockerfile", "math", "image", "toctree")
# What a reader needs for a block that the tests leave out.
REASONS = ("GPU", "network", "cluster", "several processes", "the first block of the README", "run on ")
_FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<info>[^`\n]*)$")
_SHELL = re.compile(r"[|&;<>*?$`(){}~#]|\\$")


@dataclass(frozen=True)
class Block:
    """One fenced block or set-up comment of a page; `line` is that of its first text line, from 1."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    hidden: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """`PAGE:LINE` from the repository root."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line, the status it must end with, and what its output must show."""

    line: int
    text: str
    status: int
    expected: tuple[str, ...]


class PageError(AssertionError):
    """A block did not do what its page says."""


def pages() -> list[Path]:
    """README and every hand-written page of `docs`, sorted; generated and built pages are not among them."""
    skipped = {"generated", "_build", "_ext"}
    found = [p for p in (ROOT / "docs").rglob("*.md") if not skipped & set(p.relative_to(ROOT).parts)]
    return [ROOT / "README.md", *sorted(found)]


def front_matter(page: Path) -> dict[str, str]:
    """The `key: value` lines between the `---` lines that a page may start with."""
    match = re.match(r"---\n(.*?)\n---\n", page.read_text(encoding="utf-8"), re.DOTALL)
    pairs = (line.partition(":") for line in match[1].splitlines()) if match else ()
    return {key.strip(): value.strip() for key, _, value in pairs}


def read_blocks(page: Path) -> list[Block]:
    """Fenced blocks and set-up comments of a page, in order. Raises `PageError` for an unclosed one."""
    lines = page.read_text(encoding="utf-8").splitlines()
    out: list[Block] = []
    not_run: str | None = None
    i = 0
    while i < len(lines):
        line = lines[i].strip()
        marker = re.fullmatch(r"<!-- not run: (.+) -->", line)
        if marker:
            not_run = marker[1]
        elif line in ("<!-- setup", "<!-- setup python"):
            end = _closing(lines, i, "-->", page)
            language = "python" if line.endswith("python") else "sh"
            out.append(Block(page, i + 2, language, "\n".join(lines[i + 1 : end]), hidden=True))
            i = end
        elif fence := _FENCE.match(lines[i]):
            end = _closing(lines, i, fence["fence"], page)
            body, options, start = lines[i + 1 : end], {}, i + 2
            while body and (option := re.match(r":([a-z-]+):\s*(.*)$", body[0])):
                options[option[1]] = option[2]
                body, start = body[1:], start + 1
            out.append(
                Block(
                    page, start, _language(fence["info"]), "\n".join(body), not_run=not_run, options=options
                )
            )
            not_run, i = None, end
        elif line:
            not_run = None
        i += 1
    return out


def _closing(lines: list[str], start: int, fence: str, page: Path) -> int:
    for j in range(start + 1, len(lines)):
        if lines[j].strip() == fence:
            return j
    raise PageError(f"{page}:{start + 1}: the block is not closed")


def _language(info: str) -> str:
    """`python` for `python` and for `{code-block} python`; `note` for `{note}`."""
    words = info.split()
    if not words:
        return ""
    if words[0] in ("{code-block}", "{literalinclude}") and len(words) > 1:
        return words[1]
    return words[0].strip("{}")


def commands_of(block: Block) -> list[Command]:
    """The commands of a `console` or `sh` block, continued lines joined."""
    lines = block.text.splitlines()
    out: list[Command] = []
    i = 0
    while i < len(lines):
        prompt = "$ " if block.language == "console" else ""
        if not lines[i].startswith(prompt) or not lines[i].strip() or lines[i].startswith("#"):
            if lines[i].strip() and not lines[i].startswith("#"):
                raise PageError(f"{block.where}: output without a command before it: {lines[i]!r}")
            i += 1
            continue
        start, text = i, lines[i].removeprefix(prompt)
        while text.endswith("\\"):
            i += 1
            text = text[:-1].rstrip() + " " + lines[i].strip().removeprefix("> ")
        i += 1
        expected: list[str] = []
        while prompt and i < len(lines) and not lines[i].startswith(prompt):
            expected.append(lines[i].rstrip())
            i += 1
        status = re.search(r"#\s*exit (\d+)\s*$", text)
        text = re.split(r"\s+#\s", text)[0].rstrip()
        out.append(
            Command(
                block.line + start,
                text,
                int(status[1]) if status else 0,
                tuple(line for line in expected if line),
            )
        )
    return out


def missing_line(expected: tuple[str, ...], output: str) -> str | None:
    """The first expected line that the output does not have after the lines before it; None when all are there.

    `...` within a line stands for any text, runs of blanks equal one blank; other lines may come between any two.
    """
    shown = iter(output.splitlines())
    for line in expected:
        if line.strip() == "...":
            continue
        parts = [re.escape(" ".join(part.split())) for part in line.split("...")]
        pattern = re.compile(r"\s*.*?\s*".join(parts))
        if not any(pattern.fullmatch(" ".join(found.split())) for found in shown):
            return line
    return None


class PageRun:
    """Runs the blocks of one page in a folder; vcbench commands in this process, others by bash."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: dict[str, object] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        """Run one block. Raises `PageError` when it fails or shows something else."""
        if block.not_run:
            return
        if "caption" in block.options:
            path = self.folder / block.options["caption"].strip("`")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            self._python(block)
        elif block.language in ("console", "sh"):
            for command in commands_of(block):
                self._command(block, command)

    def _python(self, block: Block) -> None:
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
            exec(code, self.names)
        except Exception as error:
            raise PageError(f"{block.where}: {type(error).__name__}: {error}") from error

    def _command(self, block: Block, command: Command) -> None:
        where = f"{block.page.relative_to(ROOT).as_posix()}:{command.line}"
        if command.text.startswith("vcbench ") and not _SHELL.search(command.text):
            status, output = self._in_process(shlex.split(command.text)[1:])
        else:
            status, output = self._bash(command.text)
        if status != command.status:
            raise PageError(
                f"{where}: `{command.text}` ended with {status}, not {command.status}\n{output[-3000:]}"
            )
        missing = missing_line(command.expected, output)
        if missing is not None:
            raise PageError(f"{where}: `{command.text}` does not print {missing!r}:\n{output[-6000:]}")

    @staticmethod
    def _in_process(words: list[str]) -> tuple[int, str]:
        from vcbench.data_specs.cli_support import run
        from vcbench.evaluator.cli import cli

        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            status = run(cli, words)
        return status, out.getvalue()

    def _bash(self, text: str) -> tuple[int, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout


def vcbench_lines(page: Path) -> Iterator[tuple[str, str, bool]]:
    """(`PAGE:LINE`, command line, whether it is complete) of every `vcbench` command of a page.

    Those of blocks are complete; inline code may name a command without its arguments.
    """
    for block in read_blocks(page):
        if block.language in ("console", "sh"):
            for command in commands_of(block):
                if command.text.startswith("vcbench ") and not _SHELL.search(command.text):
                    yield f"{page.relative_to(ROOT).as_posix()}:{command.line}", command.text, True
    for i, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        for found in re.findall(r"`(vcbench [^`]+)`", line):
            yield f"{page.relative_to(ROOT).as_posix()}:{i}", found, False
