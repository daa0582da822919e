"""Turns the text of a state file into model objects, document by document.

The YAML here is built from parser events instead of by PyYAML's constructors: that takes half the time or less, and
values follow the YAML 1.2 core schema, as Kubernetes means them: a time stays text, `1:30` is no number, `on` is no
boolean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import yaml

from metaleg_node.core.model import ObjectRef, Rejection
from metaleg_node.core.objects.manifests import (
    NOTHING,
    OLD_KEYS,
    Parsed,
    is_list,
    is_old_configuration,
    merge,
    parse,
    ref_for_message,
)
from metaleg_node.core.objects.spelling import misspelt

MAX_DEPTH: Final = 100
"""How deep a document may be nested; Kubernetes objects stay below 20."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NO_OBJECT: Final = "is no Kubernetes object, but a list or a value"
_STR_TAGS: Final = ("!", "tag:yaml.org,2002:str")
_CONTAINER_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_CONSTANTS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_ITEMS: Final = re.compile(rb"\nitems:\n(?P<margin> *)- ")
_AFTER_ITEMS: Final = re.compile(rb"\n(?!- |[ \t\r\n#])")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_OLD_KEY: Final = re.compile(rf"^({'|'.join(sorted(OLD_KEYS))})\s*:", re.MULTILINE)


class DocumentError(ValueError):
    """A text that cannot be read. `line` counts from 1 in the text, `document` from 1 and from the text's start."""

    def __init__(self, problem: str, *, line: int | None, document: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.document = document


def yaml_warning() -> str | None:
    """What to tell the operator when PyYAML comes without its C part; None if all is well."""
    if hasattr(yaml, "CSafeLoader"):
        return None
    return (
        "PyYAML has no C loader here (libyaml): a large YAML state file takes about twenty times as long; install a "
        "PyYAML that is built with libyaml, or write the state file as JSON"
    )


def looks_like_json(content: bytes) -> bool:
    """Whether a text begins as JSON objects do."""
    return content[:4096].lstrip()[:1] in (b"{", b"[")


def read_json(text: str, configmap: tuple[str, str]) -> list[Parsed]:
    """The documents of a text of JSON objects, one after the other. Raises DocumentError."""
    decoder = json.JSONDecoder()
    parts: list[Parsed] = []
    position = _skip_blanks(text, 0)
    while position < len(text):
        try:
            raw, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DocumentError(f"not valid JSON: {error.msg}", line=error.lineno, document=len(parts) + 1) from error
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise DocumentError(f"JSON that cannot be read: {error}", line=line, document=len(parts) + 1) from error
        if not isinstance(raw, dict):
            line = text.count("\n", 0, position) + 1
            raise DocumentError(_NO_OBJECT, line=line, document=len(parts) + 1)
        if flaw := _flaw(raw):
            raise DocumentError(flaw, line=text.count("\n", 0, position) + 1, document=len(parts) + 1)
        parts.append(_of_file(raw, configmap))
        position = _skip_blanks(text, end)
    return parts


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def read_yaml(text: str, configmap: tuple[str, str]) -> list[Parsed]:
    """The documents of a YAML text; empty ones give an empty result each. Raises DocumentError."""
    return [_of_file(raw, configmap) for raw in _documents(text)]


def item_lists(document: bytes) -> Iterator[tuple[int, bytes]]:
    """A `kind: List`, as kubectl prints it, as one list for each of its items, with where each begins; nothing where a
    text has not that form.

    libyaml needs 2 s for the mere events of 5,000 Services, so what did not change must not be read again. It goes by
    the beginnings of lines alone. What it takes apart wrongly, a quoted text with a line that looks like an item for
    example, is no valid list in some part: an item is the last thing there, so what it leaves open stays open.
    """
    found = _ITEMS.search(document)
    if not found:
        return
    start = found.start("margin")
    after = _AFTER_ITEMS.search(document, start)
    end = after.start() + 1 if after else len(document)
    frame = document[: found.start() + 1] + document[end:] + b"\nitems:\n"
    begins = re.compile(b"(?m)^" + found["margin"] + b"- ").finditer(document, start, end)
    for begin, stop in pairwise([*(one.start() for one in begins), end]):
        yield begin, frame + document[begin:stop]


def _documents(text: str) -> Iterator[object]:
    """Each document as plain values."""
    documents = 0
    builder = _Builder()
    try:
        for root in builder.documents(text):
            if flaw := _flaw(root):
                raise DocumentError(flaw, line=builder.line, document=documents + 1)
            yield root
            documents += 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(f"not valid YAML: {told}", line=line, document=documents + 1) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise DocumentError(f"not valid YAML: {problem}", line=None, document=documents + 1) from error
    except _RefusedError as error:
        raise DocumentError(str(error), line=error.line, document=documents + 1) from error


def _flaw(raw: object) -> str:
    """What shows that a document is not whole, though its text is valid. kubectl prints the kind of a list behind its
    items: what was cut off within these is valid, and would mean that the cluster holds nothing."""
    if not isinstance(raw, dict):
        return ""
    kind = raw.get("kind")
    if kind is None and not is_old_configuration(raw):
        return (
            "has no kind; was the text cut off? A Kubernetes object or list, or MetalLB's old configuration is expected"
        )
    if is_list(kind, raw.get("apiVersion")) and not isinstance(raw.get("items"), list):
        return f"kind {str(kind)[:60]} without a list of items; was the text cut off?"
    if isinstance(raw.get("items"), list) and not str(kind).endswith("List") and kind is not None:
        return f"kind {str(kind)[:60]} with a list of items; was the text cut off? kind List is expected"
    return ""


def _of_file(raw: Any, configmap: tuple[str, str]) -> Parsed:
    items = raw.get("items") if isinstance(raw, dict) else None
    if isinstance(items, list) and len(items) > 1:
        # As `item_lists` takes it apart, so that the same is told in the same order.
        return merge([_of_file({**raw, "items": [item]}, configmap) for item in items])
    found, strange = translate(raw, configmap), tuple(misspelt(raw))
    return replace(found, rejections=(*found.rejections, *strange)) if strange else found


def translate(raw: object, configmap: tuple[str, str]) -> Parsed:
    """Reads one raw object, or a list of them; the ConfigMap of this namespace and name holds MetalLB's old
    configuration as YAML."""
    return parse(raw, lambda found: _old_configuration(found, configmap))


def _old_configuration(raw: Mapping[str, object], configmap: tuple[str, str]) -> Parsed:
    metadata, data = raw.get("metadata"), raw.get("data")
    text = data.get("config") if isinstance(data, dict) else None
    if not isinstance(metadata, dict) or (metadata.get("namespace"), metadata.get("name")) != configmap:
        return _of_another(raw, text, configmap)
    ref = ObjectRef(kind="ConfigMap", namespace=configmap[0], name=configmap[1])
    if not isinstance(text, str):
        return _rejected(ref, "data.config: is missing or no text; MetalLB's configuration is expected there")
    try:
        return merge(read_yaml(text, ("", "")))
    except DocumentError as error:
        return _rejected(ref, f"data.config: line {error.line or '?'}: {error.problem}")


def _of_another(raw: Mapping[str, object], text: object, configmap: tuple[str, str]) -> Parsed:
    """A ConfigMap that is not MetalLB's, or is it by another name."""
    if not isinstance(text, str) or not _OLD_KEY.search(text):
        return NOTHING
    reason = (
        f"looks like MetalLB's configuration, but that is expected in {'/'.join(configmap)}; if it is, set "
        "cluster.metallb_namespace and cluster.metallb_configmap"
    )
    return Parsed(rejections=(Rejection(ref=ref_for_message(raw, "ConfigMap"), reason=reason, harmless=True),))


def _rejected(ref: ObjectRef, reason: str) -> Parsed:
    return Parsed(rejections=(Rejection(ref=ref, reason=reason),))


class _RefusedError(ValueError):
    """Valid YAML that is not taken."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem)
        self.line: int | None = event.start_mark.line + 1 if event.start_mark else None


class _Builder:
    """Builds one document after the other from parser events, without recursion."""

    def __init__(self) -> None:
        self._root: object = None
        self.line: int | None = None
        """Where the document begins, if it is a mapping."""
        self._open: list[dict[str, object] | list[object]] = []
        self._keys: list[str | None] = []

    def documents(self, text: str) -> Iterator[object]:
        """Each as soon as it ends; an empty one is None."""
        loader = _LOADER(text)
        next_event, take = loader.get_event, self.take
        try:
            while type(event := next_event()) is not yaml.StreamEndEvent:
                take(event)
                if type(event) is yaml.DocumentEndEvent:
                    root, self._root = self._root, None
                    yield root
                    self.line = None
        finally:
            loader.dispose()

    def take(self, event: yaml.Event) -> None:
        # Most frequent first: this runs a hundred times for one object.
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin({}, event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin([], event)
        elif isinstance(event, yaml.AliasEvent):
            raise _RefusedError(
                f"the alias *{event.anchor}: aliases are not read, since a few of them can stand for any amount of "
                "data; write the value out",
                event,
            )

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        open_ = self._open
        if not open_:
            if _value(event) is not None:
                raise _RefusedError(_NO_OBJECT, event)
            return
        holder = open_[-1]
        if isinstance(holder, list):
            holder.append(_value(event))
            return
        key = self._keys[-1]
        if key is not None:
            holder[key] = _value(event)
            self._keys[-1] = None
        elif event.value in holder:
            raise _RefusedError(f"the key {event.value[:60]!r} is there twice in one mapping", event)
        else:
            self._keys[-1] = event.value

    def _begin(self, container: dict[str, object] | list[object], event: yaml.CollectionStartEvent) -> None:
        if event.tag not in _CONTAINER_TAGS:
            raise _RefusedError(f"the tag {event.tag[:60]!r} is not read; write plain values", event)
        if not self._open and isinstance(container, list):
            raise _RefusedError(_NO_OBJECT, event)
        if not self._open and event.start_mark:
            self.line = event.start_mark.line + 1
        if len(self._open) >= MAX_DEPTH:
            raise _RefusedError(f"is nested more than {MAX_DEPTH} levels deep", event)
        if self._open and isinstance(self._open[-1], dict) and self._keys[-1] is None:
            raise _RefusedError("a key of a mapping is no text", event)
        self._open.append(container)
        self._keys.append(None)

    def _end(self) -> None:
        container = self._open.pop()
        self._keys.pop()
        if not self._open:
            self._root = container
            return
        holder = self._open[-1]
        key = self._keys[-1]
        if isinstance(holder, list):
            holder.append(container)
        elif key is not None:
            holder[key] = container
            self._keys[-1] = None


def _value(event: yaml.ScalarEvent) -> object:
    """A scalar's value by the core schema, https://yaml.org/spec/1.2.2/#103-core-schema."""
    text: str = event.value
    if event.tag is not None:
        if event.tag in _STR_TAGS:
            return text
        raise _RefusedError(f"the tag {event.tag[:60]!r} is not read; write plain values", event)
    if not event.implicit[0]:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "0123456789+-.":
        if _INTEGER.fullmatch(text):
            return int(text)
        if len(text) < 40 and _FLOAT.fullmatch(text):
            return float(text)
    return text
