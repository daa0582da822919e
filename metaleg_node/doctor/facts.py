"""What checks look at, read when a check first asks for it and once for all of them. Nothing here changes anything, and
nothing needs the service to run or the API to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import Options, node_name
from metaleg_node.core import others
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.model import Address, ClusterState, Node, Questions
from metaleg_node.core.others import Others
from metaleg_node.core.problems import Code, Problem
from metaleg_node.doctor.host_files import HostFiles
from metaleg_node.kernel import other_filters, statistics
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.interfaces import Device
from metaleg_node.kernel.other_filters import Chain
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler, own_tables
from metaleg_node.sources import once
from metaleg_node.sources.once import Known

if TYPE_CHECKING:
    from metaleg_node.sources.access_review import Review
    from metaleg_node.sources.credentials import Details

GROWTH_SECONDS = 0.5
"""How long counters are looked at, at least."""
KUBE_PROXY_DEVICE = "kube-ipvs0"
_COUNTERS = {
    "reverse_path_drops": statistics.reverse_path_drops,
    "conntrack_losses": statistics.conntrack_losses,
}


class NotSeenError(Exception):
    """A check cannot tell, and why."""


class Facts:
    """Of the network namespace that this process is in, and of the files below `root`."""

    def __init__(self, config: Config, options: Options, machine: Machine, root: Path = Path("/")) -> None:
        self.config = config
        self.options = options
        self.machine = machine
        self.files = HostFiles(root)
        self.me = node_name(config)
        self._begin = time.monotonic()
        self._before = {name: _counted(name) for name in _COUNTERS}

    # --- this host ---

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the kernel and of programs."""
        return self.machine.versions()

    @cached_property
    def lacking(self) -> Mapping[str, str]:
        """What the packet filter needs and cannot have, with the words in which it was refused."""
        return self.machine.packet_filter.lacking()

    @cached_property
    def others(self) -> Others:
        """What other programs do with marks, rules and forwarded packets."""
        return self.machine.others(own_tables(self.config))

    @cached_property
    def collisions(self) -> tuple[Problem, ...]:
        """Where that collides with ours."""
        return others.judge(self.others, self.config)

    @cached_property
    def chains(self) -> tuple[Chain, ...]:
        """Other programs' chains."""
        return other_filters.chains()

    @cached_property
    def legacy_chains(self) -> tuple[Chain, ...]:
        """Other programs' chains of address translation in iptables-legacy."""
        return other_filters.legacy_chains()

    @cached_property
    def devices(self) -> dict[str, Device]:
        """All interfaces, by name."""
        return {device.name: device for device in self.machine.devices()}

    def sysctl(self, name: str) -> str | None:
        """A setting of the kernel, as `net/ipv4/ip_forward`; None where there is none."""
        return self.machine.sysctls([name]).get(name)

    def growth(self, name: str) -> int:
        """By how much a counter of `kernel.statistics` grew while we looked: half a second at least."""
        time.sleep(max(0.0, self._begin + GROWTH_SECONDS - time.monotonic()))
        before, now = self._before[name], _counted(name)
        if before is None or now is None:
            raise NotSeenError("the kernel does not count that here")
        return now - before

    @cached_property
    def addresses(self) -> frozenset[Address]:
        """Those of all interfaces."""
        return self.machine.host(Questions()).addresses

    def addresses_of(self, interface: str) -> frozenset[Address]:
        """Those of one interface; none where there is no such one."""
        asked = Questions(addresses_of=frozenset({interface}))
        return self.machine.host(asked).addresses_of.get(interface, frozenset())

    # --- the cluster ---

    @cached_property
    def known(self) -> Known:
        """What is known of the cluster, and what kept it from being read."""
        return once.known(self.config, self.options.state_dir)

    @property
    def cluster(self) -> ClusterState:
        """Raises NotSeenError when nothing is known of it."""
        if self.known.state is None:
            raise NotSeenError(f"the cluster's state is not known: {self.known.problem}")
        return self.known.state

    @cached_property
    def kubeconfig(self) -> tuple[Path, Details] | None:
        """The kubeconfig and what it holds; None where the API is not the source, or where this is a pod. Raises
        NotSeenError."""
        settings = self.config.cluster
        if settings.state_file or not settings.kubeconfig:
            return None
        # Who reads a state file should not pay for loading the API's client.
        from metaleg_node.sources import credentials  # noqa: PLC0415

        try:
            return Path(settings.kubeconfig), credentials.details(settings.kubeconfig, settings.context)
        except credentials.CredentialsError as error:
            raise NotSeenError(str(error)) from error

    @cached_property
    def review(self) -> Review | None:
        """What the API server says of our credentials; None where the API is not the source. Raises NotSeenError."""
        if self.config.cluster.state_file:
            return None
        if self.known.problem:
            raise NotSeenError(self.known.problem)
        from metaleg_node.sources import access_review  # noqa: PLC0415
        from metaleg_node.sources.api_client import ApiError  # noqa: PLC0415

        try:
            return access_review.review(self.config)
        except ApiError as error:
            raise NotSeenError(str(error)) from error

    @cached_property
    def situation(self) -> Situation:
        """What is decided for this node, beside what its kernel holds. Raises NotSeenError where that is nothing, or
        where no cluster is known."""
        found = Reconciler(self.machine, self.config).situation(self.cluster)
        if found.gap:
            raise NotSeenError(f"nothing is decided for this node: {found.gap}")
        return found

    @property
    def node(self) -> Node:
        """This node. Raises NotSeenError when the cluster does not know it."""
        for node in self.cluster.nodes:
            if node.name == self.me:
                return node
        raise NotSeenError(f"the cluster has no node {self.me}")

    @property
    def own_pods(self) -> frozenset[Address]:
        """The pods of labelled Services that run here."""
        return frozenset(address for one in self.situation.desired.services for address in one.here)

    def problems(self, *codes: Code) -> tuple[Problem, ...]:
        """Those of these kinds that the decisions for this node tell of."""
        return tuple(problem for problem in self.situation.desired.problems if problem.code in codes)


def _counted(name: str) -> int | None:
    """None where the kernel has no such counter, as without conntrack."""
    try:
        return _COUNTERS[name]()
    except KernelError:
        return None
