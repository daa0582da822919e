"""Taking secrets out of text that somebody gives away: those that are known, and what looks like one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

REMOVED: Final = "(removed)"
SHORTEST: Final = 4
"""Of a known secret: shorter ones would take half of the text along."""

_NAMES = r"[\w.-]*(?:token|passw|secret|credential|api[-_]?key|private[-_]?key|key-data|authorization)[\w.-]*"
NAMED: Final = re.compile(_NAMES, re.IGNORECASE)
"""Names under which secrets stand, in configurations and environments."""
_SHAPES: Final = (
    (re.compile(r"-----BEGIN [^-]+-----.*?(-----END [^-]+-----|\Z)", re.DOTALL), REMOVED),
    # The same in base64, as kubeconfigs have it.
    (re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*"), REMOVED),
    # JSON Web Tokens (RFC 7519), bootstrap tokens of Kubernetes, keys of AWS.
    (re.compile(r"\beyJ[A-Za-z0-9_=-]{5,}\.[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]*)?"), REMOVED),
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), REMOVED),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), REMOVED),
    (re.compile(r"\b(Bearer|Basic|Negotiate)\s+[^\s\"',]+", re.IGNORECASE), rf"\1 {REMOVED}"),
    (re.compile(r"(://)[^/\s@\"']+@"), rf"\1{REMOVED}@"),
    # name: and below it a list, an item on each line, as YAML has it.
    (re.compile(rf"""(\b{_NAMES}["']?:[ \t]*)\n(?:[ \t]*-[ \t].*(?:\n|\Z))+""", re.IGNORECASE), rf"\1{REMOVED}\n"),
    # name = [value, ...], "name": {...}
    (
        re.compile(rf"""(\b{_NAMES}["']?\s*[:=]\s*)(\[[^]]*(?:\]|\Z)|\{{[^}}]*(?:\}}|\Z))""", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    # NAME=value, NAME=value,value, "name": "value", --name value
    (
        re.compile(rf"""(\b{_NAMES}["']?\s*[:=]\s*)("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^\s;}}]+)""", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    # curl -u user:password
    (re.compile(r"""((?<!\S)-[uU][ =]?["']?[^\s:"']+:)[^\s"']+"""), rf"\1{REMOVED}"),
    (re.compile(r"""(--(?:proxy-)?user[ =]["']?[^\s:"']+:)[^\s"']+"""), rf"\1{REMOVED}"),
    (re.compile(rf"(--{_NAMES} +)(?!-)\S+", re.IGNORECASE), rf"\1{REMOVED}"),
)


def redacted(text: str, known: Iterable[str] = ()) -> str:
    """The text without the secrets that are `known`, and without what looks like one."""
    for secret in sorted({one for one in known if len(one) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
