"""The completions in real shells; bash and zsh on terminals of their own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.patience import patient
from tools.generate import ROOT
from tools.grammar import Command, commands

TIMEOUT = patient(20.0)
COMPLETE, INSERT_ALL, SHOW, KILL_LINE = "\t", "\x1b*", "\x07", "\x05\x15"
"""Keys: readline's own, and one that shows the line between angle brackets."""
SET_UP = f"""\
source {ROOT}/completion/metaleg-node
bind 'set bell-style none'
bind 'set enable-bracketed-paste off'
bind -x '"\\C-g": printf "\\n<%s>\\n" "$READLINE_LINE"'
"""


class Shell:
    """An interactive shell that one types into, by default a bash."""

    def __init__(
        self, directory: Path, argv: Sequence[str] = ("bash", "--norc", "--noprofile", "-i"), set_up: str = SET_UP
    ) -> None:
        self._terminal, other = pty.openpty()
        self._shell = subprocess.Popen(
            argv,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(directory), "INPUTRC": "/dev/null"},
            start_new_session=True,
        )
        os.close(other)
        os.write(self._terminal, set_up.encode())

    def after(self, typed: str, key: str) -> str:
        """The line that is there after somebody has typed a part of it and pressed a key."""
        os.write(self._terminal, f"{KILL_LINE}{typed}{key}{SHOW}".encode())
        heard, deadline = "", time.monotonic() + TIMEOUT
        while not (found := re.search(r"\n<(.*)>\r\n", heard)):
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the shell has only said {heard!r}"
            heard += os.read(self._terminal, 65536).decode()
        return found[1]

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._terminal)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("home")
    (directory / "my config.toml").touch()
    (directory / "my directory").mkdir()
    (directory / "state.yaml").touch()
    shell = Shell(directory)
    yield shell
    shell.close()


def all_of(shell: Shell, typed: str) -> list[str]:
    """Every word that may stand at the end."""
    begun = typed[: typed.rindex(" ") + 1]
    return shell.after(typed, INSERT_ALL).removeprefix(begun).split()


def test_every_command_is_completed(shell: Shell) -> None:
    assert all_of(shell, "metaleg-node ") == sorted(command.name for command in commands())


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_option_of_a_command_is_completed(shell: Shell, command: Command) -> None:
    names = {name for argument in command.arguments for name in argument.names if name.startswith("--")}
    assert all_of(shell, f"metaleg-node {command.name} -") == sorted({*names, "--help"})


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("metaleg-node pl", "metaleg-node plan "),
        ("metaleg-node plan --j", "metaleg-node plan --json "),
        ("metaleg-node --con", "metaleg-node --config "),
        ("metaleg-node --config my\\ c", "metaleg-node --config my\\ config.toml "),
        ("metaleg-node --config=sta", "metaleg-node --config=state.yaml "),
        ("metaleg-node --config ~/sta", "metaleg-node --config ~/state.yaml "),
        ("metaleg-node --config state.yaml che", "metaleg-node --config state.yaml check "),
        ("metaleg-node --config=state.yaml che", "metaleg-node --config=state.yaml check "),
        ("metaleg-node --config run che", "metaleg-node --config run check "),
        ("metaleg-node --state-dir my", "metaleg-node --state-dir my\\ directory/"),
        ("metaleg-node --state-dir sta", "metaleg-node --state-dir sta"),
        ("metaleg-node --log-level d", "metaleg-node --log-level debug "),
        ("metaleg-node --log-level=d", "metaleg-node --log-level=debug "),
        ("metaleg-node --log-level debug st", "metaleg-node --log-level debug status "),
        ("metaleg-node import-env sta", "metaleg-node import-env state.yaml "),
        ("metaleg-node kubeconfig --admin sta", "metaleg-node kubeconfig --admin state.yaml "),
        ("metaleg-node kubeconfig --context sta", "metaleg-node kubeconfig --context sta"),
        ("metaleg-node kubeconfig --admin state.yaml --y", "metaleg-node kubeconfig --admin state.yaml --yes "),
        ("metaleg-node check sta", "metaleg-node check sta"),
        ("metaleg-node nonsense sta", "metaleg-node nonsense sta"),
    ],
)
def test_what_is_typed_is_completed(shell: Shell, typed: str, line: str) -> None:
    assert shell.after(typed, COMPLETE) == line


def test_values_of_a_few_words_are_all_there(shell: Shell) -> None:
    assert all_of(shell, "metaleg-node --log-level ") == ["debug", "error", "info", "warning"]


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", ROOT / "completion/metaleg-node"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# --- zsh and fish ----------------------------------------------------------------------------------------------------

ZSH = f"""\
PS1= ; unsetopt zle_bracketed_paste prompt_cr prompt_sp; unset zle_bracketed_paste
fpath=({ROOT}/completion $fpath); autoload -Uz compinit; compinit -u -D
show() {{ print -r -- "\n<$BUFFER>" }}; zle -N show; bindkey -e; bindkey '^G' show
"""


@pytest.fixture(scope="module")
def zsh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("zsh")
    (directory / "state.yaml").touch()
    shell = Shell(directory, ("zsh", "-f", "-i"), ZSH)
    yield shell
    shell.close()


TYPED = [
    ("metaleg-node pl", "metaleg-node plan "),
    ("metaleg-node plan --j", "metaleg-node plan --json "),
    ("metaleg-node --config sta", "metaleg-node --config state.yaml "),
    ("metaleg-node --log-level d", "metaleg-node --log-level debug "),
    ("metaleg-node report sta", "metaleg-node report state.yaml "),
]


@pytest.mark.parametrize(("typed", "line"), TYPED)
def test_what_is_typed_into_zsh_is_completed(zsh: Shell, typed: str, line: str) -> None:
    assert zsh.after(typed, COMPLETE) == line


def by_fish(directory: Path, typed: str) -> list[str]:
    """The words that fish proposes for the last one."""
    script = f"source {ROOT}/completion/metaleg-node.fish; complete -C '{typed}'"
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb"}
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("typed", "line"), TYPED)
def test_what_is_typed_into_fish_is_completed(tmp_path: Path, typed: str, line: str) -> None:
    (tmp_path / "state.yaml").touch()
    assert by_fish(tmp_path, typed) == [line.rsplit(maxsplit=1)[-1]]


def test_fish_knows_every_command_and_option(tmp_path: Path) -> None:
    assert sorted(by_fish(tmp_path, "metaleg-node ")) == sorted(command.name for command in commands())
    for command in commands():
        names = {name for argument in command.arguments for name in argument.names if name.startswith("--")}
        assert names <= set(by_fish(tmp_path, f"metaleg-node {command.name} --"))
