"""The manual pages: metaleg-node(8) of the command line's parser, metaleg-node.toml(5) of the settings table."""

from __future__ import annotations

import metaleg_node
from metaleg_node.commands.command import (
    DEFAULT_CONFIG,
    DEFAULT_RUNTIME_DIR,
    DEFAULT_STATE_DIR,
    EX_CONFIG,
    RUNTIME_DIRECTORY,
    STATE_DIRECTORY,
)
from metaleg_node.configuration.config import ClusterSettings
from metaleg_node.configuration.file import FRAGMENTS
from metaleg_node.configuration.settings import Setting
from metaleg_node.configuration.text import INTRODUCTION, Table, tables, toml_text
from metaleg_node.daemon.notify import READY_SECONDS
from metaleg_node.sources import saved_state
from tools import roff
from tools.grammar import Argument, Command, commands, program

_SOURCE = f"metaleg-node {metaleg_node.__version__}"
_MANUAL = "metaleg-node"
_DATE = "2026-10-01"
"""Of the version; packaging/debian/changelog has the same."""
_COMMAND_PAGE, _FILE_PAGE = ("metaleg-node", 8), ("metaleg-node.toml", 5)
_OTHER_PAGES = (("nft", 8), ("ip-rule", 8), ("ip-route", 8), ("systemctl", 1), ("journalctl", 1))

_BEHAVIOUR = """
Services with the label `metaleg.de/rewriteSrcIP` set to `true` opt in: their pods leave the cluster with the Service's
LoadBalancer address, through the node that announces it. Pools with a router of their own get return paths: replies
leave by the way the request came. What the cluster is like is learned from the Kubernetes API or from a state file.

The program owns what carries its mark: the nftables table `inet metaleg_node`, policy rules and routes of its own
protocol number, and the sysctls that it remembers changing. It puts back what others break there, and touches nothing
else. A stop leaves all of it in the kernel, `cleanup` takes it away.
"""

_SYSTEMD = f"""
Started by `metaleg-node.service`, the program tells systemd that it is ready after the first complete apply, of the
API's state or, where the API does not answer, of the last known one; and after {READY_SECONDS:g} seconds in any case,
so that a node whose own kubelet has to start the API server boots. The line `Status:` of `systemctl status` says what
is in force or waited for, and what is wrong.

systemd restarts the service when its loop is stuck. A hook is waited for as long as `hooks.timeout` allows; that counts
as life. After a wrong configuration (exit status {EX_CONFIG}) it is not restarted.

`systemctl reload` has the configuration read again; the service counts as reloading until the new one is applied. A
wrong one is reported, and the one before stays in force.

Each line in the journal has its priority, so `journalctl -u metaleg-node -p warning` shows what is wrong.
"""

_EXAMPLES = (
    (
        "Pods of a Service leave with its LoadBalancer address:",
        "kubectl label service -n mail relay metaleg.de/rewriteSrcIP=true",
    ),
    ("What would change on this node, before the service is started:", "metaleg-node check && metaleg-node plan"),
    ("From now on, and from every boot on:", "systemctl enable --now metaleg-node"),
    ("Codes of all that is wrong, for a script:", "metaleg-node status --json | jq -r '.problems[]?.code'"),
    ("Without the API, from a file with Kubernetes objects:", "metaleg-node --config test.toml apply"),
)

_FILE_EXAMPLES = (
    (
        f"Egress alone, the node's name is not the host's: `{DEFAULT_CONFIG.parent}/{FRAGMENTS}/site.toml`",
        '[node]\nname = "worker-1"',
    ),
    (
        "Replies of a pool with a router and VLAN of its own leave by that router:",
        '[[return_path.l2]]\nname = "public"\npools = ["public"]\ninterface = "eth0.100"\ngateways = ["192.0.2.1"]',
    ),
    ("Replies of BGP pools leave by the BGP peers of the node:", "[return_path.bgp]\nenabled = true"),
)

_FILES = (
    (str(DEFAULT_CONFIG), "The configuration; see `metaleg-node.toml`(5)."),
    (f"{DEFAULT_CONFIG.parent}/{FRAGMENTS}/*.toml", "Merged over it, in the order of their names."),
    (ClusterSettings().kubeconfig, "Credentials for the Kubernetes API; `metaleg-node kubeconfig` makes them."),
    (f"{DEFAULT_CONFIG.parent}/hooks", "A place for hooks; `hooks.pre` and `hooks.post` say which run."),
    (
        f"{DEFAULT_STATE_DIR}/{saved_state.FILE}",
        "The last complete state of the cluster, itself a valid state file; used at a start without the API.",
    ),
    (f"{DEFAULT_STATE_DIR}/sysctls.json", "The sysctls that were changed, with their values from before."),
    (f"{DEFAULT_RUNTIME_DIR}/status.json", "What the running service did last; what `status --json` prints."),
)

_ENVIRONMENT = (
    (f"{RUNTIME_DIRECTORY}, {STATE_DIRECTORY}", "The directories, where no option names others."),
    ("NOTIFY_SOCKET", "Where `run` tells how it is doing; see sd_notify(3)."),
    ("WATCHDOG_USEC, WATCHDOG_PID", "How often it has to; see sd_watchdog_enabled(3)."),
    ("JOURNAL_STREAM", "Lines for the journal get priorities when standard error is this stream; see systemd.exec(5)."),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "Proxies on the way to the Kubernetes API."),
)

_SIGNALS = (
    ("SIGTERM, SIGINT", "`run` stops with exit status 0. The kernel keeps what it holds."),
    ("SIGHUP", "`run` reads the configuration again, as it does by itself when the file changes."),
)


def command_page() -> str:
    """man/metaleg-node.8."""
    whole = program()
    return "".join(
        [
            roff.header(*_COMMAND_PAGE, _DATE, _SOURCE, _MANUAL),
            _name(_COMMAND_PAGE[0], "egress with LoadBalancer addresses, and return paths, for MetalLB"),
            roff.heading("SYNOPSIS"),
            ".br\n".join(_synopsis(command) for command in commands()),
            roff.heading("DESCRIPTION"),
            roff.paragraphs(f"{whole.description}\n\n{_BEHAVIOUR}"),
            roff.heading("OPTIONS"),
            roff.paragraphs("They stand before the command, or after it."),
            _arguments(whole),
            roff.heading("COMMANDS"),
            *map(_command, commands()),
            roff.heading("EXIT STATUS"),
            roff.paragraphs(whole.epilog.removeprefix("Exit status: ")),
            roff.heading("SYSTEMD"),
            roff.paragraphs(_SYSTEMD),
            roff.heading("SIGNALS"),
            roff.items(_SIGNALS),
            roff.heading("ENVIRONMENT"),
            roff.items(_ENVIRONMENT),
            roff.heading("FILES"),
            roff.items(_FILES),
            roff.heading("EXAMPLES"),
            roff.examples(_EXAMPLES),
            roff.references([_FILE_PAGE, *_OTHER_PAGES]),
        ]
    )


def file_page() -> str:
    """man/metaleg-node.toml.5."""
    return "".join(
        [
            roff.header(*_FILE_PAGE, _DATE, _SOURCE, _MANUAL),
            _name(_FILE_PAGE[0], "configuration of metaleg-node(8)"),
            roff.heading("SYNOPSIS"),
            roff.paragraphs(f"`{DEFAULT_CONFIG}`, `{DEFAULT_CONFIG.parent}/{FRAGMENTS}/*.toml`"),
            roff.heading("DESCRIPTION"),
            roff.paragraphs(INTRODUCTION),
            roff.heading("SETTINGS"),
            *map(_table, tables()),
            roff.heading("EXAMPLES"),
            roff.examples(_FILE_EXAMPLES),
            roff.references([_COMMAND_PAGE]),
        ]
    )


def _name(page: str, text: str) -> str:
    return f"{roff.heading('NAME')}{roff.escape(page)} \\- {roff.escape(text)}\n"


def _synopsis(command: Command) -> str:
    general = f"{roff.bold('metaleg-node')} [{roff.italic('options')}] {roff.bold(command.name)}"
    return f"{roff.lines(' '.join([general, *map(_usage, command.arguments)]))}\n"


def _command(command: Command) -> str:
    return roff.item(roff.bold(command.name), command.description) + roff.indented(
        f"{_arguments(command)}.PP\n{roff.prose(command.epilog)}\n"
    )


def _arguments(command: Command) -> str:
    return "".join(roff.item(_tag(argument), argument.text) for argument in command.arguments)


def _tag(argument: Argument) -> str:
    value = roff.italic(argument.value) if argument.value else ""
    return " ".join(filter(None, [", ".join(map(roff.bold, argument.names)), value]))


def _usage(argument: Argument) -> str:
    return _tag(argument) if argument.required else f"[{_tag(argument)}]"


def _table(table: Table) -> str:
    body = "".join(_setting(key, entry) for key, entry in table.settings)
    return f"{roff.subheading(table.heading)}{roff.paragraphs(table.section.doc)}{body}"


def _setting(key: str, entry: Setting) -> str:
    value = " (required)" if entry.required else f" = {roff.bold(toml_text(entry.default, entry))}"
    texts = [
        entry.doc,
        f"Allowed: {entry.kind.allowed}",
        *([f"Example: `{toml_text(entry.example, entry)}`"] if entry.example is not None else []),
    ]
    return roff.item(f"{roff.bold(key)}{value}", *texts)
