"""The only door through which kernel modules start programs.

One place decides what every child process gets: no shell, a fixed search path that the caller's environment cannot
bend, English output that can be parsed, and a time limit after which it is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from metaleg_node.kernel.errors import KernelError, MissingProgramError

SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"LC_ALL": "C", "PATH": SEARCH_PATH}
_PACKAGES = {"nft": "nftables"} | {
    f"{name}{suffix}": "iptables" for name in ("iptables", "ip6tables") for suffix in ("", "-save", "-restore")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a program ended by itself."""

    returncode: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], *, stdin: str = "", timeout: float = 60.0) -> Completed:
    """Runs `argv` (a bare program name first) to its end, with `stdin` as its input, both in UTF-8.

    Any exit status is returned, not raised. Raises MissingProgramError when the program is not installed and
    KernelError when it cannot be started, is ended by a signal, or still runs after `timeout` seconds (it is killed
    then).
    """
    command = [find(argv[0]), *argv[1:]]
    try:
        # A file, not a pipe: if we are killed meanwhile, the program still reads all of its input, not a part that may
        # be valid by chance.
        with open(os.memfd_create("stdin"), "w+b") as given:
            given.write(stdin.encode())
            given.seek(0)
            done = subprocess.run(
                command,
                stdin=given,
                capture_output=True,
                env=_ENVIRONMENT,
                timeout=timeout,
                check=False,
                start_new_session=True,
            )
    except subprocess.TimeoutExpired as error:
        raise KernelError(
            f"`{' '.join(argv)}` did not end within {timeout:g} s and was killed; is the machine overloaded?"
        ) from error
    except OSError as error:
        raise KernelError(f"cannot start {command[0]}: {error.strerror}") from error
    if done.returncode < 0:
        raise KernelError(f"`{' '.join(argv)}` was ended by {_signal(-done.returncode)}")
    return Completed(
        returncode=done.returncode,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
    )


class Fed:
    """A program that reads its input from us until we close it, or end; what it prints is lost. Making one raises
    KernelError."""

    def __init__(self, argv: Sequence[str]) -> None:
        command = [find(argv[0]), *argv[1:]]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            raise KernelError(f"cannot start {command[0]}: {error.strerror}") from error

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def write(self, text: str) -> None:
        """Gives it input; one that has ended takes none."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends its input, and waits for its own end."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def _signal(number: int) -> str:
    text = f"signal {number} ({signal.strsignal(number) or 'unknown'})"
    if number == signal.SIGKILL:
        return f"{text}: by somebody, or by the kernel for want of memory, which `journalctl -k` tells"
    return text


def find(program: str) -> str:
    """The absolute path of a program. Raises MissingProgramError."""
    path = shutil.which(program, path=SEARCH_PATH)
    if path is None:
        package = _PACKAGES.get(program, program)
        raise MissingProgramError(
            f"the program {program} is not installed (looked in {SEARCH_PATH}): install the package {package}"
        )
    return path
