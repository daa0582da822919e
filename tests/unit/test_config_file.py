"""How the configuration's file is read, whatever stands at its path."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest

from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.configuration.file import Watch, load


def load_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    return str(problem)


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'[node]\r\nname = "n1"\r\n')
    assert load(path).node.name == "n1"
    assert load(str(path)) == load(path)


def test_a_missing_file_is_a_problem_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert load_problem(path) == (
        f"{path}: cannot be read: No such file or directory; create it, or name another with --config"
    )


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo, unix = tmp_path / "fifo.toml", tmp_path / "socket.toml"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (tmp_path, fifo, unix, Path("/dev/zero")):
            assert load_problem(path).startswith(f"{path}: is no regular file")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * config_file.MAX_BYTES)
    assert load(path) == Config()
    os.truncate(path, 1 << 40)
    assert load_problem(path).startswith(f"{path}: is larger than 1 MiB")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[egress]\n")
    real = os.fstat

    def changed_after_each_look(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        path.write_text("[egress]\nenabled = false\n")
        return status

    monkeypatch.setattr(os, "fstat", changed_after_each_look)
    assert "changed while it was read" in load_problem(path)


def test_an_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    os.symlink(path, path)
    assert "cannot be read" in load_problem(path)


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"# ok\n# caf\xe9\n")
    assert load_problem(path) == f"{path}: line 2: not UTF-8 (byte 0xe9); save the file as UTF-8"


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n\n"])
def test_an_empty_file_is_one_that_somebody_writes_and_a_comment_is_all_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.toml: is empty, .* write a comment"):
        load(path)
    path.write_text(f"{text}# all defaults\n")
    assert load(path) == Config()


# --- when it is to be read again -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("[egress]\nenabled = false\n")
    return path


def append(file: Path, text: str) -> None:
    with file.open("a") as writer:
        writer.write(text)


def test_a_file_that_stays_as_it_was_read_is_not_read_again(file: Path) -> None:
    watch = Watch(file)
    assert [watch.wait(now) for now in (0, 10)] == [math.inf, math.inf]


def test_a_file_is_read_when_it_was_left_alone_for_long_enough(file: Path) -> None:
    watch = Watch(file, settle=2)
    file.write_text("[egress]\n")
    assert [watch.wait(now) for now in (10, 11.5)] == [2, 0.5]
    append(file, "enabled = ")
    assert watch.wait(11.75) == 2
    append(file, "false\n")
    assert [watch.wait(now) for now in (13.5, 14.5, 15.5, 16)] == [2, 1, 0, 0]
    watch.reading()
    assert watch.wait(17) == math.inf


def test_a_change_before_the_first_look_and_one_while_the_file_is_read_are_not_missed(file: Path) -> None:
    watch = Watch(file, settle=2)
    append(file, "# 1\n")
    assert [watch.wait(now) for now in (0, 2)] == [2, 0]
    watch.reading()
    append(file, "# 2\n")
    assert [watch.wait(now) for now in (2, 4)] == [2, 0]


def test_a_replaced_file_a_missing_one_and_one_that_may_be_read_now_are_changes(file: Path) -> None:
    watch = Watch(file, settle=2)
    for change in (
        lambda: (file.parent / "new").write_text("") or (file.parent / "new").replace(file),
        lambda: file.chmod(0o600),
        file.unlink,
        lambda: file.write_text("# back\n"),
    ):
        change()
        assert [watch.wait(now) for now in (0, 2)] == [2, 0]
        watch.reading()


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'\xef\xbb\xbf[node]\nname = "n"\n')
    assert load(path).node.name == "n"


# --- fragments -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fragments(file: Path) -> Path:
    directory = file.parent / "conf.d"
    directory.mkdir()
    return directory


def test_fragments_are_merged_in_name_order_and_whoever_is_hidden_or_called_otherwise_is_left_out(
    file: Path, fragments: Path
) -> None:
    file.write_text('egress = {enabled = false, exclude_cidrs = ["192.0.2.0/24"]}\nlog.level = "error"\n')
    (fragments / "20-b.toml").write_text('[egress]\nlabel = "b/b"\nexclude_cidrs = ["198.51.100.0/24"]\n')
    (fragments / "10-a.toml").write_text('[egress]\nlabel = "a/a"\n[node]\nname = "n1"\n')
    for name in (".30-c.toml", "40-d.toml.dpkg-new", "50-e.conf"):
        (fragments / name).write_text("nonsense")
    config = load(file)
    assert (config.egress.label, config.egress.enabled, config.node.name, config.log.level) == (
        "b/b",
        False,
        "n1",
        "error",
    )
    assert list(map(str, config.egress.exclude_cidrs)) == ["198.51.100.0/24"]


def test_a_problem_names_the_file_that_it_is_in(file: Path, fragments: Path) -> None:
    first, second = fragments / "1.toml", fragments / "2.toml"
    file.write_text('[egress]\nenabled = "yes"\n[firewall]\nroute_table_base = 1000\n')
    first.write_text('[log]\nlevel = "loud"\n[[return_path.l2]]\nname = "p"\n')
    second.write_text('[log]\nformat = "x"\n[return_path]\nbgp = {table = 1007}\n[egress]\nlable = "a"\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    found = {problem.key: Path(problem.file).name for problem in caught.value.problems}
    assert found == {
        "egress.enabled": file.name,
        "egress.lable": "2.toml",
        "log.level": "1.toml",
        "log.format": "2.toml",
        "return_path.bgp.table": "2.toml",
        "return_path.l2[0].interface": "1.toml",
    }


def test_files_that_cannot_be_read_are_all_named(file: Path, fragments: Path) -> None:
    file.write_text("[egress\n")
    (fragments / "a.toml").write_text("= 1")
    (fragments / "b.toml").symlink_to("b.toml")
    (fragments / "c.toml").mkdir()
    (fragments / "d.toml").write_text(" \n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [Path(problem.file).name for problem in caught.value.problems] == ["b.toml", "c.toml", "d.toml"]
    for name in ("b.toml", "d.toml"):
        (fragments / name).unlink()
    (fragments / "c.toml").rmdir()
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [Path(problem.file).name for problem in caught.value.problems] == ["config.toml", "a.toml"]


def test_a_fragment_that_comes_changes_or_goes_is_a_change(file: Path, fragments: Path) -> None:
    watch, fragment = Watch(file, settle=2), fragments / "a.toml"
    for change in (
        lambda: fragment.write_text("# 1\n"),
        lambda: fragment.write_text("# 1, 2\n"),
        lambda: fragment.rename(fragments / "b.toml"),
        (fragments / "b.toml").unlink,
    ):
        change()
        assert [watch.wait(now) for now in (0, 2)] == [2, 0]
        watch.reading()
    (fragments / ".a.toml.swp").touch()
    assert watch.wait(3) == math.inf
