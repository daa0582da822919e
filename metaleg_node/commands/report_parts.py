"""What goes into a bug report, a function for each file of it."""

from __future__ import annotations

import json
import platform
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import metaleg_node
from metaleg_node.commands.explain import read_state
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import Options, node_name
from metaleg_node.daemon import report, status
from metaleg_node.doctor import examination, text
from metaleg_node.kernel import process
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler, own_tables

_LIBRARIES = ("kubernetes", "prometheus-client", "PyYAML", "toml", "watchdog")
_LOG_LINES = 1000
_UNIT = "metaleg-node.service"
_KUBECONFIG = re.compile(r"""^[^#\n]*\bkubeconfig["']?\s*=\s*["']+([^"'\n]+)""", re.MULTILINE)
_OF_A_HOOK = re.compile(r"\]: hook \S+: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a report is about. `wrong` is what is wrong with the configuration; then it has its defaults, and what needs
    it is not made."""

    options: Options
    config: Config
    wrong: str = ""


def versions(scene: Scene) -> str:
    """Of this program, the kernel, nft, Python, the libraries and the system."""
    with Machine(scene.options.state_dir, scene.config.firewall.backend) as machine:
        found = {"metaleg-node": metaleg_node.__version__, **machine.versions()}
    found["Python"] = platform.python_version()
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    try:
        found["system"] = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        found["system"] = "unknown"
    return "".join(f"{name}: {version}\n" for name, version in found.items())


def configuration(scene: Scene) -> str:
    """The settings in force, not the file: comments in it may be anything."""
    return scene.wrong or json.dumps(asdict(scene.config), indent=2, default=str)


def service(scene: Scene) -> str:
    """What the service told last."""
    document = status.read(scene.options.runtime_dir)
    return json.dumps(document, indent=2) if document else "the service does not run, or has told nothing"


def service_in_words(scene: Scene) -> str:
    """The same for people."""
    document = status.read(scene.options.runtime_dir)
    return status.render(document, datetime.now(UTC)) if document else "the service does not run, or has told nothing"


def plan(scene: Scene) -> str:
    """What `plan` would say, and what is wrong."""
    cluster, _ = read_state(scene.options, scene.config)
    with Machine(scene.options.state_dir, scene.config.firewall.backend) as machine:
        planned = Reconciler(machine, scene.config).plan(cluster)
    problems = (f"! {problem.line}" for problem in report.problems(planned))
    return "\n".join([f"node {node_name(scene.config)}", *problems, *map(str, planned.changes)])


def doctor(scene: Scene) -> str:
    """What is wrong with the host, and what could not be told."""
    return text.render(examination.examine(scene.config, scene.options), verbose=True)


def packet_filter(scene: Scene) -> str:
    """All of ours in it."""
    with Machine(scene.options.state_dir, scene.config.firewall.backend) as machine:
        return machine.packet_filter.listing()


def routing(scene: Scene) -> str:
    """Our rules and routes, and others' in our tables."""
    with Machine(scene.options.state_dir, scene.config.firewall.backend) as machine:
        found = machine.routing(own_tables(scene.config))
    foreign = (f"foreign: {item.text}" for item in (*found.foreign_rules, *found.foreign_routes))
    return "\n".join([*sorted(map(str, found.rules)), *sorted(map(str, found.routes)), *sorted(foreign)])


def log(_scene: Scene) -> str:
    """The last lines of the service's log, where systemd keeps it, without what hooks say."""
    done = process.run(["journalctl", "-u", _UNIT, "-n", str(_LOG_LINES), "--no-pager", "-o", "short-iso"])
    lines = (done.stdout + done.stderr).splitlines(keepends=True)
    return "".join(line for line in lines if not _OF_A_HOOK.search(line))


PARTS: Mapping[str, Callable[[Scene], str]] = {
    "versions.txt": versions,
    "configuration.json": configuration,
    "status.json": service,
    "status.txt": service_in_words,
    "plan.txt": plan,
    "doctor.txt": doctor,
    "packet-filter.txt": packet_filter,
    "routing.txt": routing,
    "log.txt": log,
}


_CONFIGURED = frozenset({plan, doctor, routing})
_UNMADE = "not made: it follows from the configuration, and that is wrong, as configuration.json has it"


def written(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Each file's name and content, and why it could not be made, which is then its content, too."""
    for name, part in PARTS.items():
        if scene.wrong and part in _CONFIGURED:
            yield name, _UNMADE, ""
            continue
        try:
            text, wrong = part(scene), ""
        except Exception as error:
            # A report is made because something is wrong; the other parts are worth their while all the same.
            wrong = f"{type(error).__name__}: {error}"
            text = f"{wrong}\n\n{traceback.format_exc()}"
        yield name, text, wrong


def kubeconfigs(scene: Scene) -> Iterator[Path]:
    """The files with credentials, if there are any; of a configuration that cannot be read all that its files name."""
    if scene.wrong:
        for file in config_file.readable(scene.options.config_file):
            yield from map(Path, _KUBECONFIG.findall(file.read_text(errors="replace")))
    if not scene.config.cluster.state_file:
        yield Path(scene.config.cluster.kubeconfig)
