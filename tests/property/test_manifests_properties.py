"""Whatever a cluster says, the parser answers; nothing unchecked comes through."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.core.model import Announcement, EndpointSlice, Service
from metaleg_node.core.objects.manifests import Parsed, parse, pruned
from tests.unit.test_manifests import EVERY_KIND

HOSTILE = st.sampled_from(
    ["", "None", "a;b", "$(id)", "x\n", "fe80::1%eth0", "::ffff:1.2.3.4", "10.0.0.0/0", "0", "-1", "\ud800", "x" * 300]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | HOSTILE
KEYS = st.text() | st.sampled_from(
    ["kind", "apiVersion", "metadata", "items", "spec", "peers", "address-pools", "name"]
)
JSON_LIKE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
SAFE = re.compile(r"[A-Za-z0-9._-]*")


def check(parsed: Parsed) -> None:
    """What later code relies on."""
    for rejection in parsed.rejections:
        assert rejection.reason.isprintable()
        assert str(rejection.ref).isprintable()
        assert len(rejection.reason) + len(str(rejection.ref)) < 2000
    for one in parsed.objects:
        names = [one.ref.name, one.ref.namespace]
        if isinstance(one, Announcement):
            names += [one.node, *one.service]
        if isinstance(one, EndpointSlice):
            names += [one.service, *(endpoint.node or "" for endpoint in one.endpoints)]
        if isinstance(one, Service):
            assert all(1 <= port.port <= 65535 for port in one.ports)
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in one.labels.items())
        for name in names:
            assert SAFE.fullmatch(name.replace("peers[", "").replace("]", ""))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in steps for found in [(*path, key), *places(inner, (*path, key))]]


@given(JSON_LIKE)
def test_any_value_is_answered(raw: object) -> None:
    check(parse(raw))


@given(st.sampled_from(sorted({make()["kind"] for make in EVERY_KIND.values()})), JSON_LIKE, JSON_LIKE)
def test_any_content_of_a_known_kind_is_answered(kind: str, metadata: object, rest: object) -> None:
    raw = {"kind": kind, "metadata": {"name": "a", "namespace": "b", "labels": metadata}}
    check(parse({**raw, "spec": rest, "status": rest, "endpoints": rest, "addressType": "IPv4"}))


@given(st.sampled_from(sorted(EVERY_KIND)), st.data(), JSON_LIKE | HOSTILE)
def test_any_damage_to_a_good_object_is_answered(kind: str, data: st.DataObject, value: object) -> None:
    raw = copy.deepcopy(EVERY_KIND[kind]())
    here: Any = raw
    *way, last = data.draw(st.sampled_from(places(raw)))
    for key in way:
        here = here[key]
    here[last] = value
    check(parse(raw))
    again = parse(json.loads(json.dumps(pruned(raw))))
    assert again == parse(raw)  # What the last known state keeps says the same.
