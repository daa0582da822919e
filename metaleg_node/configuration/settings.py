"""What a setting is, and which kinds of values settings may have.

The tables of `configuration.config` are dataclasses whose fields are made by `setting`, `section` and `sections`. Each
field so carries all that parsing, the sample file and the reference need; a new key is one line there.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar, get_args

from metaleg_node.core.model import Address, Network
from metaleg_node.core.networks import parse_address, parse_network

T = TypeVar("T")

MARK_MAX = 0xFFFFFFFF
TABLE_MAX = 0xFFFFFFFF
PRIORITY_MAX = 32765
"""The last priority before the kernel's own rules for the tables main and default (ip-rule(8))."""
SLOTS = 63
PRIORITIES = 100
SYSTEM_TABLES = 255
"""Routing tables 0-255 are the system's: 253 default, 254 main, 255 local (/etc/iproute2/rt_tables)."""
DURATION_MAX_HOURS = 168

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """A kind of value. `read` turns the TOML value into ours or raises ValueError with what is wrong with this one;
    `allowed` ends a sentence that begins with "must be"; `choices` are the words that are allowed, if they are few."""

    read: Callable[[object], T]
    allowed: str
    choices: tuple[str, ...] = ()
    hexadecimal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Many(Generic[T]):
    """An array of values of one kind. `needed`: it may not be empty."""

    item: Kind[T]
    needed: bool = False

    def read(self, raw: object) -> tuple[T, ...]:
        """What an array reads as. Raises ValueError."""
        assert isinstance(raw, list)
        return tuple(map(self.item.read, raw))

    @property
    def allowed(self) -> str:
        return f"{'a non-empty array' if self.needed else 'an array'}; each item {self.item.allowed}"

    @property
    def choices(self) -> tuple[str, ...]:
        return self.item.choices

    @property
    def hexadecimal(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key. `default` and `example` are as written in TOML, `required` keys have no default."""

    kind: Kind[Any] | Many[Any]
    default: object
    doc: str
    required: bool = False
    example: object = None

    @property
    def default_value(self) -> Any:
        """What the default reads as; that of a required setting is never used."""
        return self.default if self.required else self.kind.read(self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table, or an array of tables when `many`."""

    cls: type[Any]
    doc: str
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A setting and where it stands: the keys that lead to it, and whether there is an array of tables on the way."""

    setting: Setting
    path: tuple[str, ...]
    many: bool

    @property
    def key(self) -> str:
        return ".".join(self.path)


def setting(default: object, kind: Kind[Any] | Many[Any], doc: str, **more: Any) -> Any:
    """A dataclass field for one key; its default value is what `default` reads as. `more` as `Setting` has it."""
    entry = Setting(kind=kind, default=default, doc=doc, **more)
    return field(default=entry.default_value, metadata={"entry": entry})


def section(cls: type[Any], doc: str) -> Any:
    """A dataclass field for a table."""
    return field(default=cls(), metadata={"entry": Section(cls=cls, doc=doc)})


def sections(cls: type[Any], doc: str) -> Any:
    """A dataclass field for an array of tables, empty by default."""
    return field(default=(), metadata={"entry": Section(cls=cls, doc=doc, many=True)})


def entries(cls: type[Any]) -> Iterator[tuple[str, Setting | Section]]:
    """The keys of a table in their order, each with what it may hold."""
    return ((f.name, f.metadata["entry"]) for f in fields(cls) if "entry" in f.metadata)


def leaves(cls: type[Any], path: tuple[str, ...] = (), *, many: bool = False) -> Iterator[Leaf]:
    """All settings below a table."""
    for name, entry in entries(cls):
        if isinstance(entry, Setting):
            yield Leaf(setting=entry, path=(*path, name), many=many)
        else:
            yield from leaves(entry.cls, (*path, name), many=many or entry.many)


def toml_type(value: object) -> str:
    """What TOML calls a value of this type."""
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


# --- kinds of values -------------------------------------------------------------------------------------------------


def _of_type(raw: object, wanted: type[T]) -> T:
    if type(raw) is not wanted:
        raise ValueError(f"this is {toml_type(raw)}")
    return raw


def _string(raw: object) -> str:
    value = _of_type(raw, str)
    if "\0" in value:
        raise ValueError("it contains a NUL character")
    return value


def _text(accept: Callable[[str], object], allowed: str) -> Kind[str]:
    def read(raw: object) -> str:
        value = _string(raw)
        if not accept(value):
            raise ValueError
        return value

    return Kind(read=read, allowed=allowed)


def _is_dns_name(value: str) -> bool:
    return len(value) <= 253 and _DNS_NAME.fullmatch(value) is not None


def _is_label_key(value: str) -> bool:
    prefix, slash, name = value.rpartition("/")
    return _QUALIFIED_NAME.fullmatch(name) is not None and (not slash or _is_dns_name(prefix))


def _is_interface(value: str) -> bool:
    """The kernel's own rule: dev_valid_name() in net/core/dev.c."""
    return 0 < len(value.encode()) <= 15 and value not in {".", ".."} and not re.search(r"[\s/:]", value)


_DNS_SUBDOMAIN = "a DNS-1123 subdomain (lower case letters, digits, - and .)"
BOOLEAN = Kind(read=lambda raw: _of_type(raw, bool), allowed="true or false")
STRING = Kind(read=_string, allowed="a string")
ABSOLUTE_PATH = _text(lambda value: not value or value.startswith("/"), "an absolute path, or empty")
NODE_NAME = _text(lambda value: not value or _is_dns_name(value), f"{_DNS_SUBDOMAIN}, or empty")
OBJECT_NAME = _text(_is_dns_name, _DNS_SUBDOMAIN)
POOL_NAME = _text(
    re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,252}").fullmatch, "the name of a pool (letters, digits, -, _ and .)"
)
"""MetalLB's old configuration has no objects, and takes other names for its pools than Kubernetes takes for those."""
CHECK_CODE = _text(re.compile(r"ML-[1-9]\d\d").fullmatch, "a code of `metaleg-node doctor`, as ML-305")
LABEL_KEY = _text(
    _is_label_key, "a Kubernetes label key (an optional DNS prefix and /, then up to 63 letters, digits, -, _ and .)"
)
PATH_NAME = _text(_QUALIFIED_NAME.fullmatch, "a name of up to 63 letters, digits, -, _ and .")
INTERFACE = _text(_is_interface, "an interface name (1-15 bytes, no slash, colon or white space)")


def choice(words: Any) -> Kind[Any]:
    """One of the words of a Literal, or of an enumeration, as whose member it is read then."""
    choices, convert = get_args(words) or tuple(words), words if isinstance(words, type) else str

    def read(raw: object) -> Any:
        value = _string(raw)
        if value not in choices:
            guess = nearest(value, choices)
            raise ValueError(f'did you mean "{guess}"?' if guess else "")
        return convert(value)

    return Kind(read=read, allowed=f"one of {', '.join(choices)}", choices=choices)


def integer(low: int, high: int, *, hexadecimal: bool = False, note: str = "") -> Kind[int]:
    """A whole number between two bounds, both included."""

    def read(raw: object) -> int:
        value = _of_type(raw, int)
        if not low <= value <= high:
            raise ValueError("it is too small" if value < low else "it is too large")
        return value

    bounds = f"{low:#x} to {high:#x}" if hexadecimal else f"{low} to {high}"
    return Kind(read=read, allowed=f"an integer from {bounds}{note}", hexadecimal=hexadecimal)


def _mask(raw: object) -> int:
    value = _of_type(raw, int)
    if value <= 0:
        raise ValueError("it is zero" if value == 0 else "it is negative")
    if value > MARK_MAX:
        raise ValueError("it is wider than 32 bits")
    if (value // (value & -value)) & (value // (value & -value) + 1):
        raise ValueError("there is a gap between its bits")
    return value


def _bgp_table(raw: object) -> int:
    value = integer(1, TABLE_MAX).read(raw)
    if 253 <= value <= SYSTEM_TABLES:
        raise ValueError(f"{value} is one of the system's tables (default, main, local)")
    return value


MARK_MASK = Kind(read=_mask, allowed="one run of bits within 32 bits, such as 0x3f000000", hexadecimal=True)
BGP_TABLE = Kind(read=_bgp_table, allowed=f"a routing table from 1 to 252 or from 256 to {TABLE_MAX}")


def _duration(raw: object) -> float:
    value = _string(raw)
    if value == "0":
        return 0.0
    parts = list(_DURATION_PART.finditer(value))
    if "".join(part[0] for part in parts) != value or not parts:
        unitless = re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
        raise ValueError("it is negative" if value.startswith("-") else "it has no unit" if unitless else "")
    seconds = sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    if seconds > DURATION_MAX_HOURS * 3600:
        raise ValueError(f"it is longer than {DURATION_MAX_HOURS}h")
    return seconds


def _positive_duration(raw: object) -> float:
    seconds = _duration(raw)
    if not seconds:
        raise ValueError("it cannot be turned off")
    return seconds


_DURATION = 'a duration with units ms, s, m, h, such as "20ms" or "1h30m"'
DURATION = Kind(read=_positive_duration, allowed=_DURATION)
DURATION_OR_OFF = Kind(read=_duration, allowed=f'{_DURATION}, or "0" for off')
NETWORK: Kind[Network] = Kind(
    read=lambda raw: parse_network(_string(raw)), allowed="a CIDR such as 10.0.0.0/8 or 2001:db8::/32"
)
ADDRESS: Kind[Address] = Kind(read=lambda raw: parse_address(_string(raw)), allowed="an IPv4 or IPv6 address")
DESTINATION: Kind[Network | None] = Kind(
    read=lambda raw: None if raw == "default" else NETWORK.read(raw), allowed='"default" or a CIDR such as 10.0.0.0/8'
)


def _listen(raw: object) -> tuple[str, int] | None:
    value = _string(raw)
    if value in {"", "0"}:
        return None
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("the port must be a number from 0 to 65535")
    return _listen_host(host), int(port)


def _listen_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1]))
    if ":" in host:
        raise ValueError("an IPv6 address needs brackets")
    if not host:
        raise ValueError("for all addresses write 0.0.0.0 or [::] before the port")
    if not _is_dns_name(host.lower()) or re.fullmatch(r"[0-9.]+", host):
        return str(ipaddress.IPv4Address(host))
    return host


LISTEN = Kind(read=_listen, allowed='"ADDRESS:PORT" such as "127.0.0.1:9100" or "[::1]:9100", or "" or "0" for off')
