"""What a program started by the kernel modules gets and gives back."""

from __future__ import annotations

import time

import pytest

from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError, MissingProgramError
from tests.patience import patient


def test_output_error_output_and_status_come_back() -> None:
    done = process.run(["bash", "-c", "cat; echo oops >&2; exit 3"], stdin="grüße")
    assert (done.returncode, done.stdout, done.stderr) == (3, "grüße", "oops\n")


def test_a_child_sees_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    lines = process.run(["env"]).stdout.splitlines()
    assert sorted(lines) == ["LC_ALL=C", f"PATH={process.SEARCH_PATH}"]


def test_the_callers_search_path_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert process.run(["true"]).returncode == 0


@pytest.mark.parametrize(("program", "package"), [("nft", "nftables"), ("other-program", "other-program")])
def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch, program: str, package: str) -> None:
    monkeypatch.setattr(process, "SEARCH_PATH", "/nowhere")
    with pytest.raises(
        MissingProgramError, match=rf"program {program} is not installed.*install the package {package}$"
    ):
        process.run([program, "-v"])


def test_a_program_that_hangs_is_killed() -> None:
    begin = time.monotonic()
    with pytest.raises(KernelError, match=r"`sleep 30` did not end within 0\.1 s and was killed"):
        process.run(["sleep", "30"], timeout=0.1)
    assert time.monotonic() - begin < patient(5)


def test_output_that_is_no_text_is_not_fatal() -> None:
    assert process.run(["printf", r"\377"]).stdout == "\ufffd"


@pytest.mark.parametrize(
    ("name", "words"), [("KILL", r"signal 9 \(Killed\): .* for want of memory"), ("SEGV", r"signal 11 \(Seg.*\)$")]
)
def test_a_program_that_a_signal_ended_is_reported_with_it(name: str, words: str) -> None:
    with pytest.raises(KernelError, match=rf"`bash -c kill -{name} \$\$` was ended by {words}"):
        process.run(["bash", "-c", f"kill -{name} $$"])
