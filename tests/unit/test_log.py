"""What log lines look like, and that nobody can forge one."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.daemon import log

OURS = logging.getLogger("metaleg_node.test")


@pytest.fixture(autouse=True)
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("metaleg_node")
    monkeypatch.setattr(root, "handlers", [])
    before = root.level, own.level, warnings.showwarning
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    own.setLevel(before[1])


def written(level: str, form: str, environ: dict[str, str] | None = None) -> io.StringIO:
    stream = io.StringIO()
    log.setup(level=level, form=form, stream=stream, environ=environ or {})
    return stream


def test_text_has_time_level_and_message() -> None:
    stream = written("info", "text")
    OURS.warning("no gateway for %s", "mail/relay")
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert rest == "warning: no gateway for mail/relay\n"


@pytest.mark.parametrize(
    ("level", "heard"),
    [("error", ["e"]), ("warning", ["e", "w"]), ("info", ["e", "w", "i"]), ("debug", ["e", "w", "i", "d"])],
)
def test_level_decides_what_is_heard(level: str, heard: list[str]) -> None:
    stream = written(level, "json")
    OURS.error("e")
    OURS.warning("w")
    OURS.info("i")
    OURS.debug("d")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == heard


def test_libraries_are_heard_from_warning_on_even_at_debug() -> None:
    stream = written("debug", "json")
    logging.getLogger("urllib3").debug("Authorization: secret")
    logging.getLogger("urllib3").warning("retry")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["retry"]


def test_a_second_setup_replaces_the_first() -> None:
    first, second = written("debug", "text"), written("error", "json")
    OURS.info("unheard")
    OURS.error("once")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "once"


@pytest.mark.parametrize("form", ["auto", "text", "json"])
def test_a_message_stays_on_one_line(form: str) -> None:
    stream = written("info", form)
    OURS.info("service %s", "a\n<0>2026-01-01 error: forged\x1b[31m\u2028")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("form", ["auto", "text"])
def test_no_line_of_a_traceback_begins_like_a_message(form: str) -> None:
    stream = written("info", form)
    try:
        raise ValueError("first\nsecond\x1b[31m")
    except ValueError:
        OURS.exception("broken")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("error: broken")
    assert others[-1].endswith("error:     second\\x1b[31m")
    assert all("error:     " in line for line in others)


def test_json_carries_the_traceback_in_its_object() -> None:
    stream = written("info", "json")
    try:
        raise ValueError("why")
    except ValueError:
        OURS.exception("broken")
    document = json.loads(stream.getvalue())
    assert document["level"] == "error"
    assert document["logger"] == "metaleg_node.test"
    assert document["traceback"].endswith("ValueError: why")


SCRIPT = """
import logging, os, sys
from metaleg_node.daemon import log
if sys.argv[1] == "journal":
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
else:
    os.environ["JOURNAL_STREAM"] = "1:1"
log.setup(level="debug", form=sys.argv[2])
for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
    logging.getLogger("metaleg_node").log(level, "hello")
"""


def run_script(tmp_path: Path, *arguments: str, script: str = SCRIPT) -> list[str]:
    """What a process writes to a standard error that is, or is not, what JOURNAL_STREAM names."""
    output = tmp_path / "stderr"
    with output.open("wb") as stderr:
        subprocess.run([sys.executable, "-c", script, *arguments], stderr=stderr, check=True, env=dict(os.environ))
    return output.read_text().splitlines()


def test_the_journal_gets_priorities_instead_of_times(tmp_path: Path) -> None:
    assert run_script(tmp_path, "journal", "auto") == ["<3>hello", "<4>hello", "<6>hello", "<7>hello"]


def test_the_journal_gets_priorities_in_front_of_what_was_asked_for(tmp_path: Path) -> None:
    lines = run_script(tmp_path, "journal", "json")
    assert [line[:3] for line in lines] == ["<3>", "<4>", "<6>", "<7>"]
    assert json.loads(lines[1][3:])["level"] == "warning"
    first = run_script(tmp_path, "journal", "text")[0]
    assert first.startswith("<3>20")
    assert first.endswith("Z error: hello")


@pytest.mark.parametrize("form", ["auto", "text"])
def test_elsewhere_there_are_no_priorities(tmp_path: Path, form: str) -> None:
    first = run_script(tmp_path, "elsewhere", form)[0]
    assert first.startswith("20")
    assert first.endswith("Z error: hello")


TRACEBACK = (
    SCRIPT.partition("for level")[0]
    + """
try:
    raise ValueError("first\\nsecond")
except ValueError:
    logging.getLogger("metaleg_node").exception("broken")
"""
)


def test_in_the_journal_each_line_of_a_traceback_has_the_priority(tmp_path: Path) -> None:
    first, *others = run_script(tmp_path, "journal", "auto", script=TRACEBACK)
    assert first == "<3>broken"
    assert others[-1] == "<3>    second"
    assert all(line.startswith("<3>    ") for line in others)


COMPLAINT = (
    SCRIPT.partition("log.setup")[0]
    + """
log.complain(["first\\nsecond", "third"])
"""
)


@pytest.mark.parametrize(("where", "start"), [("journal", "<3>"), ("elsewhere", "")])
def test_why_a_command_failed_is_an_error_in_the_journal(tmp_path: Path, where: str, start: str) -> None:
    assert run_script(tmp_path, where, script=COMPLAINT) == [f"{start}{word}" for word in ("first", "second", "third")]


def test_warnings_of_python_go_to_the_log() -> None:
    stream = written("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    assert "old call" in json.loads(stream.getvalue())["message"]
