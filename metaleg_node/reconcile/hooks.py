"""Runs the operator's scripts before and after a reconcile.

They run as the service user, which is close to root: so none runs that somebody else could have written, and none,
however it behaves, holds up the service for longer than its time limit.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

_OUTPUT_LIMIT = 64 * 1024
"""Bytes of a hook's output that go into the log."""
_CHUNK = 64 * 1024
_GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL, and again until a killed hook is given up."""
_STOP_GRACE_SECONDS = 0.9
"""The same while the service stops, which as a whole must not take long."""
_LOOK_SECONDS = 0.2
"""How long a running hook may keep a stop unseen: a signal does not end the wait for the hook."""
_PACKAGE_LEFTOVERS = (".dpkg-old", ".dpkg-dist", ".dpkg-new", ".dpkg-tmp", "~")

Kind = Literal["pre", "post"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HookResult:
    """How one script ended; `message` says what went wrong and is empty when nothing did."""

    path: str
    seconds: float
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.message


class HookError(Exception):
    """A hook that was not run, or that failed; the message names the file."""


def run(
    hook: str,
    *,
    kind: Kind,
    node: str,
    reason: str,
    changes: int,
    plan_json: bytes,
    timeout: float,
    beat: Callable[[], float],
    stopping: Callable[[], bool] = lambda: False,
    result: str = "",
) -> tuple[HookResult, ...]:
    """Runs the executable `hook`, or those of the directory `hook` in the order of their names, one after the other;
    nothing when it is empty. One that fails does not keep the next from running.

    `kind`, `node`, `reason`, the number of `changes` and, after a reconcile, its `result` become METALEG_*
    environment variables; `plan_json` is the standard input. Each may take `timeout` seconds, then its whole process
    group is killed. Meanwhile `beat` is called, again and again within the seconds that it returns. As soon as
    `stopping` says so, what runs is ended within two seconds, and no other is run. Never raises for what a hook does or
    is.
    """
    if not hook:
        return ()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "METALEG_HOOK": kind,
        "METALEG_NODE": node,
        "METALEG_REASON": reason,
        "METALEG_CHANGES": str(changes),
    }
    if kind == "post":
        environment["METALEG_RESULT"] = result
    try:
        scripts = _scripts(Path(hook), key=f"hooks.{kind}")
    except HookError as error:
        return (HookResult(path=hook, seconds=0.0, message=str(error)),)
    return tuple(
        _run_one(script, environment, plan_json, timeout, beat=beat, stopping=stopping)
        for script in scripts
        if not stopping()
    )


def complaints(hook: str, *, key: str) -> Iterator[str]:
    """Why `run` would refuse it, or those of a directory; each names `key`, the setting that names the hook."""
    try:
        for script in _scripts(Path(hook), key=key) if hook else ():
            yield from _refusal(script, key)
    except HookError as error:
        yield str(error)


def _refusal(script: Path, key: str) -> Iterator[str]:
    try:
        _trusted_file(script)
    except HookError as error:
        yield f"{key}: {script}: {error}"


def _run_one(
    script: Path,
    environment: Mapping[str, str],
    plan_json: bytes,
    timeout: float,
    *,
    beat: Callable[[], float],
    stopping: Callable[[], bool],
) -> HookResult:
    started = time.monotonic()
    message = ""
    try:
        executable = _trusted_file(script)
        output = _Output(script.name)
        with _Process(executable, environment, plan_json, output, beat=beat, stopping=stopping) as process:
            process.finish(timeout)
    except HookError as error:
        message = f"{script}: {error}"
    seconds = time.monotonic() - started
    log.debug("hook %s ended after %.3f s", script, seconds)
    return HookResult(path=str(script), seconds=seconds, message=message)


# --- which scripts ----------------------------------------------------------------------------------------------------


def _scripts(hook: Path, *, key: str) -> list[Path]:
    try:
        if not stat.S_ISDIR(hook.stat().st_mode):
            return [hook]
        return [hook / name for name in sorted(os.listdir(hook)) if _is_meant(hook / name)]
    except OSError as error:
        advice = "make it, or correct the setting"
        if os.path.exists(str(hook).partition(" ")[0]):
            advice = "a hook is run without arguments; write a script that gives them"
        raise HookError(f"{key} = {str(hook)!r}: {error.strerror}: {advice}") from error


def _is_meant(entry: Path) -> bool:
    """Whether a directory's entry is a hook and not what editors, packages and people leave beside one."""
    if entry.name.startswith(".") or entry.name.endswith(_PACKAGE_LEFTOVERS):
        why = "its name is that of a hidden or left-over file"
    elif entry.is_dir():
        why = "it is a directory"
    elif entry.exists() and not os.access(entry, os.X_OK):
        why = "it is not executable"
    else:
        return True
    log.info("hook %s skipped: %s", entry, why)
    return False


# --- whether to trust them --------------------------------------------------------------------------------------------


def _trusted_file(script: Path) -> Path:
    """The script with all symbolic links resolved, once nobody but root and the service user can have written it, nor
    put another in its place. Raises HookError."""
    try:
        real = script.resolve(strict=True)
        with open(real, "rb", opener=_open_plain) as file:
            found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise HookError("is not a regular file: name an executable file or a directory of them")
        _refuse_foreign(real, found)
        for directory in {script.absolute().parent, real.parent}:
            _refuse_foreign_directories(directory)
    except OSError as error:
        raise HookError(f"cannot be opened: {error.strerror}") from error
    except RuntimeError as error:
        raise HookError("cannot be opened: it is a loop of symbolic links") from error
    if not found.st_mode & 0o111:
        raise HookError(f"is not executable: run `chmod 755 {real}`")
    return real


def _open_plain(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _refuse_foreign_directories(directory: Path) -> None:
    for place in (directory, *directory.parents):
        found = place.stat()
        # In a sticky directory only the owner of an entry can replace it; but anybody can add one.
        if place == directory or not found.st_mode & stat.S_ISVTX:
            _refuse_foreign(place, found)


def _refuse_foreign(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise HookError(f"refused: {path} belongs to user {found.st_uid}: run `chown root {path}`")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HookError(f"refused: others than its owner may write {path}: run `chmod go-w {path}`")


# --- how they run -----------------------------------------------------------------------------------------------------


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Lets Ctrl-C wait: between the start of a process and the moment in which it is known nobody would end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number in waiting:
            signal.raise_signal(number)


class _Process:
    """One running hook, in a session of its own. At the end of the `with` block it is gone."""

    def __init__(
        self,
        executable: Path,
        environment: Mapping[str, str],
        stdin: bytes,
        output: _Output,
        *,
        beat: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:
        self._executable = executable
        self._environment = environment
        self._pending = memoryview(stdin)
        self._output = output
        self._beat = beat
        self._stopping = stopping

    def __enter__(self) -> _Process:
        try:
            with _interrupted_afterwards():
                self._start()
        except KeyboardInterrupt:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [self._executable],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd="/",
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise HookError(
                f"cannot be executed: {error.strerror}; a script needs a first line such as #!/bin/sh that names "
                "an installed program, and a file system that allows execution"
            ) from error
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        # Ready to read when the process has ended, without reaping it: until then its group's number is not reused.
        self._pidfd = os.pidfd_open(self._process.pid)
        self._selector = selectors.DefaultSelector()
        for fd in (self._stdin, self._stdout):
            os.set_blocking(fd, False)
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._pidfd, selectors.EVENT_READ)

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        os.close(self._pidfd)
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def finish(self, timeout: float) -> None:
        """Waits until the hook itself has ended; what it leaves running in the background goes on. Raises HookError
        when it failed or had to be killed."""
        ended = self._pump(timeout, self._stopping)
        stopped = not ended and self._stopping()
        if not ended:
            self._kill(_STOP_GRACE_SECONDS if stopped else _GRACE_SECONDS)
        # Its last words, if they came between two looks: a full pipe is one chunk, and what children add may never end.
        self._read()
        self._output.close()
        status = self._process.wait()
        if stopped:
            raise HookError("ended before its time, since the service stops")
        if not ended:
            raise HookError(f"killed, it did not end within {timeout:g} s: speed it up, or raise hooks.timeout")
        if status < 0:
            raise HookError(f"ended by signal {-status} ({signal.strsignal(-status)})")
        if status > 0:
            raise HookError(f"failed with exit status {status}; its output is in the log")

    def _kill(self, grace: float) -> None:
        self._signal(signal.SIGTERM)
        ended = self._pump(grace)
        # Also when the hook itself has ended: others of its group may not have.
        self._signal(signal.SIGKILL)
        if not ended and not self._pump(grace):
            raise HookError(f"process {self._process.pid} cannot be killed: it waits in the kernel, see its stack")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _pump(self, seconds: float, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Feeds and drains the hook for at most `seconds`, or until `stopping`; tells whether it has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stopping():
            ready = {key.fd for key, _ in self._selector.select(min(left, self._beat(), _LOOK_SECONDS))}
            if self._stdout in ready:
                self._read()
            if self._stdin in ready:
                self._write()
            if self._pidfd in ready:
                return True
        return False

    def _read(self) -> None:
        try:
            data = os.read(self._stdout, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._forget(self._stdout)
        self._output.feed(data)

    def _write(self) -> None:
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending = memoryview(b"")  # The hook does not want it.
        if not self._pending:
            self._forget(self._stdin)
            assert self._process.stdin
            self._process.stdin.close()

    def _forget(self, fd: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(fd)


class _Output:
    """Turns a hook's output into log lines, up to a limit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = _OUTPUT_LIMIT
        self._line = b""
        self._truncated = False

    def feed(self, data: bytes) -> None:
        taken, self._truncated = data[: self._left], self._truncated or len(data) > self._left
        self._left -= len(taken)
        *lines, self._line = (self._line + taken).split(b"\n")
        for line in lines:
            self._log(line)

    def close(self) -> None:
        if self._line:
            self._log(self._line)
        if self._truncated:
            log.info("hook %s: output truncated after %d bytes", self._name, _OUTPUT_LIMIT)

    def _log(self, line: bytes) -> None:
        log.info("hook %s: %s", self._name, line.decode(errors="replace"))
