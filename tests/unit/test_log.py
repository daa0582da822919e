"""What log lines look like, and that nobody can forge one."""

import io
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.core.changes import KINDS, Action, about, change
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon import journal, log
from metaleg_node.daemon.journal import JournalHandler

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


class Journald:
    """Takes what is sent to it, as journald's socket does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def fields(self) -> dict[str, str]:
        """Of the message that came next."""
        data, found = self.socket.recv(65536), {}
        while data:
            name, _, rest = data.partition(b"\n")
            if b"=" in name:
                key, _, value = name.partition(b"=")
                data = rest
            else:
                key, length = name, struct.unpack_from("<Q", rest)[0]
                value, data = rest[8 : 8 + length], rest[9 + length :]
            found[key.decode()] = value.decode()
        return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    found = Journald(tmp_path / "socket")
    yield found
    found.socket.close()


def test_what_is_told_of_an_object_has_fields_in_the_journal(journald: Journald) -> None:
    stream = io.StringIO()
    handler = JournalHandler(stream, log.BareFormatter(), journald.path)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    problem = Problem(code=Code.NO_GATEWAY, subject="Service shop/web", text="first\nsecond")
    more = {"kind": journal.problem_kind(problem.code), "about": about(problem.subject)}
    logger.error("%s", problem.line, extra=more)
    assert journald.fields() == {
        "MESSAGE": "Service shop/web: first\\nsecond [no-gateway]",
        "MESSAGE_ID": journal.message_id("problem no-gateway"),
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "metaleg-node",
        "SERVICE": "shop/web",
    }
    pod = change(Action.ADD, "pod", "10.244.1.5 leaves here", "Service shop/web as 192.0.2.1: b announces it")
    logger.info("%s", pod, extra={"kind": pod.kind, "about": pod.about})
    told = journald.fields()
    assert (told["POD"], told["SERVICE"], told["PRIORITY"]) == ("10.244.1.5", "shop/web", "6")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("broken", extra={"kind": "solved"})
    assert journald.fields()["MESSAGE"].endswith("\n    ValueError: why")
    assert stream.getvalue() == ""
    logger.info("of nothing")
    assert stream.getvalue() == "of nothing\n"
    handler.close()


def test_a_journal_that_takes_nothing_gets_the_line_like_any_other(journald: Journald) -> None:
    stream = io.StringIO()
    logger = logging.Logger("test")
    handler = JournalHandler(stream, log.BareFormatter(), journald.path)
    logger.addHandler(handler)
    for number in range(10000):
        logger.info("%d", number, extra={"kind": "solved"})
        if stream.getvalue():
            break
    assert stream.getvalue() == f"{number}\n", "it is full"
    journald.path.unlink()
    logger.info("gone", extra={"kind": "solved"})
    assert stream.getvalue().endswith("\ngone\n")
    handler.close()


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Service shop/web", {"SERVICE": "shop/web"}),
        ("Service shop/web as 192.0.2.1", {"SERVICE": "shop/web"}),
        ("Pod shop/web-0: x", {"POD": "shop/web-0"}),
        ("Service shop/WEB", {}),
        ("Service shop/web\u2028x", {}),
        ("return path p", {}),
        ("", {}),
    ],
)
def test_fields_are_of_objects_alone(text: str, fields: dict[str, str]) -> None:
    assert about(text) == fields


def test_every_kind_has_an_id_and_an_entry_of_the_catalogue() -> None:
    kinds = [*map(journal.problem_kind, Code), journal.solved_kind(), *KINDS]
    ids = re.findall(r"^-- ([0-9a-f]{32})$", journal.catalogue(), re.MULTILINE)
    assert ids == [journal.message_id(kind) for kind in kinds]
    assert len(set(ids)) == len(ids)
    assert journal.message_id("solved") == "880faac4a7ac5504a371284998b5b572", "it never changes"


def test_warnings_of_python_go_to_the_log() -> None:
    stream = written("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    assert "old call" in json.loads(stream.getvalue())["message"]
