"""Parse vcbench command lines as click would, for the commands that texts name."""

import shlex

import click
from vcbench.evaluator.cli import cli


def parse(line, *, complete=True):
    """Parse a command line as click would, without converting values or running anything.

    Without `complete` it may lack required arguments, or the command of a group.
    """
    words = shlex.split(line)
    assert words[0] == "vcbench", line
    command, context, args = cli, click.Context(cli, info_name="vcbench"), words[1:]
    while isinstance(command, click.Group):
        if not complete and (not args or args[0].startswith("-")):
            return
        found = command.get_command(context, args[0]) if args else None
        assert found is not None, f"{line!r} names no command"
        command, args = found, args[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    values, rest, _ = command.make_parser(context).parse_args(args=list(args))
    assert not rest, f"{line!r}: {rest} is left over"
    for parameter in command.params:
        given = values.get(parameter.name)
        if parameter.required and complete:
            assert isinstance(given, (str, tuple, list)) and given, f"{line!r} lacks {parameter.name}"
        if isinstance(parameter.type, click.Choice) and isinstance(given, str):
            assert given in parameter.type.choices, f"{line!r}: {given!r} is no choice of {parameter.name}"
