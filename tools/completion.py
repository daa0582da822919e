"""Completions from the command line's parser: for zsh and fish by shtab. The one for bash is our own: shtab's takes no
blank in a file's name and no --option=value."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from metaleg_node.cli import parser
from tools.grammar import Argument, Command, commands, program

_KINDS = {"FILE": "default", "DIR": "dirnames"}
"""What completes an argument's value, by what --help calls it: an option of compopt, see bash(1)."""

_SCRIPT = """\
# Completion for bash. Written by tools/generate.py.
# shellcheck shell=bash

_metaleg_node() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command='' words='' i
    # --option=value comes as three words.
    if [[ $current == = ]]; then
        current=''
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            =) ((i++)) ;;
            {valued}) [[ ${{COMP_WORDS[i + 1]}} == = ]] || ((i++)) ;;
            -*) ;;
            *)
                command=${{COMP_WORDS[i]}}
                break
                ;;
        esac
    done
    case "$command $previous" in
{values}
        *)
            case $command in
{words}
            esac
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}

complete -F _metaleg_node metaleg-node
"""


def script() -> str:
    """completion/metaleg-node."""
    whole = program()
    every = (whole, *commands())
    values = [(f'"{c.name} {n}"', _value(a)) for c in every for a in c.arguments if a.value for n in a.names]
    words = [(command.name or "''", _words(command)) for command in every]
    return _SCRIPT.format(
        valued=" | ".join(name for argument in whole.arguments if argument.value for name in argument.names),
        values="\n".join(_branches(values, " " * 8)),
        words="\n".join(_branches(words, " " * 16)),
    )


def zsh() -> str:
    """completion/_metaleg-node."""
    return _by_shtab("zsh")


def fish() -> str:
    """completion/metaleg-node.fish."""
    return _by_shtab("fish")


def _by_shtab(shell: str) -> str:
    # The manual pages, and the tests that ask for paths alone, need none of it.
    import shtab  # noqa: PLC0415

    whole = parser()
    _tell_files(whole, {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY})
    return f"{shtab.complete(whole, shell=shell).rstrip()}\n"


def _tell_files(made: argparse.ArgumentParser, kinds: dict[str, object]) -> None:
    """Where the value of an argument is a file or a directory."""
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for told in action._choices_actions:
                # A shell shows one line.
                action.choices[told.dest].description = told.help
                _tell_files(action.choices[told.dest], kinds)
        elif action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]


def _branches(cases: Iterable[tuple[str, tuple[str, ...]]], indent: str) -> Iterator[str]:
    """Branches of a case statement: patterns that lead to the same steps stand together."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for pattern, steps in cases:
        grouped.setdefault(steps, []).append(pattern)
    for steps, patterns in grouped.items():
        yield f"{indent}{' | '.join(patterns)})"
        yield from (f"{indent}    {step}" for step in (*steps, ";;"))


def _words(command: Command) -> tuple[str, ...]:
    """What may stand at a place of its own: options, and what is no option where no option has been begun."""
    names = dict.fromkeys([*(a.names[-1] for a in command.arguments if a.names), "--help"])
    options = f"words='{' '.join(names)}'"
    others = [step for argument in command.arguments if not argument.names for step in _value(argument)]
    if not command.name:
        others = [f"words='{' '.join(c.name for c in commands())}'"]
    return (*others, f"[[ $current != -* ]] || {options}") if others else (options,)


def _value(argument: Argument) -> tuple[str, ...]:
    """What may stand for the value of an argument; nothing where only the user knows."""
    if argument.choices:
        return (f"words='{' '.join(argument.choices)}'",)
    return (f"compopt -o {_KINDS[argument.value]}",) if argument.value in _KINDS else ()
