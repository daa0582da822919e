"""How the service tells of itself: log, metrics, systemd and the status file, all from the same facts."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime

import metaleg_node
from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import Options, former_keys
from metaleg_node.core.changes import about
from metaleg_node.core.model import ClusterState, NodeName
from metaleg_node.core.problems import Code, Problem, Severity, fails
from metaleg_node.daemon import journal, report, status
from metaleg_node.daemon.cluster_source import ClusterSource
from metaleg_node.daemon.metrics import Metrics
from metaleg_node.daemon.notify import Notifier
from metaleg_node.reconcile.reconciler import Outcome, Plan
from metaleg_node.text import rfc3339

log = logging.getLogger(__name__)

_SIGN_SECONDS = 1.0
_REST = 5.0
"""Between two times that everybody is told: at least so many times as long as the last one took."""


_LEVELS = {Severity.NOTE: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to tell at one moment. `complete`: the kernel once held all that was asked for."""

    config: Config
    node: NodeName
    plan: Plan | None
    outcome: Outcome | None
    complete: bool


class Teller:
    """Keeps what outlasts one reconcile: counts, and what was told before."""

    def __init__(self, options: Options, metrics: Metrics, notifier: Notifier, *, pause: float = 0.0) -> None:
        """`pause`: seconds between two times that everybody is told; longer where telling takes long."""
        self._options = options
        self._metrics = metrics
        self._notifier = notifier
        self._started = _now()
        self._told: frozenset[Problem] = frozenset()
        self._repaired: Counter[str] = Counter()
        self._entries = report.ServiceEntries()
        self._last: status.LastReconcile | None = None
        self._sign_at = 0.0
        self._pause = pause
        self._publish_at = 0.0
        self._waiting: tuple[Facts, ClusterSource] | None = None
        self.written = False
        """Whether the status file says what was published last."""
        self.problems_of: dict[str, tuple[Problem, ...]] = {}
        """What is wrong with the service's own parts, until they work again."""

    def reconciled(self, outcome: Outcome, *, reason: str, seconds: float) -> None:
        """A reconcile ended, however it went."""
        changes = sum(outcome.done.values())
        if changes or not outcome.ok or self._last is None:
            log.info("%s: %d changes in %.0f ms", reason, changes, seconds * 1000)
        self._last = status.LastReconcile(
            time=_now(),
            reason=reason,
            seconds=round(seconds, 6),
            changes=changes,
            result="ok" if outcome.ok else "failed",
        )
        self._metrics.reconciled(seconds=seconds, complete=outcome.ok, changes=outcome.done)
        self._metrics.conntrack_flushed(outcome.flushed)

    def repaired(self, plan: Plan) -> None:
        """Nothing new was wanted: whatever changes there were, others made them necessary."""
        for change in plan.changes:
            self._repaired[change.kind] += 1
            self._metrics.drift(change.kind)

    def differed(self, found: str) -> None:
        """What followed from changes was not what comes out from scratch, in the parts that were found."""
        text = f"what followed from changes was not what comes out from scratch, in: {found}; it was worked out anew"
        problem = Problem(code=Code.UNEXPECTED, subject="metaleg-node", text=f"{text}; please report it, with the log")
        self.problems_of["increments"] = (problem,)
        self._metrics.different()

    def has(self, part: str, problems: tuple[Problem, ...]) -> bool:
        """What is wrong with one of the service's own parts now. Returns whether that is news."""
        before, self.problems_of[part] = self.problems_of.get(part, ()), problems
        return before != problems

    def publish(self, facts: Facts, source: ClusterSource, *, at_once: bool = True) -> None:
        """Tells everybody; if not `at_once`, then as soon as the pause after the last time is over."""
        self._waiting = facts, source
        if at_once or time.monotonic() >= self._publish_at:
            self._publish()

    def catch_up(self) -> float:
        """Tells what waits, when its time has come. Returns within how many seconds this is wanted again."""
        if self._waiting and time.monotonic() >= self._publish_at:
            self._publish()
        return max(0.0, self._publish_at - time.monotonic()) if self._waiting else math.inf

    def _publish(self) -> None:
        assert self._waiting
        (facts, source), self._waiting = self._waiting, None
        started = time.monotonic()
        self._tell_everybody(facts, source)
        now = time.monotonic()
        self._publish_at = now + max(self._pause, _REST * (now - started))

    def _tell_everybody(self, facts: Facts, source: ClusterSource) -> None:
        found = source.status()
        snapshot = source.state() or ClusterState()
        if facts.plan:
            source.tell(facts.plan.desired.services, facts.node)
        problems = self._problems(facts, source, snapshot)
        self._tell(facts, problems, found)
        try:
            listed = self._entries.of(facts.plan) if facts.plan else report.Listed([], {})
            document = self._document(facts, problems, found, listed.unlisted)
            status.write(self._options.runtime_dir, document, listed.entries)
            self.written = True
            self.problems_of["status"] = ()
        except status.StatusError as error:
            self.written = False
            status.disown(self._options.runtime_dir)
            self.problems_of["status"] = (Problem(code=Code.STATUS_FILE, text=str(error)),)
            self._tell(facts, self._problems(facts, source, snapshot), found)

    def alive(self) -> float:
        """The loop works, or waits for something that may take its time: what was published last still holds. Returns
        within how many seconds this is wanted again."""
        now = time.monotonic()
        if self.written and now >= self._sign_at:
            status.touch(self._options.runtime_dir)
            self._sign_at = now + _SIGN_SECONDS
        return _SIGN_SECONDS

    def _problems(self, facts: Facts, source: ClusterSource, snapshot: ClusterState) -> list[Problem]:
        found = (
            *former_keys(facts.config),
            *(problem for problems in self.problems_of.values() for problem in problems),
            *source.problems,
            *(facts.outcome.problems if facts.outcome else ()),
            *(report.problems(facts.plan) if facts.plan else ()),
            *report.rejections(snapshot.rejections),
        )
        # What keeps a plan from being whole may also be why a step of it failed; the plan knows better what it is.
        return list({(problem.subject, problem.text): problem for problem in found}.values())

    def _tell(self, facts: Facts, problems: Sequence[Problem], source: status.SourceStatus) -> None:
        shown = report.shown(problems)
        self._told = _log(shown, self._told)
        self._metrics.show(facts.plan, problems)
        self._notifier.status(report.status_line(facts.plan, source, problems))

    def _document(
        self, facts: Facts, problems: Sequence[Problem], source: status.SourceStatus, unlisted: dict[str, int]
    ) -> status.StatusDocument:
        """All but its services."""
        plan = facts.plan
        return status.StatusDocument(
            version=1,
            running=True,
            program=metaleg_node.__version__,
            pid=os.getpid(),
            node=facts.node,
            started=self._started,
            config_file=str(self._options.config_file),
            healthy=facts.complete and not fails("status", problems),
            source=source,
            last_reconcile=self._last,
            services=[],
            unlisted=unlisted,
            gateways=report.gateways(plan, facts.config) if plan else [],
            exits=report.exits(plan, facts.config) if plan else [],
            paths=report.paths(plan, facts.config) if plan else [],
            external_ips=report.external_ips(plan) if plan else [],
            new_pods=report.new_pods(plan) if plan else None,
            problems=report.problem_list(report.shown(problems)),
            repaired=dict(self._repaired),
        )


def _log(problems: Sequence[Problem], told: Set[Problem]) -> frozenset[Problem]:
    """Logs each problem once when it begins and once when it ends; `told` are those that were there before."""
    now = frozenset(problems)
    for problem in problems:
        if problem not in told:
            more = {"kind": journal.problem_kind(problem.code), "about": about(problem.subject)}
            log.log(_LEVELS[problem.severity], "%s", problem.line, extra=more)
    for problem in sorted(told - now):
        more = {"kind": journal.solved_kind(), "about": about(problem.subject)}
        log.info("solved: %s", problem.line, extra=more)
    return now


def _now() -> str:
    return rfc3339(datetime.now(UTC))
