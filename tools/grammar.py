"""The command line as data, read from the parser, which alone knows it. argparse has no public way to ask."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from metaleg_node.cli import parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An option, or an argument without a name. `value` is what stands for its value, empty if it takes none."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    text: str
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, or the program itself, whose name is then empty; --help is told of the program alone."""

    name: str
    description: str
    epilog: str
    arguments: tuple[Argument, ...]


def program() -> Command:
    """The program with the options that stand before the command."""
    return _command("", parser())


def commands() -> tuple[Command, ...]:
    """All commands, in the order of --help."""
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return tuple(_command(name, made) for name, made in action.choices.items())


def _command(name: str, made: argparse.ArgumentParser) -> Command:
    left_out = (argparse._SubParsersAction, argparse._HelpAction) if name else argparse._SubParsersAction
    told = (a for a in made._actions if a.help != argparse.SUPPRESS)
    found = tuple(_argument(a) for a in told if not isinstance(a, left_out))
    epilog = (made.epilog or "").partition(" What `")[0] if name else made.epilog or ""
    return Command(name=name, description=made.description or "", epilog=epilog, arguments=found)


def _argument(action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    value = str(action.metavar or "|".join(choices) or action.dest.upper())
    return Argument(
        names=tuple(action.option_strings),
        value="" if action.nargs == 0 else value,
        choices=choices,
        text=action.help or "",
        required=action.required,
    )
