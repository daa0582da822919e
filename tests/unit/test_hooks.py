"""Hooks: real scripts, real processes."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaleg_node.reconcile import hooks
from metaleg_node.reconcile.hooks import HookResult
from tests.patience import patient


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "metaleg_node")
    return caplog


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    """A shell script; its mode does not depend on the umask."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def run(
    hook: Path | str,
    *,
    plan: bytes = b"{}",
    timeout: float = 10.0,
    beat: Callable[[], float] = lambda: math.inf,
    stopping: Callable[[], bool] = lambda: False,
    post: bool = False,
) -> tuple[HookResult, ...]:
    return hooks.run(
        str(hook),
        kind="post" if post else "pre",
        node="node-a",
        reason="state file changed",
        changes=7,
        result="ok" if post else "",
        plan_json=plan,
        timeout=timeout,
        beat=beat,
        stopping=stopping,
    )


def failure(hook: Path | str, **arguments: object) -> str:
    """The message of the only result."""
    (result,) = run(hook, **arguments)  # type: ignore[arg-type]
    assert not result.ok
    return result.message


def logged(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    """The lines that a hook wrote, as logged."""
    start = f"hook {name}: "
    return [r.getMessage().removeprefix(start) for r in caplog.records if r.getMessage().startswith(start)]


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} still runs")


# --- what a hook is given --------------------------------------------------------------------------------------------


def test_no_hook_is_no_result() -> None:
    assert run("") == ()


def test_the_environment_is_clean_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    hook = script(tmp_path / "hook", f"exec env -0 > {tmp_path}/env")
    assert run(hook, post=True)[0].ok
    found = dict(item.split("=", 1) for item in (tmp_path / "env").read_text().rstrip("\0").split("\0"))
    for of_the_shell in ("PWD", "OLDPWD", "SHLVL", "_"):
        found.pop(of_the_shell, None)
    assert found == {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "METALEG_HOOK": "post",
        "METALEG_NODE": "node-a",
        "METALEG_REASON": "state file changed",
        "METALEG_CHANGES": "7",
        "METALEG_RESULT": "ok",
    }


def test_before_a_reconcile_there_is_no_result_to_tell(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    assert run(script(tmp_path / "hook", 'echo "$METALEG_HOOK ${METALEG_RESULT-unset}"'))[0].ok
    assert logged(heard, "hook") == ["pre unset"]


def test_a_plan_larger_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    plan = json.dumps({"changes": ["x" * 1000] * 1000}).encode()
    assert run(script(tmp_path / "hook", f"cat > {tmp_path}/plan"), plan=plan)[0].ok
    assert (tmp_path / "plan").read_bytes() == plan


@pytest.mark.parametrize("text", ["exec <&-; true", "true", "head -c 1 >/dev/null", "exec <&-; sleep 0.1"])
def test_a_hook_that_does_not_read_the_plan_is_fine(tmp_path: Path, text: str) -> None:
    assert run(script(tmp_path / "hook", text), plan=b"x" * 1_000_000)[0].ok


def test_no_shell_comes_between(tmp_path: Path) -> None:
    hook = script(tmp_path / "a b;touch $HOME", f'printf %s "$#" > {tmp_path}/count')
    assert run(hook)[0].ok
    assert (tmp_path / "count").read_text() == "0"


def test_nothing_open_leaks_into_a_hook(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    with socket.socket() as leaky:
        leaky.set_inheritable(True)
        assert run(script(tmp_path / "hook", "exec ls -l /proc/self/fd"))[0].ok
    assert not any("socket:" in line for line in logged(heard, "hook"))


def test_no_file_descriptor_and_no_zombie_stays(tmp_path: Path) -> None:
    hooks_run = [
        script(tmp_path / "good", "true"),
        script(tmp_path / "bad", "exit 1"),
        script(tmp_path / "slow", "sleep 60"),
        tmp_path / "missing",
    ]
    before = os.listdir("/proc/self/fd")
    for hook in hooks_run:
        run(hook, timeout=0.2)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- which ones run --------------------------------------------------------------------------------------------------


def test_a_directory_runs_in_name_order_and_skips_what_is_no_hook(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    for name in ("20-b", "10-a", ".hidden", "30-c~", "40-d.dpkg-old", "50-e.dpkg-dist", "100-z"):
        script(tmp_path / name, "echo ran")
    script(tmp_path / "60-f", "echo ran", mode=0o644)
    (tmp_path / "70-g").mkdir()
    results = run(tmp_path)
    assert [Path(r.path).name for r in results] == ["10-a", "100-z", "20-b"]
    assert all(r.ok for r in results)
    skipped = [r.getMessage() for r in heard.records if "skipped" in r.getMessage()]
    assert len(skipped) == 6


def test_one_that_fails_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    script(tmp_path / "1", "exit 3")
    script(tmp_path / "2", "true")
    (tmp_path / "3").symlink_to(tmp_path / "gone")
    assert [r.message.removeprefix(f"{tmp_path}/") for r in run(tmp_path)] == [
        "1: failed with exit status 3; its output is in the log",
        "",
        "3: cannot be opened: No such file or directory",
    ]


def test_an_empty_directory_is_no_result(tmp_path: Path) -> None:
    assert run(tmp_path) == ()


# --- which ones do not -----------------------------------------------------------------------------------------------


def test_a_missing_hook_names_its_key(tmp_path: Path) -> None:
    message = failure(tmp_path / "gone")
    assert message == f"hooks.pre = '{tmp_path}/gone': No such file or directory: make it, or correct the setting"
    assert failure(tmp_path / "gone", post=True).startswith("hooks.post = ")


def test_a_single_file_that_is_not_executable_is_told(tmp_path: Path) -> None:
    assert "is not executable: run `chmod 755" in failure(script(tmp_path / "hook", "true", mode=0o644))


@pytest.mark.parametrize("first_line", ["#!/no/such/interpreter", "no first line"])
def test_what_the_kernel_cannot_execute_is_told(tmp_path: Path, first_line: str) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"{first_line}\ntrue\n")
    hook.chmod(0o755)
    assert "cannot be executed" in failure(hook)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hook", 0o755)
    assert "is not a regular file" in failure(tmp_path / "hook")


def test_a_loop_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "symbolic links" in failure(tmp_path / "a")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_script_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    hook = script(tmp_path / "hook", f"touch {tmp_path}/ran", mode)
    assert f"others than its owner may write {hook}" in failure(hook)
    assert not (tmp_path / "ran").exists()


def test_a_strangers_script_is_refused(tmp_path: Path) -> None:
    hook = script(tmp_path / "hook", "true")
    os.chown(hook, 12345, 0)
    assert f"{hook} belongs to user 12345" in failure(hook)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", ["mode", "owner"])
def test_a_script_in_a_place_that_others_may_write_is_refused(tmp_path: Path, depth: int, kind: str) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    hook = script(inner / "hook", "true")
    place = (inner, inner.parent)[depth]
    if kind == "mode":
        place.chmod(0o777)
    else:
        os.chown(place, 12345, 0)
    for name in (hook, inner):
        assert f"{place}" in failure(name)
        assert "refused" in failure(name)


def test_a_sticky_directory_is_fine_further_up_but_not_as_the_place_of_hooks(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    hook = script(tmp_path / "inner" / "hook", "true")
    tmp_path.chmod(0o1777)
    assert run(hook)[0].ok
    (tmp_path / "inner").chmod(0o1777)
    assert "refused" in failure(hook)


@pytest.mark.parametrize("bad", ["target", "target's directory", "link's directory", "nothing"])
def test_a_link_is_judged_by_its_target_and_both_places(tmp_path: Path, bad: str) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "targets").mkdir()
    target = script(tmp_path / "targets" / "real", "true")
    link = tmp_path / "links" / "hook"
    link.symlink_to(target)
    culprit = {"target": target, "target's directory": target.parent, "link's directory": link.parent}.get(bad)
    if culprit is None:
        assert run(link)[0].ok
    else:
        culprit.chmod(0o777)
        assert f"may write {culprit}" in failure(link)


# --- how they end ----------------------------------------------------------------------------------------------------


def test_exit_status_and_signal_are_told(tmp_path: Path) -> None:
    assert "exit status 9" in failure(script(tmp_path / "status", "exit 9"))
    assert "ended by signal 15 (Terminated)" in failure(script(tmp_path / "signal", "kill -TERM $$"))


def test_a_hook_that_takes_too_long_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    hook = script(tmp_path / "hook", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    assert "did not end within 0.3 s" in failure(hook, timeout=0.3)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_children_that_ignore_sigterm_are_killed_too(tmp_path: Path) -> None:
    text = f"(trap '' TERM; echo $$ > {tmp_path}/x; exec sleep 60) & echo $! > {tmp_path}/pid; wait"
    assert "did not end within 0.3 s" in failure(script(tmp_path / "hook", text), timeout=0.3)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_hook_that_ignores_sigterm_is_killed_after_a_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_GRACE_SECONDS", 0.2)
    hook = script(tmp_path / "hook", "trap '' TERM; while true; do sleep 1; done")
    started = time.monotonic()
    assert "did not end within 0.2 s" in failure(hook, timeout=0.2)
    assert time.monotonic() - started < 10


def test_the_heart_beats_while_a_hook_takes_its_time(tmp_path: Path) -> None:
    beats = 0
    os.mkfifo(tmp_path / "go")

    def beat() -> float:
        nonlocal beats
        beats += 1
        if beats == 3:
            (tmp_path / "go").write_text("\n")
        return 0.01

    (result,) = run(script(tmp_path / "hook", f"read go < {tmp_path}/go"), beat=beat)
    assert result.ok
    assert beats >= 3


def test_a_hook_may_clean_up_on_sigterm(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    hook = script(tmp_path / "hook", "trap 'echo cleaned; exit 0' TERM; sleep 60 & wait")
    assert "did not end within" in failure(hook, timeout=0.3)
    assert logged(heard, "hook") == ["cleaned"]


def test_a_background_child_with_our_pipe_does_not_hold_us_up(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    hook = script(tmp_path / "hook", f"sleep 60 & echo $! > {tmp_path}/pid; echo done")
    (result,) = run(hook)
    child = int((tmp_path / "pid").read_text())
    try:
        assert result.ok
        assert result.seconds < 2
        assert logged(heard, "hook") == ["done"]
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_background_child_that_writes_for_ever_does_not_hold_us_up(tmp_path: Path) -> None:
    # On a busy machine the child leaves little of the processor to the hook.
    hook = script(tmp_path / "hook", f"yes & echo $! > {tmp_path}/pid; sleep 0.1")
    (result,) = run(hook, timeout=60)
    assert result.ok
    wait_until_gone(int((tmp_path / "pid").read_text()))


INTERRUPTED = """
import sys
from metaleg_node.reconcile import hooks
hooks.run(sys.argv[1], kind="pre", node="n", reason="r", changes=1, plan_json=b"", timeout=60, beat=lambda: 60)
"""


def test_a_hook_does_not_outlive_an_interrupted_caller(tmp_path: Path) -> None:
    hook = script(tmp_path / "hook", f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; sleep 60")
    command = [sys.executable, "-c", INTERRUPTED, str(hook)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as caller:
        deadline = time.monotonic() + 5
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        caller.send_signal(signal.SIGINT)
    wait_until_gone(int((tmp_path / "pid").read_text()))


# --- what they say ---------------------------------------------------------------------------------------------------


def test_both_outputs_become_log_lines(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    run(script(tmp_path / "hook", "echo one; echo two >&2; printf 'three \\377 without end'"))
    assert logged(heard, "hook") == ["one", "two", "three \ufffd without end"]


@pytest.mark.parametrize("text", ["yes | head -c 1000000", "head -c 1000000 /dev/zero"])
def test_the_output_in_the_log_is_bounded(tmp_path: Path, heard: pytest.LogCaptureFixture, text: str) -> None:
    # Thirty thousand lines through pytest's log take seconds beside other work.
    assert run(script(tmp_path / "hook", text), timeout=60)[0].ok
    lines = logged(heard, "hook")
    assert lines[-1] == "output truncated after 65536 bytes"
    assert sum(map(len, lines[:-1])) <= 65536


def test_output_of_just_the_limit_is_not_truncated(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    run(script(tmp_path / "hook", "head -c 65536 /dev/zero"))
    assert [len(line) for line in logged(heard, "hook")] == [65536]


# --- a stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["exec sleep 600", "trap '' TERM; while :; do sleep 600; done", "kill -STOP $$"])
def test_a_stop_ends_what_runs_and_begins_nothing_else(tmp_path: Path, text: str) -> None:
    hooks_dir = tmp_path / "hooks"
    hooks_dir.mkdir()
    pid, second = tmp_path / "pid", tmp_path / "second"
    script(hooks_dir / "1", f"echo $$ > {pid}.new; mv {pid}.new {pid}; {text}")
    script(hooks_dir / "2", f"touch {second}")
    seen = 0.0

    def stopping() -> bool:
        nonlocal seen
        if pid.exists():
            seen = seen or time.monotonic()
        return bool(seen)

    (result,) = run(hooks_dir, timeout=600, stopping=stopping)
    assert time.monotonic() - seen < patient(2.5)
    assert result.message.endswith("ended before its time, since the service stops")
    wait_until_gone(int(pid.read_text()))
    assert not second.exists()


def test_while_the_service_stops_no_hook_is_begun(tmp_path: Path) -> None:
    assert run(script(tmp_path / "hook", f"touch {tmp_path}/ran"), stopping=lambda: True) == ()
    assert not (tmp_path / "ran").exists()
