"""What all commands share: lazy groups, common options, printing of issues, exit codes. Imports only click at start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .hdf5_guard import guarded
from .remote import input_path, output_path, public

if TYPE_CHECKING:
    from .issues import Issue

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

EXIT_VALID, EXIT_INVALID, EXIT_USAGE, EXIT_INTERNAL = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED = 130, 141, 143


class LazyGroup(click.Group):
    """A click group whose commands are `"module:attribute"` strings, imported only when run.

    `table` maps a command name to (target, one-line help); the help is shown without importing anything.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.table = dict(table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name][0].split(":")
        return getattr(import_module(module), attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.table:
            import difflib

            near = difflib.get_close_matches(name, list(self.table), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in self.table.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _option(*names: str, **attributes: Any) -> Callable[[CommandT], CommandT]:
    return click.option(*names, **attributes)


def out_option(
    required: bool = True, help: str = "Where to write the result."
) -> Callable[[CommandT], CommandT]:
    """`-o/--out PATH`."""
    return _option("-o", "--out", type=click.Path(), required=required, help=help, callback=_local)


def _local(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an output that is a URL before any work."""
    return None if value is None else str(output_path(value))


def edition_option(required: bool = True) -> Callable[[CommandT], CommandT]:
    """`--edition ID` or a TOML path."""
    return _option(
        "--edition", required=required, metavar="ID|TOML", help="Edition: `vcbench list editions` shows all."
    )


format_option = _option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print the result on stdout.",
)
seed_option = _option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Root seed of every random draw."
)
quiet_option = _option("--quiet", is_flag=True, help="No progress on stderr.")
force_option = _option("--force", is_flag=True, help="Replace an existing output.")
threads_option = _option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Threads; default: the CPUs this process may use.",
)
scoring_device_option = _option(
    "--device",
    metavar="cpu|cuda|cuda:N|auto|torch-cpu",
    default="cpu",
    show_default=True,
    help="Where rank sums are taken; the numbers are the same. torch-cpu: the GPU's code on the CPU.",
)
dry_run_option = _option("--dry-run", is_flag=True, help="Check and estimate, write nothing.")


class InputPath(click.ParamType):
    """An input file: a local path, or a URL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return input_path(value)


class _Memory(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        import re

        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} is not a size such as 3GB or 500MB.", param, ctx)
        scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[match[2].upper()]
        return int(float(match[1]) * scale)


executor_option = _option(
    "--executor",
    default="local",
    show_default=True,
    metavar="WHERE",
    help="Who works: local, processes[:N] of this machine, or dask://HOST:PORT. Results do not depend on it.",
)
memory_option = _option("--memory", type=_Memory(), default=None, help="Memory budget, for example 3GB.")


def echo_json(value: Any) -> None:
    """`value` as JSON on stdout; NaN becomes null."""
    click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def echo_issues(issues: Iterable[Issue], *, err: bool = False) -> None:
    """Issues as text, three lines each, in the order given."""
    for issue in issues:
        click.echo(issue.render(), err=err)


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout: aligned with rich on a terminal, plain aligned text otherwise."""
    text_rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if title:
        click.echo(title)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headers)
        for row in text_rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [
        max(len(header), *(len(row[i]) for row in text_rows)) if text_rows else len(header)
        for i, header in enumerate(headers)
    ]
    for row in [list(headers), ["-" * w for w in widths], *text_rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def note(text: str, *, quiet: bool = False) -> None:
    """One line on stderr, unless quiet: what was decided and why."""
    if not quiet:
        click.echo(text, err=True)


@contextmanager
def shown_progress(quiet: bool, *, lines: bool = False) -> Iterator[Callable[[int, int, str], None] | None]:
    """A function (done, total, text) that shows progress on stderr: a bar on a terminal.

    Elsewhere each new text is a line, with `lines`. None when nothing is shown.
    """
    if quiet or not (lines or sys.stderr.isatty()):
        yield None
        return
    if not sys.stderr.isatty():
        told: set[str] = set()

        def tell(done: int, total: int, text: str) -> None:
            if text not in told:
                told.add(text)
                note(text)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text[:40])

        yield show


def echo_estimate(estimate: Mapping[str, Any], *, output_format: str) -> None:
    """What a run would cost (`evaluator.estimate`), for `--dry-run`."""
    if output_format == "json":
        echo_json(estimate)
        return
    columns = ("role", "name", "n_obs", "n_genes", "n_stored", "n_groups", "passes")
    rows = [
        [f"{c:,}" if isinstance(c := entry[name], int) else c for name in columns]
        for entry in estimate["inputs"]
    ]
    echo_table(columns, rows, title=f"edition {estimate['edition']}: nothing was measured or written")
    click.echo(f"blocks of genes: {estimate['gene_blocks']}")
    click.echo(f"peak memory: about {estimate['memory_bytes'] / 2**30:.1f} GiB")
    click.echo(f"time: about {estimate['seconds']:,.0f} s with {estimate['threads']} threads")


_COMMAND: ContextVar[tuple[str, ...] | None] = ContextVar("command", default=None)


def command_line() -> str | None:
    """The command line that is being run, as a shell takes it, without passwords; None where Python code calls."""
    words = _COMMAND.get()
    return None if words is None else public(shlex.join(["vcbench", *words]))


def run(group: click.Group, args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 valid, 1 invalid, 2 usage, 3 internal error.

    Known errors print one message and no traceback; an unknown exception prints its traceback. With `--format json`
    a failure also prints `{"valid", "issues", "error"}` on stdout; `valid` is null where nothing was judged. As
    shells have it, an interrupt (Ctrl-C) is 130, SIGTERM 143 and a closed output pipe 141; the first two remove
    unfinished outputs.
    """
    listed = sys.argv[1:] if args is None else list(args)
    token = _COMMAND.set(tuple(listed))
    try:
        with _termination_raised(), guarded():
            return _run(group, listed, json_wanted=wants_json(listed))
    except Terminated:
        click.echo("terminated", err=True)
        return EXIT_TERMINATED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_PIPE
    finally:
        _COMMAND.reset(token)


def _run(group: click.Group, args: list[str], *, json_wanted: bool) -> int:
    from .errors import InvalidFile, VCBenchError

    streams = sys.stdout, sys.stderr
    try:
        result = group.main(args=args, prog_name="vcbench", standalone_mode=False)
        return result if isinstance(result, int) else EXIT_VALID
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        # click itself leaves so after shell completion, and with 1 ("invalid" here) when a pipe was closed: then it
        # has wrapped the streams.
        if sys.stdout is not streams[0]:
            sys.stdout, sys.stderr = streams
            _drop_stdout()
            return EXIT_PIPE
        return stop.code if isinstance(stop.code, int) else EXIT_VALID
    except click.ClickException as error:
        if json_wanted:
            _echo_failure("UsageError", error.format_message())
        error.show()
        return EXIT_USAGE
    except click.Abort:
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except InvalidFile as error:
        if json_wanted:
            echo_json({"valid": False, "issues": [issue.to_json() for issue in error.issues]})
        echo_issues(error.issues, err=True)
        return error.exit_code
    except VCBenchError as error:
        if json_wanted:
            _echo_failure(type(error).__name__, str(error))
        click.echo(f"{type(error).__name__}: {error}", err=True)
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        import traceback

        if json_wanted:
            _echo_failure("InternalError", f"{type(error).__name__}: {error}")
        traceback.print_exc()
        click.echo("internal error: please report the lines above", err=True)
        return EXIT_INTERNAL


def _echo_failure(kind: str, message: str) -> None:
    echo_json({"valid": None, "issues": [], "error": {"kind": kind, "message": message}})


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`: nothing but clean-up may catch it."""


@contextmanager
def _termination_raised() -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`, so that temporary files are removed; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        # A second signal must not break off the clean-up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def wants_json(args: Sequence[str]) -> bool:
    """True when the command line asks for `--format json`."""
    listed = list(args)
    return "--format=json" in listed or any(a == "--format" and b == "json" for a, b in pairwise(listed))
