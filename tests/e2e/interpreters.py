"""Interpreters for the lab's daemons and commands that do more than run the program: one kills it in the middle of an
apply, one tells what it holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from tests.lab.daemons import Daemon

_RUN = """
sys.argv = ["metaleg-node", *sys.argv[3:]]
runpy.run_module("metaleg_node", run_name="__main__", alter_sys=True)
"""
"""What `-m metaleg_node` and its arguments mean."""

_MORTAL = """
import os, pathlib, signal
from metaleg_node.reconcile.machine import Machine

carry_out, left = Machine.carry_out, pathlib.Path({file!r})

def carry_out_or_die(machine, operations):
    if not left.exists():
        return carry_out(machine, operations)
    steps = int(left.read_text())
    now = operations[:steps]
    left.write_text(str(max(0, steps - len(now))))
    done = carry_out(machine, now) if now else []
    if len(now) < len(operations):
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Machine.carry_out = carry_out_or_die
"""

_AGAIN = """
for line in sys.stdin:
    if not (child := os.fork()):
        os.dup2(2, 1)
        sys.argv = ["metaleg-node", *sys.argv[1:]]
        runpy.run_module("metaleg_node", run_name="__main__", alter_sys=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

_TELLING = """
import ctypes, gc, json, os, signal, threading

class InUse(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = InUse

def tell(*_):
    gc.collect()
    threads, blocks, native = threading.active_count(), sys.getallocatedblocks(), mallinfo()
    held = dict(threads=threads, descriptors=len(os.listdir("/proc/self/fd")), blocks=blocks)
    with open({file!r} + ".new", "w") as file:
        json.dump(held | dict(native=native.uordblks + native.hblkhd), file)
    os.replace(file.name, {file!r})

signal.signal(signal.SIGUSR1, tell)
"""


class Mortal:
    """An interpreter for a program that is killed when it has done so many `steps` of its applies; None: it lives."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "steps"
        self.python = _written(directory / "mortal", _MORTAL.format(file=str(self._file)) + _RUN)

    def live_for(self, steps: int | None) -> None:
        if steps is None:
            self._file.unlink(missing_ok=True)
        else:
            self._file.write_text(str(steps))


class Applying:
    """A context manager that runs `apply` on a node, each time in a process of its own that has nothing to load."""

    def __init__(self, daemon: Daemon, namespace: Namespace, directory: Path) -> None:
        self._fate = Mortal(directory)
        folder = daemon.config_file.parent
        places = {"--config": daemon.config_file, "--runtime-dir": folder / "run", "--state-dir": folder / "lib"}
        script = _written(directory / "applying", _MORTAL.format(file=str(directory / "steps")) + _AGAIN)
        words = [script, *(word for pair in places.items() for word in map(str, pair)), "apply"]
        with namespace.inside():
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            pass

    def apply(self, steps: int | None = None) -> int:
        """Its exit status; with `steps` it is killed when it has done so many."""
        self._fate.live_for(steps)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def telling(directory: Path) -> str:
    """An interpreter for a program that can be asked by `held`."""
    return _written(directory / "telling", _TELLING.format(file=str(directory / "held")) + _RUN)


def held(directory: Path, process_id: int, timeout: float) -> dict[str, int]:
    """What the program of a `telling` interpreter holds, when the garbage collector has done its work: `threads`, file
    `descriptors`, `blocks` of Python's own allocator, and `native` bytes in use of malloc(3). Unlike the memory
    that a process has from the kernel it does not depend on what was free where when something was needed."""
    file = directory / "held"
    file.unlink(missing_ok=True)
    os.kill(process_id, signal.SIGUSR1)
    assert wait_until(file.exists, timeout), "it does not tell"
    return dict(json.loads(file.read_text()))


def _written(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport runpy, sys\n{text}")
    path.chmod(0o755)
    return str(path)
