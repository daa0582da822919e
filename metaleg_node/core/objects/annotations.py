"""What a Service's annotations ask for: which destinations count.

They are read once, when the Service changes, and whoever may write a Service can write 256 kB of them: what one may
name is bounded here, and what all together may in `core.egress.survey`.
"""

from __future__ import annotations

from collections.abc import Mapping

from metaleg_node.core.model import DestinationFilter, Network
from metaleg_node.core.networks import merged, parse_network

EXCLUDE = "metaleg.de/exclude-cidrs"
ONLY = "metaleg.de/only-cidrs"
NEW_PODS = "metaleg.de/new-pods"
"""What a Service asks for its pods that EndpointSlices do not name yet: "allow" where egress.new_pods is hold."""
MAX_NETWORKS = 256
MAX_BYTES = 4096


def destinations(annotations: Mapping[str, str]) -> DestinationFilter | str:
    """The filter that the annotations are, or what is wrong with them, with annotation and value."""
    names = [name for name in (EXCLUDE, ONLY) if name in annotations]
    if not names:
        return DestinationFilter()
    size = sum(len(annotations[name].encode(errors="replace")) for name in names)
    if size > MAX_BYTES:
        return _too_much(names, f"{size} bytes", MAX_BYTES)
    words = {name: [word.strip() for word in annotations[name].split(",") if word.strip()] for name in names}
    number = sum(map(len, words.values()))
    if number > MAX_NETWORKS:
        return _too_much(names, f"{number} networks", MAX_NETWORKS)
    try:
        found = {name: _networks(name, words[name]) for name in names}
    except ValueError as error:
        return str(error)
    nothing: frozenset[Network] = frozenset()
    return DestinationFilter(exclude=found.get(EXCLUDE, nothing), only=found.get(ONLY, nothing))


def _too_much(names: list[str], what: str, most: int) -> str:
    together = "have together" if len(names) > 1 else "has"
    return f"annotation {' and '.join(names)} {together} {what}, at most {most} are taken; name fewer, larger networks"


def _networks(name: str, words: list[str]) -> frozenset[Network]:
    """Raises ValueError naming the annotation and the value."""
    networks = []
    for word in words:
        try:
            networks.append(parse_network(word))
        except ValueError as error:
            hint = str(error) or "expected a network in CIDR form, such as 10.0.0.0/8 or 2001:db8::/32"
            raise ValueError(f"annotation {name}: {word[:60]!r} is no network: {hint}") from None
    if not networks:
        raise ValueError(f"annotation {name} is empty; give networks such as 10.0.0.0/8, or remove it")
    return merged(networks)
