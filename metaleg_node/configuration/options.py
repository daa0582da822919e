"""What the command line gives for all commands, and how it and the file together become the configuration."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path

from metaleg_node.configuration import config as configuration
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.core.model import NodeName
from metaleg_node.core.problems import Code, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line gives, beside the configuration file."""

    config_file: Path
    runtime_dir: Path
    state_dir: Path
    log_level: configuration.LogLevel | None = None

    def load(self) -> Config:
        """The configuration, with what the command line overrides. Raises ConfigError."""
        config = config_file.load(self.config_file)
        if self.log_level:
            config = replace(config, log=replace(config.log, level=self.log_level))
        return config


def node_name(config: Config) -> NodeName:
    """This node's name: the configured one, else the host name in lower case, as the kubelet's default is."""
    return NodeName(config.node.name or socket.gethostname().lower())


def problems(error: ConfigError) -> tuple[Problem, ...]:
    """What is wrong with the configuration, as all that is wrong is told."""
    return tuple(Problem(code=Code.CONFIGURATION, subject=p.file, text=p.text) for p in error.problems)


def former_keys(config: Config) -> tuple[Problem, ...]:
    """What its files should no longer say."""
    found = configuration.former_keys(config)
    return tuple(Problem(code=Code.FORMER_KEY, subject=p.file, text=p.text) for p in found)
