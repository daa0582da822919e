"""Writes the files that follow from tables and from the command line's parser."""

from __future__ import annotations

from pathlib import Path

import yaml

from metaleg_node.configuration.config import ClusterSettings, FirewallSettings
from metaleg_node.configuration.settings import SLOTS
from metaleg_node.configuration.text import SHIPPED, reference, sample
from metaleg_node.core.model import ROUTE_PROTOCOL
from metaleg_node.daemon import journal
from metaleg_node.sources import access_rights
from tools import completion, manual, schemas

ROOT = Path(__file__).resolve().parent.parent


def rbac() -> str:
    """The service account and its rights, for kubectl."""
    head = (
        "# The service account of metaleg-node: it may read what the program needs, and nothing else. See\n"
        "# docs/kubernetes.md. Written by tools/generate.py from metaleg_node/sources/resources.py.\n"
    )
    cluster = ClusterSettings()
    objects = access_rights.objects(cluster.metallb_namespace, cluster.metallb_configmap)
    text: str = yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True)
    return head + text


def rbac_events() -> str:
    """The right to write Events, for kubectl."""
    head = (
        "# Beside rbac.yaml, for cluster.events = true: the right to write Events. See docs/kubernetes.md. Written by\n"
        "# tools/generate.py from metaleg_node/sources/access_rights.py.\n"
    )
    text: str = yaml.safe_dump_all(access_rights.event_objects(), sort_keys=False, explicit_start=True)
    return head + text


def route_protocols() -> str:
    """For iproute2 in /etc/iproute2/rt_protos.d: whose number our routes and rules carry."""
    head = "# Written by tools/generate.py: `ip route` and `ip rule` name who made what they show.\n"
    return f"{head}{ROUTE_PROTOCOL} metaleg-node\n"


def route_tables() -> str:
    """For iproute2 in /etc/iproute2/rt_tables.d: the tables of slots."""
    base = FirewallSettings().route_table_base
    names = "".join(f"{base + slot} metaleg-{slot}\n" for slot in range(1, SLOTS + 1))
    return f"# Written by tools/generate.py: tables of slots, while route_table_base is {base}.\n{names}"


FILES = {
    "etc/metaleg-node/config.toml": lambda: SHIPPED,
    "etc/metaleg-node/examples/config.toml": sample,
    "docs/configuration.md": reference,
    "etc/metaleg-node/kubernetes/rbac.yaml": rbac,
    "etc/metaleg-node/kubernetes/rbac-events.yaml": rbac_events,
    "etc/iproute2/rt_protos.d/metaleg-node.conf": route_protocols,
    "etc/iproute2/rt_tables.d/metaleg-node.conf": route_tables,
    "systemd/metaleg-node.catalog": journal.catalogue,
    "completion/metaleg-node": completion.script,
    "completion/_metaleg-node": completion.zsh,
    "completion/metaleg-node.fish": completion.fish,
    "man/metaleg-node.8": manual.command_page,
    "man/metaleg-node.toml.5": manual.file_page,
    **schemas.files(),
}


def main() -> None:
    for name, text in FILES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(), encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
