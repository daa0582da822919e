"""What the API server says of our credentials: which rights they give, and what time it is there. Asks, and stores
nothing in the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from metaleg_node.configuration.config import Config
from metaleg_node.sources.api_client import ApiClient
from metaleg_node.sources.resources import Resource, subjects

_PATH: Final = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
_TIMEOUT: Final = 3.0
_READING: Final = frozenset({"get", "list", "watch"})
_NEEDED: Final = ("list", "watch")
_ABOUT_ONESELF: Final = frozenset({"authorization.k8s.io", "authentication.k8s.io"})
"""What everybody may create there are questions about oneself."""

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What rights are missing, and which there are beyond reading what is needed, each in words; `incomplete`: the
    server does not tell all of them. `ahead` is by how many seconds this host's clock is before the server's."""

    missing: tuple[str, ...]
    excess: tuple[str, ...]
    incomplete: bool
    ahead: float


def review(config: Config) -> Review:
    """Asks the server. Raises ApiError."""
    with ApiClient(config.cluster.kubeconfig, config.cluster.context) as api:
        ahead = (datetime.now(UTC) - api.now(_TIMEOUT)).total_seconds()
        namespace = config.cluster.metallb_namespace
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
        status = api.create(_PATH, {**body, "spec": {"namespace": namespace}}, _TIMEOUT).get("status") or {}
    rules = [rule for rule in status.get("resourceRules") or () if isinstance(rule, dict)]
    wanted = [subject.choices for subject in subjects(config)]
    return Review(
        missing=tuple(_missing(rules, wanted)),
        excess=tuple(_excess(rules)),
        incomplete=bool(status.get("incomplete")),
        ahead=ahead,
    )


def _missing(rules: list[Raw], wanted: Iterable[tuple[Resource, ...]]) -> Iterator[str]:
    """Of several choices it depends on the server which one counts, so all are needed."""
    needed = dict.fromkeys(one for choices in wanted for one in choices)
    for one in needed:
        if verbs := [verb for verb in _NEEDED if not _allows(rules, one, verb)]:
            yield f"{' and '.join(verbs)} {one.plural}{f'.{one.group}' if one.group else ''}"


def _allows(rules: Iterable[Raw], one: Resource, verb: str) -> bool:
    """https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources"""
    return any(
        _has(rule, "verbs", verb)
        and _has(rule, "apiGroups", one.group)
        and _has(rule, "resources", one.plural)
        and (not rule.get("resourceNames") or one.name in rule["resourceNames"])
        for rule in rules
    )


def _has(rule: Raw, key: str, value: str) -> bool:
    found = rule.get(key) or ()
    return value in found or "*" in found


def _excess(rules: Iterable[Raw]) -> Iterator[str]:
    for rule in rules:
        groups, plurals = (rule.get(key) or [] for key in ("apiGroups", "resources"))
        if set(groups) <= _ABOUT_ONESELF:
            continue
        more = sorted(set(rule.get("verbs") or ()) - _READING)
        if "secrets" in plurals or "*" in plurals:
            more = more or ["get"]
        if more:
            yield f"{', '.join(more)} {', '.join(plurals)}"
