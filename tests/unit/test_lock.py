"""One instance per network namespace, on the kernel's own sockets. Names are the test's own."""

import os
import pwd
import socket
import subprocess
import sys

import pytest

from metaleg_node.daemon.lock import AlreadyRunning, Holder, holder_of, is_held, single_instance

NAME = f"metaleg-test-lock-{os.getpid()}"

NOBODY = 65534

HOLDER = """
import os, sys
from metaleg_node.daemon.lock import single_instance
os.setuid(int(sys.argv[2]))
with single_instance(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(*prefix: str, user: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER, NAME, str(user)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_instance_learns_the_pid_of_the_first() -> None:
    with holder() as first:
        with pytest.raises(AlreadyRunning, match=f"process {first.pid}") as refused, single_instance(NAME):
            pass
        assert refused.value.holder == Holder(pid=first.pid, uid=0)
        assert "already runs" in str(refused.value)
        assert first.stdin
        first.stdin.close()


def test_a_holder_of_another_user_is_told_as_what_it_is() -> None:
    with holder(user=NOBODY) as first:
        with pytest.raises(AlreadyRunning) as refused, single_instance(NAME):
            pass
        assert refused.value.holder == Holder(pid=first.pid, uid=NOBODY)
        message = str(refused.value)
        assert f"process {first.pid} of user nobody (uid {NOBODY}) holds" in message
        assert "is no metaleg-node of root's" in message
        assert f"ps -fp {first.pid}" in message
        assert "already runs" not in message
        assert first.stdin
        first.stdin.close()


def test_root_the_services_user_and_ones_own_are_no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    service = pwd.struct_passwd(("metaleg-node", "x", 998, 998, "", "/", "/"))
    monkeypatch.setattr(pwd, "getpwnam", {"metaleg-node": service}.__getitem__)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [uid for uid in (0, 998, 1000, 1001) if Holder(pid=1, uid=uid).is_stranger] == [1001]


def test_a_holder_that_cannot_be_seen_has_no_number() -> None:
    message = str(AlreadyRunning(Holder(pid=0, uid=4294967294)))
    assert "a process of another PID namespace of uid 4294967294" in message
    assert "-fp 0" not in message


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


def test_everybody_is_told_however_often_they_ask() -> None:
    with single_instance(NAME):
        assert {holder_of(NAME) for _ in range(500)} == {Holder(pid=os.getpid(), uid=0)}
    assert holder_of(NAME) is None


def test_who_does_not_listen_or_never_accepts_is_not_told_and_not_waited_for() -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"\0{NAME}")
        assert is_held(NAME)
        with pytest.raises(AlreadyRunning, match="another process") as refused, single_instance(NAME):
            pass
        assert refused.value.holder is None
        silent.listen(0)
        assert [holder_of(NAME) for _ in range(2)] == [Holder(pid=os.getpid(), uid=0), None]


def test_children_do_not_inherit_the_lock() -> None:
    with single_instance(NAME):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not is_held(NAME)
    finally:
        child.kill()
        child.wait()
