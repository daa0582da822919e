"""The completion in a real bash, on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
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
    """An interactive bash that one types into."""

    def __init__(self, directory: Path) -> None:
        self._terminal, other = pty.openpty()
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(directory), "INPUTRC": "/dev/null"},
            start_new_session=True,
        )
        os.close(other)
        os.write(self._terminal, SET_UP.encode())

    def after(self, typed: str, key: str) -> str:
        """The line that is there after somebody has typed a part of it and pressed a key."""
        os.write(self._terminal, f"{KILL_LINE}{typed}{key}{SHOW}".encode())
        heard, deadline = "", time.monotonic() + TIMEOUT
        while not (found := re.search(r"\n<(.*)>\r\n", heard)):
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"bash has only said {heard!r}"
            heard += os.read(self._terminal, 65536).decode()
        return found[1]

    def close(self) -> None:
        self._bash.kill()
        self._bash.wait()
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
