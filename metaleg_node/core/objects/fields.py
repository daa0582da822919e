"""Reads single fields of raw Kubernetes objects without ever trusting them.

What a cluster says may be of any type and any size. Each reader here gives a checked value or notes why there is none,
so that `manifests` can speak about objects and nothing else. Addresses and names that pass are safe in every later
place: they hold no zone, no blank and no character that means something to a shell or to nft.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from metaleg_node.core import networks
from metaleg_node.core.model import Address, Family, LabelRequirement, LabelSelector, Network, ObjectRef, Rejection
from metaleg_node.core.networks import parse_address, parse_network

MAX_REJECTIONS: Final = 10
"""How many problems of one object are told; a broken object must not fill the log."""
MAX_SHOWN: Final = 60
"""How many characters of a bad value a message shows."""
MIN_PREFIX: Final = 4
"""Wider networks are mistakes: with a pod network of 0.0.0.0/0 every destination would be inside the cluster."""

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/: RFC 1123 subdomains and labels.
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMESPACE: Final = re.compile(_LABEL)
# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/: syntax of keys and values.
_LABEL_KEY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)

NAME_SYNTAX: Final = "a Kubernetes name (lower case letters, digits, '-' and '.', at most 253)"
NAMESPACE_SYNTAX: Final = "a Kubernetes namespace (lower case letters, digits and '-', at most 63)"
LABEL_SYNTAX: Final = "a label value: text of letters, digits, '-', '_' and '.', at most 63; quote numbers and booleans"


class UnusableError(ValueError):
    """The whole object cannot be used; the text says why."""


def show(value: object) -> str:
    """A value for a message: short, on one line, without control characters."""
    if isinstance(value, str):
        text = repr(value[:MAX_SHOWN])
        return text if len(value) <= MAX_SHOWN else f"{text}… ({len(value)} characters)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    # Python refuses to print really long integers (sys.set_int_max_str_digits).
    return "a huge number" if isinstance(value, int) and abs(value) >= 10**18 else repr(value)[:MAX_SHOWN]


def address_of(value: object) -> Address | str:
    """An address of a host that packets can come from, or what was expected instead.

    Refused is also what names no single host beyond this link: unspecified, loopback, link-local, multicast and
    broadcast addresses.
    """
    if not isinstance(value, str) or len(value) > 45:
        return "an IP address in text form"
    try:
        address = parse_address(value)
    except ValueError as error:
        return _expected("an IP address", error)
    return _refusal_v4(address) or address if isinstance(address, IPv4Address) else _refusal_v6(address) or address


def _expected(what: str, error: ValueError) -> str:
    return f"{what} ({error})" if str(error) else what


def _refusal_v4(address: IPv4Address) -> str:
    number = int(address)
    top = number >> 24
    if top in (0, 127) or 224 <= top < 240 or number >> 16 == 0xA9FE or number == 0xFFFFFFFF:
        return "an address of one host (not unspecified, loopback, link-local, multicast or broadcast)"
    return ""


def _refusal_v6(address: IPv6Address) -> str:
    number = int(address)
    if not number >> 32:
        return "an IPv6 address of its own (not IPv4 inside IPv6, unspecified or loopback)"
    if number >> 120 == 0xFF or number >> 118 == 0x3FA:
        return "an address of one host (not link-local or multicast)"
    return ""


def network_of(value: object, least: int = MIN_PREFIX) -> Network | str:
    """A network in CIDR form whose prefix has at least so many bits, or what was expected instead."""
    if not isinstance(value, str) or len(value) > 49:
        return "a network in CIDR form"
    try:
        network = parse_network(value, of_object=True)
    except ValueError as error:
        return _expected("a network in CIDR form, such as 192.0.2.0/24", error)
    if network.prefixlen < least:
        return f"a network of one cluster (a prefix of at least {least} bits)"
    return network


def range_of(value: object) -> tuple[Address, Address] | str:
    """An inclusive range of addresses from a CIDR or from `first-last`, or what was expected instead."""
    expected = "a range of addresses: a CIDR, or FIRST-LAST of one family with FIRST not above LAST"
    if not isinstance(value, str) or len(value) > 200:
        return expected
    first_text, dash, last_text = value.partition("-")
    if not dash:
        network = network_of(value.strip())
        return network if isinstance(network, str) else networks.range_of(network)
    first, last = address_of(first_text.strip()), address_of(last_text.strip())
    if isinstance(first, str) or isinstance(last, str) or first.version != last.version or int(first) > int(last):
        return expected
    return first, last


def is_name(value: object) -> bool:
    """Whether this is the name of an object, a node for example."""
    return isinstance(value, str) and len(value) <= 253 and _SUBDOMAIN.fullmatch(value) is not None


def is_namespace(value: object) -> bool:
    """Whether this is the name of a namespace."""
    return isinstance(value, str) and len(value) <= 63 and _NAMESPACE.fullmatch(value) is not None


def is_label_key(value: object) -> bool:
    """Whether this is a label's key, with or without a prefix."""
    return isinstance(value, str) and len(value) <= 317 and _LABEL_KEY.fullmatch(value) is not None


def is_label_value(value: object) -> bool:
    """Whether this is a label's value; it may be empty."""
    return isinstance(value, str) and _LABEL_VALUE.fullmatch(value) is not None


def timestamp_of(value: object, timespec: str = "seconds") -> str | None:
    """An RFC 3339 time in UTC, of one form so that text order is time order; None if it is none."""
    if not isinstance(value, str) or len(value) > 64 or not _RFC3339.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


class Reader:
    """Reads the fields of one object by dotted paths and gathers what is wrong with them.

    A field that is absent, or null, is an empty value and no problem; one of a wrong type is an empty value and a
    rejection.
    """

    def __init__(self, raw: Mapping[str, object], ref: ObjectRef) -> None:
        self.ref = ref
        self._raw = raw
        self._reasons: dict[str, None] = {}

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        reasons = list(self._reasons)
        if len(reasons) > MAX_REJECTIONS:
            reasons[MAX_REJECTIONS:] = [f"and {len(reasons) - MAX_REJECTIONS} more problems"]
        return tuple(Rejection(ref=self.ref, reason=reason) for reason in reasons)

    def reject(self, field: str, value: object, expected: str) -> None:
        self._reasons[f"{field}: {show(value)} is not {expected}; it is left out"] = None

    def value(self, path: str) -> object:
        """What stands at a path; None if nothing does."""
        here: object = self._raw
        keys = path.split(".")
        for depth, key in enumerate(keys):
            if not isinstance(here, dict):
                self.reject(".".join(keys[:depth]), here, "a mapping")
                return None
            here = here.get(key)
            if here is None:
                return None
        return here

    def text(self, path: str) -> str:
        value = self.value(path)
        if value is None or isinstance(value, str):
            return value or ""
        self.reject(path, value, "text")
        return ""

    def flag(self, path: str) -> bool:
        value = self.value(path)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.reject(path, value, "true or false")
        return False

    def items(self, path: str) -> Sequence[object]:
        value = self.value(path)
        if value is None or isinstance(value, list):
            return value or ()
        self.reject(path, value, "a list")
        return ()

    def entry(self, value: object, field: str) -> Mapping[str, object]:
        """An element of a list that must be a mapping; an empty one, and a rejection, if it is not."""
        if isinstance(value, dict):
            return value
        self.reject(field, value, "a mapping")
        return {}

    def entries(self, path: str) -> Iterable[tuple[str, Mapping[str, object]]]:
        """The mappings in a list, each with its own path for messages."""
        for index, value in enumerate(self.items(path)):
            field = f"{path}[{index}]"
            if isinstance(value, dict):
                yield field, value
            else:
                self.reject(field, value, "a mapping")

    def name(self, path: str) -> str | None:
        """A node's name, for example; None if absent, empty or bad."""
        return self.name_in(self.value(path), path)

    def name_in(self, value: object, field: str) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str) and is_name(value):
            # Thousands of pods name the same few nodes.
            return sys.intern(value)
        self.reject(field, value, NAME_SYNTAX)
        return None

    def address(self, value: object, field: str, family: Family | None = None) -> Address | None:
        """One address, of that family if one is given."""
        address = address_of(value)
        if isinstance(address, str):
            self.reject(field, value, address)
            return None
        if family is not None and address.version != family:
            self.reject(field, value, f"an IPv{family} address")
            return None
        return address

    def addresses(self, values: Sequence[object], field: str, family: Family | None = None) -> tuple[Address, ...]:
        """The good addresses of a list, each once."""
        found: dict[Address, None] = {}
        for index, value in enumerate(values):
            address = self.address(value, f"{field}[{index}]", family)
            if address is not None:
                found[address] = None
        return tuple(found)

    def networks(self, path: str) -> tuple[Network, ...]:
        """The good networks of a list, each once."""
        found: dict[Network, None] = {}
        for index, value in enumerate(self.items(path)):
            network = network_of(value)
            if isinstance(network, str):
                self.reject(f"{path}[{index}]", value, network)
            else:
                found[network] = None
        return tuple(found)

    def ranges(self, path: str) -> tuple[tuple[Address, Address], ...]:
        """The good address ranges of a list."""
        found = []
        for index, value in enumerate(self.items(path)):
            pair = range_of(value)
            if isinstance(pair, str):
                self.reject(f"{path}[{index}]", value, pair)
            else:
                found.append(pair)
        return tuple(found)

    def mapping(self, path: str) -> Mapping[str, object]:
        value = self.value(path)
        return {} if value is None else self.entry(value, path)

    def labels(self) -> Mapping[str, str]:
        """metadata.labels without those that Kubernetes would not take either."""
        labels = {}
        for key, value in self.mapping("metadata.labels").items():
            if not is_label_key(key):
                self.reject("metadata.labels", key, "a label key")
            elif isinstance(value, str) and is_label_value(value):
                labels[key] = value
            else:
                self.reject(f"metadata.labels[{key}]", value, LABEL_SYNTAX)
        return labels

    def annotations(self, prefix: str) -> Mapping[str, str]:
        """Those of metadata.annotations whose key begins so."""
        found = {}
        for key, value in self.mapping("metadata.annotations").items():
            if not isinstance(key, str) or not key.startswith(prefix):
                continue
            if not is_label_key(key):
                self.reject("metadata.annotations", key, "an annotation key")
            elif isinstance(value, str):
                found[key] = value
            else:
                self.reject(f"metadata.annotations[{key}]", value, "text; quote it")
        return found

    def timestamp(self, path: str, timespec: str = "seconds") -> str:
        """An RFC 3339 time in UTC; empty if absent or bad."""
        value = self.value(path)
        if value is None:
            return ""
        moment = timestamp_of(value, timespec)
        if moment is None:
            self.reject(path, value, "an RFC 3339 time, such as 2024-05-01T08:00:00Z")
        return moment or ""


# --- lists of which every entry counts -------------------------------------------------------------------------------
#
# A selector that lost a requirement, or a list that became empty, would select more than was asked for. So one bad
# entry makes the whole object unusable.


def names(reader: Reader, path: str) -> tuple[str, ...]:
    """A list of names; what is none can name nothing, and is left out. Raises UnusableError where none is left: an
    empty list would mean something else."""
    found, wrong = [], []
    for index, value in enumerate(_all_items(reader.value(path), path)):
        if isinstance(value, str) and is_name(value):
            found.append(value)
        else:
            wrong.append((f"{path}[{index}]", value))
    if wrong and not found:
        raise UnusableError(f"{wrong[0][0]}: {show(wrong[0][1])} is not {NAME_SYNTAX}")
    for field, value in wrong:
        reader.reject(field, value, NAME_SYNTAX)
    return tuple(found)


MAX_NETWORKS = 256
"""Of one list: whoever may write an object could write thousands."""


def every_network(reader: Reader, path: str) -> tuple[Network, ...] | None:
    """A list of networks, those of all addresses included. None if anything in it is wrong, which costs only what the
    list is for."""
    value = reader.value(path)
    if not isinstance(value, list):
        return () if value is None or reader.items(path) else None
    if len(value) > MAX_NETWORKS:
        reader.reject(path, f"{len(value)} networks", f"at most {MAX_NETWORKS}")
        return None
    found = [network_of(item.strip() if isinstance(item, str) else item, least=0) for item in value]
    for index, network in enumerate(found):
        if isinstance(network, str):
            reader.reject(f"{path}[{index}]", value[index], network)
    networks_ = tuple(network for network in found if not isinstance(network, str))
    return networks_ if len(networks_) == len(found) else None


def selectors(
    reader: Reader, path: str, labels: str = "matchLabels", expressions: str = "matchExpressions"
) -> tuple[LabelSelector, ...]:
    """A list of label selectors, whose two keys MetalLB's old configuration spells its own way. Raises UnusableError.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/label-selector/
    """
    return tuple(
        _selector(_mapping(value, f"{path}[{index}]"), f"{path}[{index}]", labels, expressions)
        for index, value in enumerate(_all_items(reader.value(path), path))
    )


def _selector(raw: Mapping[str, object], field: str, labels: str, expressions: str) -> LabelSelector:
    found = [
        LabelRequirement(
            key=_key(key, f"{field}.{labels}"), operator="In", values=_values([value], f"{field}.{labels}")
        )
        for key, value in _mapping(raw.get(labels), f"{field}.{labels}").items()
    ]
    for index, value in enumerate(_all_items(raw.get(expressions), f"{field}.{expressions}")):
        where = f"{field}.{expressions}[{index}]"
        found.append(_requirement(_mapping(value, where), where))
    return tuple(found)


def _requirement(raw: Mapping[str, object], field: str) -> LabelRequirement:
    operator = raw.get("operator")
    key = _key(raw.get("key"), f"{field}.key")
    if operator in ("Exists", "DoesNotExist"):
        return LabelRequirement(key=key, operator=str(operator))
    if operator not in ("In", "NotIn"):
        raise UnusableError(f"{field}.operator: {show(operator)} is not In, NotIn, Exists or DoesNotExist")
    values = _values(_all_items(raw.get("values"), f"{field}.values"), f"{field}.values")
    if not values:
        raise UnusableError(f"{field}.values: is empty, but {operator} needs values")
    return LabelRequirement(key=key, operator=str(operator), values=values)


def _mapping(value: object, field: str) -> Mapping[str, object]:
    if value is None or isinstance(value, dict):
        return value or {}
    raise UnusableError(f"{field}: {show(value)} is not a mapping")


def _all_items(value: object, field: str) -> Sequence[object]:
    if value is None or isinstance(value, list):
        return value or ()
    raise UnusableError(f"{field}: {show(value)} is not a list")


def _key(value: object, field: str) -> str:
    if isinstance(value, str) and is_label_key(value):
        return value
    raise UnusableError(f"{field}: {show(value)} is not a label key")


def _values(values: Sequence[object], field: str) -> tuple[str, ...]:
    for value in values:
        if not is_label_value(value):
            raise UnusableError(f"{field}: {show(value)} is not {LABEL_SYNTAX}")
    return tuple(str(value) for value in values)
