"""`run`: the service."""

from __future__ import annotations

import argparse
import logging

from metaleg_node.commands.command import Command, configured
from metaleg_node.configuration import config as configuration
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.configuration.options import Options
from metaleg_node.daemon import lock
from metaleg_node.daemon import log as logs
from metaleg_node.daemon.log_writer import unblocked_stderr
from metaleg_node.daemon.service import Service
from metaleg_node.sources.saved_state import SavedState

log = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> int:
    watch = config_file.Watch(arguments.config)
    options, config = configured(arguments)
    _need_source(config, options)
    with lock.single_instance(), unblocked_stderr() as writer:
        logs.setup(level=config.log.level, form=config.log.format)
        Service(options, config, watch, dropped=lambda: writer.dropped).run()
    return 0


def _need_source(config: Config, options: Options) -> None:
    """Without credentials, and with nothing known from before, there is nothing that the service could do. Otherwise it
    works with what it knows, and takes the credentials as soon as they are there. Raises ConfigError."""
    if config.cluster.state_file:
        return
    from metaleg_node.sources import kubernetes_api  # noqa: PLC0415 - only users of the API pay for its client

    problem = kubernetes_api.credentials_problem(config.cluster)
    if problem and not SavedState(options.state_dir).exists():
        key = "cluster.kubeconfig"
        raise ConfigError((configuration.Problem(file=config.origin.file(key), key=key, message=problem),))


COMMAND = Command(
    name="run",
    run=_run,
    summary="reconcile until stopped; what systemd starts",
    description="Keeps the kernel as the configuration and the cluster ask for, until SIGTERM or SIGINT comes. "
    "What the kernel holds stays there then, so that a restart interrupts no traffic.",
    statuses="0 when stopped by a signal, 1 when it cannot work, for example since another one runs",
)
