"""The running service: gathers what happened, reconciles, tells about it, until it is stopped.

One thread does all the work. Others (the source, the kernel monitor, signals) only put events into its queue.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import metaleg_node
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration import options as configuration
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.configuration.options import Options
from metaleg_node.core.model import ClusterState
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon import health, notify, report
from metaleg_node.daemon import log as logs
from metaleg_node.daemon.backoff import Backoff
from metaleg_node.daemon.cluster_source import PATIENCE_SECONDS, ClusterSource, needs
from metaleg_node.daemon.company import Company
from metaleg_node.daemon.events import Event, Events
from metaleg_node.daemon.metrics import Metrics
from metaleg_node.daemon.telling import Facts, Teller
from metaleg_node.daemon.web import ListenError, WebServer
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.monitor import Hint, Monitor
from metaleg_node.reconcile import hooks, sequence
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import IncompleteError, Outcome, Plan, Reconciler, own_tables
from metaleg_node.reconcile.second_opinion import SecondOpinion
from metaleg_node.reconcile.sweeper import Sweeper

log = logging.getLogger(__name__)

_STUCK_SECONDS = 120.0
"""A loop that gives no sign of life for so long is not healthy."""
_SWITCH_SECONDS = 0.0005
_TICK_SECONDS = 1.0
"""The loop turns at least so often, to look whether the configuration file changed."""
_OF_OTHERS = {Event.KERNEL, Event.FIREWALL, Event.PUT_OFF, Event.INTERVAL}
"""What can wait while somebody fights with us."""
_TELL_SECONDS = 0.25
"""Between two times that status and metrics are told: what woke the loop next must not wait for that."""
_LOOK_SECONDS = 2.0
"""So often the neighbour tables are looked at, while there are next hops that are told about, and a status that could
not be written is tried again."""


def _keep_what_is_there() -> None:
    """What is there now, most of all there ever is, lives long: to look through it again and again for garbage would
    hold up events, in a large cluster for a quarter of a second. Objects go all the same when nobody knows them any
    more; only what knows itself in a circle would stay."""
    gc.collect()
    gc.freeze()


def _be_quick() -> None:
    """What else the interpreter does must not hold up an event."""
    _keep_what_is_there()
    # While another thread is busy, writing the last known state for example, the loop waits so long after each system
    # call; Python's default is 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)


class Service:
    """`run` turns the loop; everything that it starts is stopped again before it returns. `dropped` tells how many
    lines of the log were dropped."""

    def __init__(
        self, options: Options, config: Config, watch: config_file.Watch, *, dropped: Callable[[], int]
    ) -> None:
        self._options = options
        self._config = config
        self._events = Events()
        self._source = ClusterSource(config, options.state_dir, self._cluster_changed)
        self._followed: tuple[object, ...] = ()
        self._machine = Machine(options.state_dir, config.firewall.backend)
        self._reconciler = Reconciler(self._machine, config)
        self._metrics = Metrics(
            version=metaleg_node.__version__,
            # By the time of a scrape it may be another packet filter, and another source.
            traffic=lambda: self._machine.packet_filter.counters(),  # noqa: PLW0108
            watches=lambda: self._source.ages(),  # noqa: PLW0108
            dropped=dropped,
        )
        self._sweeper = Sweeper(self._metrics.conntrack_flushed)
        self._second_opinion = SecondOpinion(lambda: self._events.put(Event.DIFFERENCE))
        self._notifier = notify.Notifier()
        self._readiness = notify.Readiness(self._notifier)
        self._heartbeat = notify.Heartbeat(self._notifier)
        self._teller = Teller(options, self._metrics, self._notifier, pause=_TELL_SECONDS)
        self._watch = watch
        self._plan: Plan | None = None
        self._outcome: Outcome | None = None
        self._state: ClusterState | None = None
        self._last_state: NodeState | None = None
        self._backoff = Backoff()
        self._look_at = 0.0
        self._company = Company()
        self._complete_once = False
        self._ready_and_told = False
        # Nothing was told, since the last plan, that may have changed the host: only the cluster did.
        self._same_host = False
        # What an earlier run left undone, or what failed, must be looked for among all connections.
        self._sweep_due = True

    def run(self) -> None:
        """Returns when SIGTERM or SIGINT comes; the kernel keeps what it holds."""
        _be_quick()
        with ExitStack() as stack:
            stack.enter_context(self._events.from_signals())
            self._readiness.expect()
            stack.callback(self._readiness.abandon)
            stack.enter_context(self._machine)
            self._machine.sweeper = stack.enter_context(self._sweeper)
            stack.callback(lambda: self._source.stop())  # noqa: PLW0108 - by then it may be another one
            self._metrics.config_loaded()
            log.info("metaleg-node %s runs for node %s", metaleg_node.__version__, self._reconciler.node)
            self._events.put(Event.START)
            while self._run_configuration():
                self._events.put(Event.CONFIGURATION)
            log.info("stopped; the kernel keeps what it holds")

    def _run_configuration(self) -> bool:
        """Works with the present configuration. Returns whether there is another one now, else the service ends."""
        config = self._config
        # It is looked at anew: nobody listened to the kernel while the configuration changed.
        self._machine.use(config.firewall.backend)
        self._reconciler = Reconciler(self._machine, config)
        self._same_host = False
        self._company.due = True
        self._backoff.over()
        with ExitStack() as stack:
            disturbed = stack.enter_context(self._machine.packet_filter.watched())
            stack.enter_context(_monitor(self._machine, config, self._hint, disturbed))
            self._serve(stack)
            self._follow(config)
            self._events.schedule(Event.INTERVAL, config.reconcile.interval)
            while Event.STOP not in (events := self._next_events()):
                self._same_host = self._same_host and events <= {Event.CLUSTER}
                if self._source.confirmed:
                    self._metrics.source_confirmed()
                if Event.RELOAD in events and self._reload():
                    return True
                if self._concerns_us(events):
                    self._reconcile(events)
                self._look_around()
                self._look_at_others()
            self._notifier.stopping()
        return False

    def _follow(self, config: Config) -> None:
        """Starts the source, unless it runs and nothing that matters to it has changed: else what is known stays in
        force, even if it cannot be read again just now."""
        followed = needs(config)
        if followed == self._followed:
            return
        if self._followed:
            self._source.stop()
            self._source = ClusterSource(config, self._options.state_dir, self._cluster_changed)
        self._followed = followed
        self._events.schedule(Event.START, self._source.start(patience=_patience(self._machine)))

    # --- events ------------------------------------------------------------------------------------------------------

    def _cluster_changed(self) -> None:
        """Called in the threads of the source."""
        self._events.put(Event.CLUSTER)

    def _hint(self, hint: Hint) -> None:
        """Called in the monitor's thread."""
        self._events.put(Event.FIREWALL if hint is Hint.FIREWALL else Event.KERNEL)

    def _next_events(self) -> set[Event]:
        at_most = min(_TICK_SECONDS, self._beat(), self._teller.catch_up(), self._watch.wait(time.monotonic()))
        events = self._events.next(settle=self._config.reconcile.settle, at_most=at_most)
        if not self._watch.wait(time.monotonic()):
            events.add(Event.RELOAD)
        return events

    def _concerns_us(self, events: set[Event]) -> bool:
        """Whether there is anything to do: since the monitor told, the packet filter may have been looked at anyway."""
        if events and events <= _OF_OTHERS and (pause := self._company.fight.pause(time.monotonic())) > 0:
            self._events.schedule(Event.INTERVAL if Event.INTERVAL in events else Event.PUT_OFF, pause)
            return False
        if Event.DIFFERENCE in events:
            self._teller.differed(self._second_opinion.found())
            self._reconciler.start_over()
        if Event.INTERVAL in events:
            self._company.due = self._second_opinion.due = True
            self._machine.packet_filter.forget()
            self._events.schedule(Event.INTERVAL, self._config.reconcile.interval)
        try:
            told = events & {Event.FIREWALL, Event.PUT_OFF}
            changed = bool(told) and self._machine.packet_filter.changed()
        except KernelError:
            changed = True
        return bool(events - {Event.FIREWALL}) or changed

    # --- reconciling -------------------------------------------------------------------------------------------------

    def _reconcile(self, events: set[Event]) -> None:
        state = self._source.state()
        if state is None:
            # Nothing is known yet: what the kernel holds from before is better than nothing.
            self._publish()
            return
        if state != self._state:
            # Whatever told first: the state is read when there is something to do, and may have changed by then.
            events.add(Event.CLUSTER)
            self._state = state
        if not self._left_alone(self._backoff.before_plan(state)):
            self._attempt(state, ", ".join(sorted(events)))
        self._publish()
        # Whoever hears that it is ready finds a status that says so.
        self._ready_and_told = self._complete_once
        if self._outcome and self._outcome.ok:
            self._readiness.reached()

    def _left_alone(self, seconds: float) -> bool:
        """Whether what there is to do must wait, for so many seconds."""
        if seconds:
            self._events.schedule(Event.RETRY, seconds)
        return seconds > 0

    def _attempt(self, state: ClusterState, reason: str) -> None:
        started = time.monotonic()
        outcome = self._try(state, reason)
        self._events.schedule(Event.GATEWAY, self._reconciler.wait or 0)
        if outcome is None:
            return
        self._outcome = outcome
        if outcome.ok:
            if not self._complete_once:
                _keep_what_is_there()
            self._complete_once = True
            self._second_opinion.ask(self._reconciler.second_opinion)
            self._backoff.over()
            self._events.schedule(Event.RETRY, 0)
        self._teller.reconciled(outcome, reason=reason, seconds=time.monotonic() - started)

    def _try(self, state: ClusterState, reason: str) -> Outcome | None:
        """One reconcile, whatever happens: what this node's kernel holds must not depend on one that went wrong. None
        when there is nothing to do but what failed just now."""
        try:
            self._plan = plan = self._reconciler.plan(state, same_host=self._same_host)
            self._same_host = True
            self._beat()
            if not plan.steps and not self._sweep_due and (self._outcome is None or self._outcome.ok):
                return Outcome()
            if self._left_alone(self._backoff.before_apply(plan.changes)):
                return None
            outcome = self._apply(plan, reason)
            # A first plan has a line for each pod, and nobody asks for what was done.
            self._plan = replace(self._plan, steps=())
            if not outcome.ok:
                self._left_alone(self._backoff.failed(undone=outcome.undone))
            return outcome
        except Exception as error:
            if not isinstance(error, IncompleteError | KernelError):
                log.exception("a reconcile met something unexpected")
                self._reconciler.start_over()
            outcome = _failed(error)
        self._left_alone(self._backoff.failed(state=state))
        return outcome

    def _apply(self, plan: Plan, reason: str) -> Outcome:
        if not plan.steps and not self._sweep_due:
            # Nothing for hooks; but the record of sysctls may be what failed.
            return self._reconciler.apply(plan)
        drifted = self._last_state == plan.desired.state and bool(plan.changes)
        if drifted:
            log.warning("somebody changed what is ours; it is put back: %d changes", len(plan.changes))
        self._plan, outcome = sequence.follow(
            self._reconciler,
            self._config,
            plan,
            reason=reason,
            cluster=self._source.state,
            hooked=self._hooked,
            sweep=self._sweep_due,
            beat=self._beat,
            stopping=lambda: self._events.stopping,
        )
        self._sweep_due = outcome.unswept or (self._sweep_due and not outcome.ok)
        if outcome.ok:
            self._last_state = self._plan.desired.state
            if drifted:
                self._teller.repaired(self._plan)
                self._company.fight.repaired(plan.changes, time.monotonic())
        return outcome

    def _hooked(self, kind: hooks.Kind, problems: tuple[Problem, ...]) -> None:
        for _ in problems:
            self._metrics.hook_failed(kind)
        self._teller.problems_of[kind] = problems

    def _beat(self) -> float:
        """The loop is alive. Returns within how many seconds that must be told again."""
        return min(self._heartbeat.beat(), self._teller.alive())

    def _look_around(self) -> None:
        """Publishes what changes without an event, and what could not be written."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        before, news = self._plan, self._teller.has("sweep", self._sweeper.problems) or not self._teller.written
        if before and before.neighbours:
            self._plan = self._reconciler.look_again(before)
        if news or self._plan != before:
            self._publish()

    def _look_at_others(self) -> None:
        """After a complete comparison, when nothing waits for it."""
        if self._company.look(self._reconciler.collisions, allowed=self._complete_once):
            self._teller.problems_of["others"] = self._company.problems
            self._publish()

    # --- configuration -----------------------------------------------------------------------------------------------

    def _reload(self) -> bool:
        """Reads the file again. Returns whether there is a new configuration; a bad file is reported, and the
        configuration that runs stays in force."""
        self._notifier.reloading()
        self._readiness.expect()
        self._watch.reading()
        self._backoff.over()
        before = self._config
        try:
            self._config = self._options.load()
            self._teller.problems_of["configuration"] = ()
            self._metrics.config_loaded()
            log.info("configuration read again: %s", "changed" if self._config != before else "no change")
            logs.setup(level=self._config.log.level, form=self._config.log.format)
        except ConfigError as error:
            self._teller.problems_of["configuration"] = (*configuration.problems(error), _refused(self._options))
            self._metrics.config_refused()
        return self._config != before

    # --- telling -----------------------------------------------------------------------------------------------------

    def _serve(self, stack: ExitStack) -> None:
        """A port that is taken is a problem to report, not a reason to leave the node without its rules."""
        servers: list[WebServer] = []
        if self._config.metrics.listen:
            servers.append(self._metrics.server(self._config.metrics.listen))
        if self._config.health.listen:
            servers.append(health.server(self._config.health.listen, alive=self._alive, ready=self._ready))
        self._teller.problems_of["servers"] = tuple(_started(servers, stack))

    def _alive(self) -> tuple[bool, str]:
        idle = self._heartbeat.age
        return idle < _STUCK_SECONDS, f"the loop turned {idle:.0f} s ago"

    def _ready(self) -> tuple[bool, str]:
        """An API that is gone is told, but costs no readiness: the kernel keeps what it holds."""
        applied = "applied" if self._ready_and_told else "nothing was applied completely yet"
        texts = [*map(str, self._source.problems)]
        return self._ready_and_told, f"{applied}; {report.in_short(texts)}" if texts else applied

    def _publish(self) -> None:
        node, complete = self._reconciler.node, self._complete_once
        facts = Facts(config=self._config, node=node, plan=self._plan, outcome=self._outcome, complete=complete)
        self._teller.publish(facts, self._source, at_once=self._readiness.expected)


def _patience(machine: Machine) -> float:
    """How long to wait for the API before the last known state is taken: not at all where the kernel holds nothing of
    ours, after a boot for example, since anything is better than packets with a wrong source."""
    try:
        return PATIENCE_SECONDS if machine.packet_filter.observe().firewall else 0.0
    except KernelError:
        return 0.0


def _monitor(machine: Machine, config: Config, wake: Callable[[Hint], None], disturbed: Callable[[], bool]) -> Monitor:
    """Next hops come and go many times a second on some nodes: where there is no return path nobody listens to them."""
    paths = config.return_path.l2 or config.return_path.bgp.enabled
    return Monitor(
        wake,
        tables=own_tables(config),
        own_ports=lambda: machine.own_ports,
        disturbed=disturbed,
        next_hops=machine.watched if paths else None,
    )


def _failed(error: Exception) -> Outcome:
    code, text = Code.UNEXPECTED, f"unexpected {type(error).__name__}: {error}; please report it, with the log"
    if isinstance(error, IncompleteError | KernelError):
        code, text = Code.INCOMPLETE_STATE if isinstance(error, IncompleteError) else Code.KERNEL, str(error)
    return Outcome(problems=(Problem(code=code, text=text),))


def _refused(options: Options) -> Problem:
    text = "not taken, the configuration before stays in force"
    return Problem(code=Code.CONFIGURATION, subject=str(options.config_file), text=text)


def _started(servers: Iterable[WebServer], stack: ExitStack) -> Iterator[Problem]:
    """Starts what can be started; gives what is wrong with the others."""
    for server in servers:
        try:
            server.start()
            stack.callback(server.stop)
        except ListenError as error:
            text = f"{error}; metaleg-node goes on without it until it is restarted or reloaded"
            yield Problem(code=Code.LISTEN, text=text)
