"""One instance per network namespace, on the kernel's own sockets. Names are the test's own."""

import os
import subprocess
import sys

import pytest

from metaleg_node.daemon.lock import AlreadyRunning, is_held, single_instance

NAME = f"metaleg-test-lock-{os.getpid()}"

HOLDER = """
import sys
from metaleg_node.daemon.lock import single_instance
with single_instance(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(*prefix: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_instance_learns_the_pid_of_the_first() -> None:
    with holder() as first:
        with pytest.raises(AlreadyRunning, match=f"process {first.pid}") as refused, single_instance(NAME):
            pass
        assert refused.value.pid == first.pid
        assert first.stdin
        first.stdin.close()


def test_the_lock_falls_when_its_holder_is_killed() -> None:
    with holder() as first:
        first.kill()
        first.wait()
        with single_instance(NAME):
            assert is_held(NAME)
    assert not is_held(NAME)


def test_another_network_namespace_has_its_own_lock() -> None:
    with holder("unshare", "--net") as elsewhere:
        assert not is_held(NAME)
        with single_instance(NAME):
            pass
        assert elsewhere.stdin
        elsewhere.stdin.close()


def test_the_pid_is_told_while_the_holder_never_accepts_and_zero_when_its_queue_is_full() -> None:
    def refused_pid() -> int:
        with pytest.raises(AlreadyRunning) as refused, single_instance(NAME):
            pass
        return refused.value.pid

    with single_instance(NAME):
        pids = [refused_pid() for _ in range(200)]
    assert set(pids[:100]) == {os.getpid()}
    assert set(pids) <= {os.getpid(), 0}
    assert "another process" in str(AlreadyRunning(0))


def test_asking_whether_it_is_held_fills_no_queue() -> None:
    with single_instance(NAME):
        assert all(is_held(NAME) for _ in range(500))
        with pytest.raises(AlreadyRunning) as refused, single_instance(NAME):
            pass
    assert refused.value.pid == os.getpid()


def test_children_do_not_inherit_the_lock() -> None:
    with single_instance(NAME):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not is_held(NAME)
    finally:
        child.kill()
        child.wait()
