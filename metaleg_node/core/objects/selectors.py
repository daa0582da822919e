"""Label selectors, with the semantics of Kubernetes.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metaleg_node.core.model import LabelRequirement, LabelSelector


def any_selects(selectors: Iterable[LabelSelector], labels: Mapping[str, str]) -> bool:
    """Whether one of several selectors, which are alternatives, selects an object with these labels."""
    return any(selects(selector, labels) for selector in selectors)


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether all requirements hold; the empty selector selects everything."""
    return all(_holds(requirement, labels) for requirement in selector)


def _holds(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            # A label that is absent has none of the values.
            return value not in requirement.values
        case "Exists":
            return value is not None
        case _:
            return value is None
