"""Fields of a state file that look like misspelt ones.

An API server refuses a field that there is not; nobody looks at what a file is written with. A selector that is called
`nodeSelector` is none, and selects everything. Field names are those of the API references that `manifests` names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from metaleg_node.core.model import Rejection
from metaleg_node.core.objects.manifests import is_known, ref_for_message

_LIKE = 0.8
"""How much alike two words are (difflib) of which one is taken for the other."""

_SHORT = 3
"""A longer word with more behind it, as nodeName for node, is taken for that word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The fields at one place: those that are read there, and others that exist and could be taken for them."""

    read: tuple[str, ...]
    known: frozenset[str]


def _place(read: str, other: str = "") -> _Place:
    return _Place(read=tuple(read.split()), known=frozenset((*read.split(), *other.split())))


_SELECTOR: Final = _place("matchLabels matchExpressions")
_EVERYWHERE: Final = {
    "": _place("apiVersion kind metadata spec status"),
    "metadata": _place("name namespace uid labels annotations creationTimestamp deletionTimestamp", "generateName"),
}
_PLACES: Final[Mapping[str, Mapping[str, _Place]]] = {
    "Service": {
        "spec": _place("type selector clusterIPs clusterIP externalIPs ports", "externalName"),
        "status": _place("loadBalancer"),
        "status.loadBalancer": _place("ingress"),
        "status.loadBalancer.ingress[]": _place("ip hostname", "ipMode ports"),
    },
    "EndpointSlice": {
        "": _place("apiVersion kind metadata addressType endpoints ports"),
        "endpoints[]": _place("addresses conditions nodeName targetRef", "hostname"),
        "endpoints[].conditions": _place("ready serving terminating"),
    },
    "Node": {"spec": _place("podCIDRs podCIDR"), "status": _place("addresses conditions")},
    "Pod": {
        "spec": _place("nodeName hostNetwork", "hostname nodeSelector"),
        "status": _place("phase podIPs podIP", "hostIP hostIPs"),
    },
    "ServiceCIDR": {"spec": _place("cidrs")},
    "ServiceL2Status": {"status": _place("node")},
    "ServiceBGPStatus": {"status": _place("node")},
    "IPAddressPool": {"spec": _place("addresses")},
    "BGPAdvertisement": {
        "spec": _place("ipAddressPools ipAddressPoolSelectors peers nodeSelectors"),
        "spec.ipAddressPoolSelectors[]": _SELECTOR,
    },
    "L2Advertisement": {
        "spec": _place("ipAddressPools ipAddressPoolSelectors nodeSelectors interfaces"),
        "spec.ipAddressPoolSelectors[]": _SELECTOR,
    },
    "BGPPeer": {
        "spec": _place("peerAddress nodeSelectors vrf interface"),
        "spec.nodeSelectors[]": _SELECTOR,
    },
}
_OLD_CONFIGURATION: Final[Mapping[str, _Place]] = {
    "": _place("peers address-pools"),
    "peers[]": _place("peer-address node-selectors", "source-address"),
    "peers[].node-selectors[]": _place("match-labels match-expressions"),
    "address-pools[]": _place("name protocol addresses"),
}


def misspelt(raw: object) -> Iterator[Rejection]:
    """What looks misspelt in a document of a state file: an object, a list of objects, or MetalLB's old configuration.
    Objects that nothing here reads may hold anything."""
    if not isinstance(raw, dict):
        return
    kind, items = raw.get("kind"), raw.get("items")
    if isinstance(kind, str) and kind.endswith("List"):
        for item in items if isinstance(items, list) else ():
            yield from misspelt({"kind": kind[:-4], **item} if isinstance(item, dict) else None)
    elif kind is None:
        yield from _look(raw, "MetalLB", _OLD_CONFIGURATION)
    elif isinstance(kind, str) and kind in _PLACES and is_known(kind, raw.get("apiVersion")):
        yield from _look(raw, kind, _EVERYWHERE | dict(_PLACES[kind]))


def _look(raw: Mapping[str, object], kind: str, places: Mapping[str, _Place]) -> Iterator[Rejection]:
    for path, place in places.items():
        for where, here in _at(raw, path):
            if here.keys() <= place.known:
                continue
            for key in here.keys() - place.known:
                if isinstance(key, str) and (meant := _meant(key, place)):
                    field = f"{where}.{key}" if where else key
                    reason = f"{field[:200]}: there is no such field; did you mean {meant}? It is left out"
                    yield Rejection(ref=ref_for_message(raw, kind), reason=reason)


def _meant(key: str, place: _Place) -> str:
    words, written = {word.lower(): word for word in place.read}, key[:60].lower()
    longer = [word for word in words if len(word) > _SHORT and written.startswith(word)]
    close = difflib.get_close_matches(written, words, n=1, cutoff=_LIKE) or longer
    return words[close[0]] if close else ""


def _at(raw: object, path: str, where: str = "") -> Iterator[tuple[str, Mapping[str, object]]]:
    """The mappings at a path, in which `[]` stands for each element of a list."""
    if not isinstance(raw, dict):
        return
    if not path:
        yield where, raw
        return
    step, _, rest = path.partition(".")
    name = step.removesuffix("[]")
    found, here = raw.get(name), f"{where}.{name}" if where else name
    if step == name:
        yield from _at(found, rest, here)
    elif isinstance(found, list):
        for index, one in enumerate(found):
            yield from _at(one, rest, f"{here}[{index}]")
