"""The reference page of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
from page_parts import code, page, table
from vcbench.evaluator.cli import cli


def commands(group: click.Group, parent: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command below a group with its context, in the order of `--help`; groups come before their commands."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, parent=parent, info_name=name)
        yield command, context
        if isinstance(command, click.Group):
            yield from commands(command, context)


def command_page() -> str:
    """Every command: what it does, usage, options, examples."""
    parts = [
        "# Commands",
        "What `vcbench COMMAND --help` prints. Exit codes: 0 valid, 1 invalid, 2 wrong usage, 3 internal error; "
        "130, 141 and 143 after an interrupt, a closed pipe and a termination. With `--format json` the result goes "
        "to stdout as JSON, errors too; progress and notes go to stderr.",
    ]
    for command, context in commands(cli, click.Context(cli, info_name="vcbench")):
        usage = " ".join(command.collect_usage_pieces(context))
        parts += [
            f"## {context.command_path}",
            *_help(command),
            f"```text\n{context.command_path} {usage}\n```",
        ]
        rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]
        if rows:
            parts.append(table(("option", "meaning"), rows))
        if command.epilog:
            parts.append(_example(command.epilog))
    return page(*parts)


def _help(command: click.Command) -> list[str]:
    """Paragraphs of the help text; those after `\\b` keep their lines."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return [
        "```text\n" + text.removeprefix("\b\n").rstrip() + "\n```" if text.startswith("\b") else text
        for text in paragraphs
    ]


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, text = option.get_help_record(context) or (", ".join(option.opts), option.help or "")
    return code(names), text


def _example(epilog: str) -> str:
    """`Example: a; b` as a block of commands."""
    head, _, rest = epilog.partition(": ")
    return f"{head}:\n\n```text\n" + "\n".join(part.strip() for part in rest.split("; ")) + "\n```"
