"""What a verdict in one of our chains means."""

from __future__ import annotations

from metaleg_node.kernel.nftables.trace_events import Event

_DECIDING = frozenset({"accept", "drop"})
_BY_NO_ROUTER = "came by no router of a return path"
_BY_ANOTHER = "a request of a return path, by no router of it: its connection forgets the one that it came by until now"
_WORDS = {
    ("prerouting", "accept"): "no egress: a reply, or a connection that began before its Service opted in",
    ("prerouting", "drop"): "dropped: began as egress of a pod that is none any more",
    ("judge", "accept"): "no egress: its destination is inside the cluster, or this node itself",
    ("filter", "accept"): "no egress: the annotations of its Service except the destination",
    ("steer", "accept"): "egress: marked for its gateway",
    ("snat", "accept"): "egress: marked to be translated here",
    ("hold", "drop"): "held: there is no way out now (egress.when_unavailable)",
    ("wait", "drop"): "held: its gateway went away a moment ago; what is sent again may leave",
    ("elsewhere", "drop"): "dropped: this node is not its gateway",
    ("new_pods", "drop"): "held: its pod is not known yet (egress.new_pods)",
    ("new_pods", "accept"): "not held: a known pod, inside the cluster, or began before",
    ("stray", "drop"): "dropped: an answer to a connection that this node does not know",
    ("early", "drop"): "dropped: for a pod that was treated otherwise until now",
    ("forgotten", "drop"): "dropped: of a connection that nobody knows any more",
    ("lost", "drop"): "dropped: another node's pod, out of no connection",
    ("transit", "drop"): "dropped: another node's pod that this node does not know yet",
    ("translate_snat", "accept"): "translated to the LoadBalancer address",
    ("translate_steer", "accept"): "bound to its own source, so that nobody masquerades it",
    ("guard_snat", "drop"): "dropped by the guard: its source is no LoadBalancer address",
    ("guard_steer", "drop"): "dropped by the guard: it was translated, or would not go to the gateway",
    ("marked", "drop"): "dropped by the guard: its pod is treated otherwise by now",
    ("harmless", "accept"): "passed by the guard; its mark is taken off",
    ("path_conntrack", "continue"): "a reply: marked for its return path",
    ("path_conntrack", "accept"): "a reply to inside the cluster or to a neighbour: no return path",
    ("path_router", "continue"): "a reply: marked for the router that brought its request",
    ("path_from", "accept"): "a request of a return path, by the router that its connection remembers",
    ("path_from", "continue"): "a request of a return path: its connection remembers the router that it came by",
    ("path_requests4", "accept"): _BY_NO_ROUTER,
    ("path_requests6", "accept"): _BY_NO_ROUTER,
    ("path_requests4", "continue"): _BY_ANOTHER,
    ("path_requests6", "continue"): _BY_ANOTHER,
    ("path_source", "continue"): "its source is a return path's: marked",
    ("external_translate", "accept"): "External-IP: its destination becomes the ClusterIP",
    ("path_check", "drop"): "dropped: it came in by another interface than answers leave by",
}


def words(event: Event) -> str:
    """For people; empty where the verdict decides nothing."""
    if event.policy or event.verdict == "return":
        return ""
    exact = _WORDS.get((event.chain, event.verdict))
    begins = next((text for (name, verdict), text in _WORDS.items() if _is(event, name, verdict)), "")
    return exact or begins or (event.verdict if event.verdict in _DECIDING else "")


def _is(event: Event, name: str, verdict: str) -> bool:
    """Chains of one kind are numbered, or named after what they hold."""
    return event.verdict == verdict and event.chain.startswith(f"{name}_")
