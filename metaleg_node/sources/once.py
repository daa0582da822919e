"""The cluster's state read once, from whatever source the configuration names: for commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress import new_pods
from metaleg_node.core.model import ClusterState
from metaleg_node.sources import cni_results, state_file
from metaleg_node.sources.saved_state import SavedState


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the cluster now (None: nothing). `since` is when the service saved it (RFC 3339), empty when it
    was read now; `problem` then says why it could not be."""

    state: ClusterState | None
    place: str
    since: str = ""
    problem: str = ""


def read(config: Config) -> tuple[ClusterState, tuple[str, ...]]:
    """The state, and what keeps it from being known, a sentence each; with any of these the state does not count."""
    cluster, problems = _read(config)
    if new_pods.is_on(config):
        cluster = replace(cluster, cni=(cni_results.read(config.egress.cni_socket),))
    return cluster, problems


def _read(config: Config) -> tuple[ClusterState, tuple[str, ...]]:
    if not config.cluster.state_file:
        # Who reads a state file should not pay for loading the API's client.
        from metaleg_node.sources import kubernetes_api  # noqa: PLC0415

        return kubernetes_api.read(config)
    try:
        return state_file.read(Path(config.cluster.state_file), state_file.configmap_of(config)), ()
    except state_file.StateFileError as error:
        return ClusterState(), (f"state file: {error}",)


def known(config: Config, state_dir: Path) -> Known:
    """The state, or what the service saved of it last where the API does not answer."""
    cluster, problems = read(config)
    place = config.cluster.state_file or "Kubernetes API"
    if not problems:
        return Known(state=cluster, place=place)
    saved = None if config.cluster.state_file else SavedState(state_dir, state_file.configmap_of(config)).load()
    if saved is None:
        return Known(state=None, place=place, problem=problems[0])
    return Known(state=saved.state, place=str(state_dir), since=saved.time, problem=problems[0])
