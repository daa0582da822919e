"""What a feature adds to this node: its part of the NodeState, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metaleg_node.core.firewall.part import Part
from metaleg_node.core.model import Rejection, Route, Rule
from metaleg_node.core.problems import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """The one shape in which features tell what they decided. `sysctls` are as in NodeState, `rejections` the cluster's
    objects that the feature does not use."""

    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()
    parts: tuple[Part, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    problems: tuple[Problem, ...] = ()
