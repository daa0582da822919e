"""The state file: what it may look like, how it breaks, and that every way of changing it is noticed."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.core.objects.manifests import Parsed, merge
from metaleg_node.sources import documents, file_watch, state_file
from metaleg_node.sources.documents import yaml_warning
from metaleg_node.sources.file_watch import FileWatch, directories_of
from metaleg_node.sources.state_file import StateFile, StateFileError, StateFileSource, load
from metaleg_node.sources.store import Store

EXAMPLES = Path(__file__).parents[2] / "etc" / "metaleg-node" / "examples"


def pod(name: str, address: str = "10.244.1.5") -> str:
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: mail\n"
        f"spec:\n  nodeName: worker-1\nstatus:\n  podIPs:\n  - ip: {address}\n"
    )


def pods(*names: str) -> str:
    return "".join(f"---\n{pod(name)}" for name in names)


def names(loaded: Parsed) -> list[str]:
    return [one.ref.name for one in loaded.objects]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.yaml"


def read(file: Path, content: str | bytes) -> Parsed:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(file)


# --- what it may look like -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_load_without_a_rejection(example: Path) -> None:
    loaded = load(example)
    assert loaded.rejections == ()
    assert len(loaded.objects) >= 5
    assert len({one.ref for one in loaded.objects}) == len(loaded.objects)


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) == 3


ITEMS = "".join("- " + pod(name).replace("\n", "\n  ").rstrip() + "\n" for name in ("a", "b"))


@pytest.mark.parametrize(
    "content",
    [
        pods("a", "b"),
        f"# a comment\n\n{pods('a', 'b')}",
        pod("a") + "---\n" + pod("b") + "---\n",
        pods("a", "b").replace("\n", "\r\n"),
        "\ufeff" + pods("a", "b"),
        pods("a", "b").replace("---\n", "--- # one more\n"),
        f"%YAML 1.1\n{pods('a')}...\n{pods('b')}",
        f"---\n{pod('a')}...\n---\n{pod('b')}",
        f"apiVersion: v1\nitems:\n{ITEMS}kind: List\n",
        f"kind: List\nitems:\n{ITEMS}",
        json.dumps(yaml.safe_load(pod("a"))) + "\n" + json.dumps(yaml.safe_load(pod("b")), indent=2) + "\n",
        json.dumps({"kind": "List", "items": [yaml.safe_load(pod("a")), yaml.safe_load(pod("b"))]}),
        "--- " + json.dumps(yaml.safe_load(pod("a"))) + pods("b").replace("---", "\n---"),
    ],
)
def test_every_form_gives_the_same_objects(file: Path, content: str) -> None:
    loaded = read(file, content)
    assert names(loaded) == ["a", "b"]
    assert loaded.rejections == ()


def test_a_directory_is_read_in_name_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name, one in (("20.yml", "b"), ("10.yaml", "a"), (".hidden.yaml", "h"), ("notes.txt", "n"), ("x.yaml~", "t")):
        (tmp_path / name).write_text(pod(one))
    (tmp_path / "30.json").write_text(json.dumps(yaml.safe_load(pod("c"))))
    (tmp_path / "40.yaml").mkdir()
    assert names(load(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["# nobody\n", "---\n", "--- # nothing\n---\n"])
def test_a_file_of_comments_is_a_cluster_without_objects(file: Path, content: str) -> None:
    assert read(file, content).objects == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-02-02T09:00:00Z", "2026-02-02T09:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("on", "on"),
        ("yes", "yes"),
        ("=", "="),
        ("- ", None),
        ("~", None),
        ("true", True),
        ("'true'", "true"),
        ("!!str true", "true"),
        ("017", 17),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_values_mean_what_kubernetes_takes_them_for(
    text: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(documents, "parse", lambda raw, _config_maps: seen.append(raw) or Parsed())
    documents.read_yaml(f"kind: K\nkey: {text}\n" if text != "- " else "kind: K\nkey:\n", ("", ""))
    assert seen == [{"kind": "K", "key": expected}]


POOL = "address-pools: [{name: public, protocol: layer2, addresses: [192.0.2.0/28]}]"


def test_only_the_configured_config_map_is_metallbs_configuration(file: Path) -> None:
    text = (
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: NAME, namespace: metallb-system}\ndata:\n  config: |\n"
        "    address-pools:\n    - {name: public, protocol: layer2, addresses: [192.0.2.0/28]}\n"
    )
    file.write_text(text.replace("NAME", "config"))
    assert names(load(file)) == ["public"]
    assert names(load(file, ("metallb-system", "other"))) == []


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
@pytest.mark.parametrize("kind", ["List", "ConfigMapList"])
def test_the_config_map_is_found_in_a_list_too(file: Path, dump: Callable[[object], str], kind: str) -> None:
    one = {"metadata": {"name": "config", "namespace": "metallb-system"}, "data": {"config": POOL}}
    typed = {"apiVersion": "v1", "kind": "ConfigMap"} if kind == "List" else {}
    file.write_text(dump({"apiVersion": "v1", "kind": kind, "items": [{**typed, **one}]}))
    assert names(load(file)) == ["public"]
    assert names(load(file, ("metallb-system", "other"))) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{}", "data.config: is missing"),
        ('{config: "a: [1"}', "data.config: line 2: not valid YAML"),
        ('{config: "a: {b"}', "data.config: line "),
        ('{config: "- a"}', "data.config: line 1: is no Kubernetes object"),
    ],
)
def test_a_bad_config_map_costs_that_object_only(file: Path, data: str, words: str) -> None:
    text = f"kind: ConfigMap\napiVersion: v1\nmetadata: {{name: config, namespace: metallb-system}}\ndata: {data}\n"
    loaded = read(file, f"---\n{text}{pods('a')}")
    assert names(loaded) == ["a"]
    assert words in loaded.rejections[0].reason


# --- how it breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty, as a file that is just being written"),
        ("\n \n", "is empty"),
        (pods("a") + "---\nkind: [Pod\n", "line 14, document 2: not valid YAML"),
        (pods("a") + "---\nkind: Pod\n\tx: y\n", "line 14, document 2: not valid YAML"),
        (pods("a", "b") + "---\na: 1\nb: 2\na: 3\n", "line 26, document 3: the key 'a' is there twice"),
        (pods("a") + "---\nx: &y 1\nz: *y\n", "line 14, document 2: the alias *y"),
        (pods("a") + "---\nx: !!binary aGk=\n", "line 13, document 2: the tag 'tag:yaml.org,2002:binary'"),
        (pods("a") + "---\nx: !!python/object/apply:os.system [id]\n", "line 13, document 2: the tag"),
        (pods("a") + "---\n? [a]\n: b\n", "line 13, document 2: a key of a mapping is no text"),
        (pods("a") + "---\napiVers", "line 13, document 2: is no Kubernetes object"),
        (pods("a") + "---\n- a\n", "line 13, document 2: is no Kubernetes object"),
        (pods("a") + "---\nmetadata: {name: a}\n", "line 13, document 2: has no kind; was the text cut off?"),
        ("apiVersion: v1\nitems: []\n", "line 1, document 1: has no kind; was the text cut off?"),
        ("error: the server doesn't have a resource type\n", "line 1, document 1: has no kind"),
        ("kind: List\n", "line 1, document 1: kind List without a list of items"),
        ("kind: List\nitems:\n", "line 1, document 1: kind List without a list of items"),
        ("kind: PodList\nitems: {a: b}\n", "line 1, document 1: kind PodList without a list of items"),
        ('{"kind": "Pod"}\n{"items": []}', "line 2, document 2: has no kind"),
        ('{"kind": "List"}', "line 1, document 1: kind List without a list of items"),
        (f"%YAML 1.1\n{pods('a', 'b')}---\nb: [\n", "line 26, document 3: not valid YAML"),
        ("x: " + "[" * 5000, "document 1: "),
        ("---\nx: " + "{a: " * 200, "line 2, document 1: is nested more than 100 levels deep"),
        (pods("a").encode() + b"---\nx: caf\xe9\n", "line 13, document 2: is not UTF-8 (byte 0xe9)"),
        (pods("a").encode("utf-16"), "is not UTF-8"),
        (b"---\nx: a\x00b\n", "document 1: not valid YAML"),
        (b"\x00" * 4096, "document 1: not valid YAML"),
        ('{"kind": "Pod"}\n{"kind": \n', "line 3, document 2: not valid JSON: Expecting value"),
        ('{"kind": "Pod"}\n[1]\n', "line 2, document 2: is no Kubernetes object"),
        ('{"a": ' + "[" * 100_000, "line 1, document 1: JSON that cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "line 1, document 1: JSON that cannot be read"),
        (b'{"a": "\xff"}', "line 1, document 1: is not UTF-8"),
    ],
)
def test_a_broken_file_is_told_with_line_and_document(file: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(StateFileError) as caught:
        read(file, content)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_list_that_was_cut_off_anywhere_is_never_taken(file: Path) -> None:
    """kubectl prints the kind of a list at its end, so that many a part of one is valid YAML."""
    text = flush_list("a", "b")
    whole = text.index("kind: List\n") + len("kind: List")
    for length in range(1, whole):
        with pytest.raises(StateFileError):
            read(file, text[:length])
    assert names(read(file, text)) == ["a", "b"]


def test_yaml_bombs_are_refused_at_once(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(StateFileError, match=r"line 2, document 1: the alias \*a0"):
        read(file, "\n".join(lines))


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo, unix = tmp_path / "fifo.yaml", tmp_path / "socket.yaml"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (fifo, unix, Path("/dev/zero")):
            with pytest.raises(StateFileError, match="is no regular file"):
                load(path)


def test_a_pipe_put_in_place_at_the_last_moment_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(file)
    regular = os.stat(__file__)
    monkeypatch.setattr(Path, "stat", lambda _: regular)
    with pytest.raises(StateFileError, match="is no regular file"):
        load(file)


def test_missing_empty_and_looping_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("missing.yaml", "does not exist"),
        ("empty", "holds no state file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("missing/x.yaml", "does not exist"),
    ):
        with pytest.raises(StateFileError, match=words):
            load(tmp_path / name)


def test_a_file_that_is_too_large_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "MAX_BYTES", 50)
    with pytest.raises(StateFileError, match="is larger than"):
        read(file, pods("a"))


def test_an_unreadable_file_is_told(file: Path) -> None:
    file.write_text(pods("a"))
    file.chmod(0)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os._exit(0 if "permission denied" in _error_of(file) else 1)
    assert os.waitpid(child, 0)[1] == 0


def _error_of(file: Path) -> str:
    try:
        load(file)
    except StateFileError as error:
        return str(error)
    return ""


def test_one_broken_file_of_a_directory_breaks_the_whole_state(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pods("a"))
    (tmp_path / "b.yaml").write_text("x: [")
    with pytest.raises(StateFileError, match=r"b\.yaml: line 2, document 1"):
        load(tmp_path)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_only_changed_documents_are_translated_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_texts: list[str] = []
    real = documents.read_yaml
    monkeypatch.setattr(state_file, "read_yaml", lambda text, cm: read_texts.append(text) or real(text, cm))
    state = StateFile(file)
    file.write_text(pods("a", "b", "c"))
    first = state.read()
    file.write_text(pods("a", "x", "c"))
    second = state.read()
    assert read_texts == [f"---\n{pod(name)}" for name in ("a", "b", "c", "x")]
    assert names(second) == ["a", "x", "c"]
    assert second.objects[2] is first.objects[2]


def test_a_failed_attempt_keeps_what_it_translated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_texts: list[str] = []
    real = documents.read_yaml
    monkeypatch.setattr(state_file, "read_yaml", lambda text, cm: read_texts.append(text) or real(text, cm))
    state = StateFile(file)
    for content in (pods("a", "b") + "---\nx: [", pods("a", "b", "c")):
        file.write_text(content)
        try:
            loaded = state.read()
        except StateFileError:
            continue
    assert names(loaded) == ["a", "b", "c"]
    assert len(read_texts) == 4


def test_a_missing_c_loader_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yaml_warning() is None
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert "libyaml" in str(yaml_warning())


def test_without_the_c_loader_the_result_is_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(file, pods("a", "b")).objects
    monkeypatch.setattr(documents, "_LOADER", yaml.SafeLoader)
    assert load(file).objects == expected
    with pytest.raises(StateFileError, match="line 14, document 2: not valid YAML"):
        read(file, pods("a") + "---\nkind: [Pod\n")


# --- that changes are noticed ----------------------------------------------------------------------------------------


class Follower:
    """A source that follows a path, and the states and problems that it gave."""

    def __init__(self, path: Path, *, poll: float = 60.0, settle: float = 0.15) -> None:
        self.wake = threading.Condition()
        self.seen: list[list[str]] = []
        self.store = Store(self._changed)
        # The poll is far away, so that only notices can bring a change in time.
        self.source = StateFileSource(path, self.store, poll=poll, settle=settle)

    def _changed(self) -> None:
        self.seen.append(self.names)
        with self.wake:
            self.wake.notify_all()

    def until(self, told: Callable[[Follower], bool], seconds: float = 15.0) -> None:
        with self.wake:
            assert self.wake.wait_for(lambda: told(self), timeout=seconds), (self.names, self.problem)

    def until_names(self, *expected: str) -> None:
        self.until(lambda me: me.names == list(expected) and not me.problem)

    @property
    def names(self) -> list[str]:
        return [one.ref.name for one in self.store.snapshot().pods]

    @property
    def problem(self) -> str:
        return " ".join(self.store.problems)


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    started: list[Follower] = []

    def begin(path: Path, **options: float) -> Follower:
        follower = Follower(path, **options)
        started.append(follower)
        follower.source.start()
        return follower

    yield begin
    for follower in started:
        follower.source.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "state-file"]


Follow = Callable[..., Follower]


def replace(file: Path, content: str) -> None:
    temporary = file.with_name(".new")
    temporary.write_text(content)
    temporary.rename(file)


def test_a_replaced_file_is_in_force_at_once(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    for round_ in range(10):
        replace(file, pods(f"p{round_}"))
        follower.until_names(f"p{round_}")


def test_a_file_from_another_directory_may_replace_it(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "state.yaml"
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    (tmp_path / "other.yaml").write_text(pods("b"))
    (tmp_path / "other.yaml").rename(file)
    follower.until_names("b")


def test_a_file_rewritten_in_place_counts_when_its_writer_closes_it(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file, settle=30.0)
    follower.until_names("a")
    with file.open("w") as opened:
        for name in ("b", "c", "d"):
            opened.write(pods(name))
            opened.flush()
            time.sleep(0.02)
    follower.until_names("b", "c", "d")
    assert follower.seen == [["a"], ["b", "c", "d"]]


def test_a_writer_that_never_closes_is_read_when_it_is_quiet(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    with file.open("w") as opened:
        opened.write(pods("b"))
        opened.flush()
        follower.until_names("b")


def test_a_half_written_file_is_not_read_because_of_another_one(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "1.yaml").write_text(pods("a", "b"))
    (tmp_path / "2.yaml").write_text(pods("c"))
    follower = follow(tmp_path, settle=30.0)
    follower.until_names("a", "b", "c")
    with (tmp_path / "1.yaml").open("w") as opened:
        opened.write(pods("a"))
        opened.flush()
        time.sleep(0.02)
        replace(tmp_path / "2.yaml", pods("d"))
        time.sleep(0.1)
        opened.write(pods("b"))
    follower.until_names("a", "b", "d")
    assert follower.seen == [["a", "b", "c"], ["a", "b", "d"]]


def test_what_was_read_while_a_writer_began_is_not_used(
    file: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    real = StateFile.read

    def read_then_written(state: StateFile) -> Parsed:
        loaded = real(state)
        if names(loaded) == ["half"]:
            file.write_text(pods("half", "other"))
            follower.source._notice("modified", str(file))
        return loaded

    monkeypatch.setattr(StateFile, "read", read_then_written)
    replace(file, pods("half"))
    follower.until_names("half", "other")
    assert follower.seen == [["a"], ["half", "other"]]


def test_a_broken_file_changes_nothing_and_the_next_good_one_counts(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    replace(file, pods("b") + "---\nx: [\n")
    follower.until(lambda me: "line 14, document 2" in me.problem)
    assert "the state before stays in force" in follower.problem
    assert follower.names == ["a"]
    replace(file, pods("b"))
    follower.until_names("b")


def test_F37_an_emptied_file_keeps_the_last_state(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    file.write_text("")
    follower.until(lambda me: "is empty" in me.problem)
    assert follower.names == ["a"]


def test_a_deleted_file_keeps_the_last_state_and_may_come_back(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    file.unlink()
    follower.until(lambda me: "does not exist" in me.problem)
    assert follower.names == ["a"]
    file.write_text(pods("b"))
    follower.until_names("b")


def test_a_file_that_is_absent_at_the_start_is_told_and_awaited(tmp_path: Path, follow: Follow) -> None:
    file = tmp_path / "later" / "state.yaml"
    follower = follow(file)
    follower.until(lambda me: "no state is in force yet" in me.problem)
    assert not follower.store.loaded
    file.parent.mkdir()
    file.write_text(pods("a"))
    follower.until_names("a")


def test_a_swapped_link_is_followed_as_kubernetes_swaps_mounted_config_maps(tmp_path: Path, follow: Follow) -> None:
    for version, name in (("..1", "a"), ("..2", "b")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "state.yaml").write_text(pods(name))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "state.yaml").symlink_to("..data/state.yaml")
    follower = follow(tmp_path / "state.yaml")
    follower.until_names("a")
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    shutil.rmtree(tmp_path / "..1")
    follower.until_names("b")
    replace(tmp_path / "..2" / "state.yaml", pods("c"))
    follower.until_names("c")


def test_the_target_of_a_link_is_watched_where_it_lies(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "cluster.txt"
    target.write_text(pods("a"))
    (tmp_path / "near").mkdir()
    link = tmp_path / "near" / "state.yaml"
    link.symlink_to(target)
    follower = follow(link)
    follower.until_names("a")
    target.write_text(pods("b"))
    follower.until_names("b")
    replace(target, pods("c"))
    follower.until_names("c")
    link.unlink()
    follower.until(lambda me: "does not exist" in me.problem)
    link.symlink_to(target)
    follower.until_names("c")


def test_a_directory_is_followed(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "10.yaml").write_text(pods("a"))
    follower = follow(tmp_path)
    follower.until_names("a")
    (tmp_path / "20.yaml").write_text(pods("b"))
    follower.until_names("a", "b")
    (tmp_path / "10.yaml").unlink()
    follower.until_names("b")
    (tmp_path / "20.yaml").unlink()
    follower.until(lambda me: "holds no state file" in me.problem)
    assert follower.names == ["b"]


def test_a_removed_and_recreated_directory_is_watched_again(tmp_path: Path, follow: Follow) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    file = directory / "state.yaml"
    file.write_text(pods("a"))
    follower = follow(file, poll=0.3)
    follower.until_names("a")
    for name in ("b", "c"):
        shutil.rmtree(directory)
        follower.until(lambda me: "does not exist" in me.problem)
        directory.mkdir()
        file.write_text(pods(name))
        follower.until_names(name)


def test_a_directory_moved_away_is_noticed_by_the_poll(tmp_path: Path, follow: Follow) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "state.yaml").write_text(pods("a"))
    follower = follow(directory / "state.yaml", poll=0.1, settle=0.05)
    follower.until_names("a")
    directory.rename(tmp_path / "old")
    directory.mkdir()
    (directory / "state.yaml").write_text(pods("b"))
    follower.until_names("b")
    replace(directory / "state.yaml", pods("c"))
    follower.until_names("c")


def test_reading_the_file_does_not_trigger_reading_it(
    file: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[None] = []
    real = StateFile.read
    monkeypatch.setattr(StateFile, "read", lambda self: reads.append(None) or real(self))
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    replace(file, pods("b"))
    follower.until_names("b")
    time.sleep(0.3)
    assert len(reads) <= 4


def test_other_files_of_the_directory_do_not_hold_it_up(file: Path, follow: Follow) -> None:
    file.write_text(pods("a"))
    follower = follow(file, settle=30.0)
    follower.until_names("a")
    with (file.parent / "busy.log").open("w") as log:
        log.write("x")
        log.flush()
        replace(file, pods("b"))
        follower.until_names("b")


def test_without_inotify_the_poll_finds_changes(file: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr("metaleg_node.sources.file_watch.FileWatch.watch", refuse)
    file.write_text(pods("a"))
    follower = follow(file, poll=0.05, settle=0.05)
    follower.until_names("a")
    file.write_text(pods("b"))
    follower.until_names("b")


def test_an_unexpected_error_is_told_and_does_not_end_the_source(
    file: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(pods("a"))
    follower = follow(file)
    follower.until_names("a")
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "read", lambda _: 1 / 0)
        replace(file, pods("b"))
        follower.until(lambda me: "unexpected error ZeroDivisionError" in me.problem)
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    replace(file, pods("c"))
    follower.until_names("c")


def test_stop_ends_every_thread_quickly(file: Path) -> None:
    file.write_text(pods("a"))
    before = threading.active_count()
    follower = Follower(file)
    follower.source.start()
    follower.until_names("a")
    begin = time.monotonic()
    follower.source.stop()
    assert time.monotonic() - begin < 5
    assert threading.active_count() == before


def test_a_source_that_never_started_can_be_stopped(file: Path) -> None:
    StateFileSource(file, Store(lambda: None)).stop()


def test_a_directory_that_comes_back_with_the_same_inode_is_watched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "_identities", lambda directories: dict.fromkeys(directories, (1, 1)))
    notices: queue.Queue[tuple[str, str]] = queue.Queue()
    watch = FileWatch(lambda event, path: notices.put((event, path)))
    directory = tmp_path / "state"
    directory.mkdir()
    watch.watch([directory])
    try:
        directory.rmdir()
        assert notices.get(timeout=5) == ("deleted", str(directory))
        directory.mkdir()
        watch.watch([directory])
        (directory / "file").symlink_to("x")
        assert notices.get(timeout=5) == ("created", str(directory / "file"))
    finally:
        watch.stop()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("plain/file", {"plain"}),
        ("plain", {"", "plain"}),
        ("link/file", {"", "plain"}),
        ("plain/up/file", {"plain"}),
        ("missing/deep/file", {""}),
        ("plain/missing", {"plain"}),
    ],
)
def test_the_directories_that_decide_about_a_path(tmp_path: Path, path: str, expected: set[str]) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    (tmp_path / "plain" / "up").symlink_to("../plain")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    assert directories_of(tmp_path / path) == {tmp_path / name for name in expected}


# --- how long it takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["documents", "list"])
def test_fifty_megabytes_load(file: Path, form: str) -> None:
    names_ = [f"pod-{number}" for number in range(2500)]
    text = pods(*names_) if form == "documents" else flush_list(*names_)
    bulky = 'annotations: {note: "' + "x" * 20_000 + '"}\n'
    file.write_text(re.sub(r"( +)(namespace: mail\n)", rf"\1\2\1{bulky}", text))
    assert file.stat().st_size > 50_000_000
    assert names(load(file)) == names_


def flush_list(*names: str) -> str:
    """As kubectl prints it."""
    items = "".join("- " + pod(name).replace("\n", "\n  ").rstrip() + "\n" for name in names)
    return f"apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: ''\n"


def indented_list(*names: str) -> str:
    items = "".join("  - " + pod(name).replace("\n", "\n    ").rstrip() + "\n" for name in names)
    return f"---\nkind: List\nitems:\n{items}"


@pytest.mark.parametrize("form", [pods, flush_list, indented_list])
def test_one_changed_object_of_many_is_the_only_one_translated(
    file: Path, monkeypatch: pytest.MonkeyPatch, form: Callable[..., str]
) -> None:
    state = StateFile(file)
    names_ = [f"pod-{number}" for number in range(1500)]
    file.write_text(form(*names_))
    for _ in range(2):  # Also when nothing had changed at the look before.
        state.read()
    file.write_text(form(*names_[:700], "changed", *names_[700:]))
    translated = []
    translate = documents.translate
    monkeypatch.setattr(documents, "translate", lambda raw, name: translated.append(raw) or translate(raw, name))
    loaded = state.read()
    objects = [one for raw in translated for one in raw.get("items", [raw])]
    assert [one["metadata"]["name"] for one in objects] == ["changed"]
    assert names(loaded) == [*names_[:700], "changed", *names_[700:]]


# --- lists taken apart -----------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(alphabet=st.sampled_from("ab -:#'\"|>\n\t{}[]&*!%@,"), max_size=40),
    st.sampled_from(
        ["- x", "a\n- b\n", "items:\n- kind: Pod\n", "kind: List", "\n- kind: Pod\n  a: b\n", "x\n---\ny", "# c\n- d"]
    ),
)
"""Among them texts that look like parts of a list."""
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
KINDS = st.sampled_from(["Pod", "Node", "Widget", "ConfigMap"])
STRANGE_KINDS = st.sampled_from(["Pod", "PodList", "", None, 7])


@st.composite
def listed(draw: st.DrawFn, kinds: st.SearchStrategy[dict[str, object]]) -> dict[str, object]:
    name = st.sampled_from(["a", "b", "config"])
    metadata = st.fixed_dictionaries(
        {"name": name, "namespace": st.just("metallb-system")}, optional={"annotations": VALUES}
    )
    optional = {"spec": VALUES, "status": VALUES, "peers": VALUES, "items": VALUES, "data": VALUES}
    return {**draw(kinds), **draw(st.fixed_dictionaries({"metadata": metadata}, optional=optional))}


TYPED = st.builds(lambda kind: {"apiVersion": "v1", "kind": kind}, KINDS)
STRANGE = st.one_of(st.just({}), st.builds(lambda kind: {"kind": kind}, STRANGE_KINDS))


@given(
    items=st.one_of(
        st.lists(listed(TYPED), min_size=1, max_size=4), st.lists(st.one_of(listed(TYPED), listed(STRANGE), VALUES))
    ),
    kind=st.sampled_from(["List", "List", "List", "PodList", "ConfigMapList", "Pod"]),
    style=st.sampled_from([None, '"', "'", "|", ">"]),
    width=st.sampled_from([5, 20, 1000]),
    indented=st.booleans(),
    sort=st.booleans(),
)
def test_a_list_taken_apart_means_what_it_means_as_a_whole(
    items: list[object], kind: str, style: str | None, width: int, indented: bool, sort: bool
) -> None:
    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, indentless and not indented)

        def ignore_aliases(self, _data: object) -> bool:
            return True

    whole = {"apiVersion": "v1", "kind": kind, "items": items, "metadata": {"resourceVersion": ""}}
    text = yaml.dump(whole, Dumper=Dumper, default_style=style, width=width, sort_keys=sort)
    name = ("metallb-system", "config")
    with NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text.encode())
        file.flush()
        whole_text = told(lambda: merge(documents.read_yaml(text, name)))
        assert told(lambda: load(Path(file.name), name)) == whole_text.replace("FILE", file.name)


def told(read: Callable[[], Parsed]) -> str:
    """What was read, or what is wrong with FILE and where."""
    try:
        found = read()
    except StateFileError as error:
        return str(error)
    except documents.DocumentError as error:
        return f"FILE: line {error.line}, document {error.document}: {error.problem}"
    return repr((found.objects, found.rejections))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (flush_list("a", "b").replace("  kind: Pod", "  kind: [Pod"), "line 5, document 1: not valid YAML"),
        (flush_list("a", "b").replace("nodeName: worker-1", "nodeName: &n 1", 1) + "x: *n\n", "line 26, document 1"),
        (flush_list("a", "b") + "items: []\n", "line 26, document 1: the key 'items' is there twice"),
        (pods("x") + indented_list("a", "b").replace("name: b", "name: b\n      name: c"), "line 29, document 2"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_with_its_line(file: Path, text: str, words: str) -> None:
    with pytest.raises(StateFileError, match=words):
        read(file, text)


def test_a_quoted_text_that_looks_like_an_item_is_no_item(file: Path) -> None:
    """YAML wants the lines of a quoted text indented; PyYAML takes them as they are."""
    text = flush_list("a", "b").replace("name: a", 'name: "a\n- kind: Pod\n"')
    assert names(read(file, text))[-1] == "b"
    assert read(file, text) == documents.read_yaml(text, ("", ""))[0]
