"""The cluster's state read once, from whatever source the configuration names: for commands."""

from __future__ import annotations

from pathlib import Path

from metaleg_node.configuration.config import Config
from metaleg_node.core.model import ClusterState
from metaleg_node.sources import state_file


def read(config: Config) -> tuple[ClusterState, tuple[str, ...]]:
    """The state, and what keeps it from being known, a sentence each; with any of these the state does not count."""
    if not config.cluster.state_file:
        # Who reads a state file should not pay for loading the API's client.
        from metaleg_node.sources import kubernetes_api  # noqa: PLC0415

        return kubernetes_api.read(config)
    try:
        return state_file.read(Path(config.cluster.state_file), state_file.configmap_of(config)), ()
    except state_file.StateFileError as error:
        return ClusterState(), (f"state file: {error}",)
