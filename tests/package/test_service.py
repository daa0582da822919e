"""The installed service, as systemd and an administrator meet it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import yaml

from metaleg_node.lab.daemons import wait_until
from tests.api.harness import write_kubeconfig
from tests.e2e.api_lab import api_lab
from tests.e2e.scenario import NODE3, SETTLED, egress_service, sources, texts
from tests.package.node import DROP_INS, Node
from tests.unit.test_new_pods import cached

IPTABLES = "/usr/share/doc/metaleg-node/examples/iptables.conf"
KUBECONFIG = "/etc/metaleg-node/kubeconfig"
KUBELET = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'nft list table inet metaleg_node >/tmp/kubelet-saw 2>&1 || true'
[Install]
WantedBy=multi-user.target
"""
"""Stands for the kubelet: notes what is in place when it is started."""
NOBODY_THERE = "https://192.168.10.99:6443"
"""An address of the nodes' network that no machine has."""
TEN_SECONDS = 11.0
"""With room for a busy machine."""
EX_CONFIG = "78"


# --- started ---------------------------------------------------------------------------------------------------------


def test_enable_now_with_a_state_file(fresh: Node) -> None:
    container, lab = fresh.container, fresh.lab
    container.run("systemctl", "enable", "--now", "metaleg-node")
    assert sources(lab, fresh.pod) == fresh.address
    assert sources(lab, lab.pod(NODE3)) == texts(NODE3.addresses)
    lab.failover("web", NODE3)
    fresh.expect(fresh.address)
    assert fresh.status().returncode == 0
    assert container.property("StatusText").startswith("1 service, 4 pod addresses")
    assert container.property("NRestarts") == "0"
    own = f"_SYSTEMD_INVOCATION_ID={container.property('InvocationID')}"
    assert "runs for node node1" in container.run("journalctl", "--output=cat", "--priority=info", own).stdout
    assert container.run("journalctl", "--output=cat", "--priority=warning", own).stdout == ""
    of_pod = (own, "SERVICE=default/web", f"POD={fresh.pod.addresses[4]}")
    told = container.run("journalctl", "--catalog", *of_pod).stdout
    # What was there before the start depends on who used the machine before.
    moved = f"~ pod {fresh.pod.addresses[4]} leaves through {NODE3.name}"
    assert f"metaleg-node[{container.property('MainPID')}]: {moved}" in told
    assert " Subject: metaleg-node: pod changed" in told


def test_it_may_set_what_it_needs_of_the_kernel(running: Node) -> None:
    """The nodes check reverse paths strictly until the service starts."""
    values = running.container.run("sh", "-c", "cat /proc/sys/net/ipv4/conf/*/rp_filter").stdout.split()
    assert "2" in values


def test_it_is_not_root_has_one_capability_and_little_else(running: Node) -> None:
    container = running.container
    process = container.property("MainPID")
    facts = dict(re.findall(r"^(\w+):\s*(\S+)", container.run("cat", f"/proc/{process}/status").stdout, re.MULTILINE))
    net_admin = f"{1 << 12:016x}"
    assert facts["Uid"] == container.run("id", "-u", "metaleg-node").stdout.strip() != "0"
    assert {facts[f"Cap{kind}"] for kind in ("Eff", "Prm", "Bnd", "Amb")} == {net_admin}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    container.run("systemd-analyze", "security", "--threshold=20", "--no-pager", "metaleg-node")


def test_with_the_example_drop_in_it_holds_its_rules_in_iptables_and_puts_them_back(fresh: Node) -> None:
    """What the nodes do for kube-proxy is in nftables: beside that no packet can be tried here (docs/iptables.md)."""
    container = fresh.container
    container.run("install", "-D", "--mode=644", IPTABLES, f"{DROP_INS}/iptables.conf")
    container.run("systemctl", "daemon-reload")
    fresh.configure(firewall={"backend": "iptables"})
    fresh.start()
    for flush in ("--list", "--flush", "--delete-chain"):
        for program in ("iptables-legacy", "ip6tables-legacy"):
            # At first it is there, and then a script "resets the firewall".
            container.wait(program, "--table", "mangle", "--list", "METALEG-NODE-FORWARD", timeout=SETTLED)
            container.run(program, "--table", "mangle", flush)
    container.wait("iptables-legacy", "--table", "mangle", "--list", "METALEG-NODE-FORWARD", timeout=SETTLED)
    assert fresh.status().returncode == 0
    assert container.property("NRestarts") == "0"
    assert "metaleg_node" not in container.run("nft", "list", "tables").stdout
    assert "refused" not in container.log()
    container.run("systemctl", "stop", "metaleg-node")
    container.run("metaleg-node", "cleanup")


def test_everybody_may_ask_for_the_status_but_the_state_is_its_own(running: Node) -> None:
    container = running.container
    done = container.run("setpriv", "--reuid=nobody", "--clear-groups", "metaleg-node", "status")
    assert "default/web" in done.stdout
    assert container.run("stat", "-c", "%U %a", "/var/lib/metaleg-node").stdout == "metaleg-node 700\n"


def test_what_root_did_by_hand_does_not_stand_in_its_way(fresh: Node) -> None:
    container = fresh.container
    container.run("metaleg-node", "apply")
    container.run("metaleg-node", "cleanup")
    fresh.start()
    fresh.expect(fresh.address)
    owners = container.run("find", "/var/lib/metaleg-node", "-printf", "%u\n").stdout
    assert set(owners.split()) == {"metaleg-node"}
    assert fresh.status().returncode == 0


def test_a_state_directory_that_has_become_read_only_keeps_no_rule_from_the_kernel(fresh: Node) -> None:
    container, place = fresh.container, "/var/lib/metaleg-node"
    user = container.run("id", "-u", "metaleg-node").stdout.strip()
    group = container.run("id", "-g", "metaleg-node").stdout.strip()
    # The reverse-path filters are strict again: there is something to change, and to write down.
    container.run("metaleg-node", "cleanup")
    container.run("mkdir", "-p", place)
    container.run("mount", "-t", "tmpfs", "-o", f"uid={user},gid={group},mode=700", "state", place)
    try:
        container.run("touch", f"{place}/left-by-root")
        container.run("mount", "-o", "remount,ro", place)
        fresh.start()
        fresh.expect(fresh.address)
        # The packets' new source is there a moment before the report of the reconcile that made it.
        told = f"cannot write {place}/sysctls.json: Read-only file system"
        assert wait_until(lambda: told in fresh.status().stdout, SETTLED), fresh.status().stdout
        assert fresh.status().returncode == 1
    finally:
        container.run("systemctl", "stop", "metaleg-node")
        container.run("umount", place)


# --- the API ---------------------------------------------------------------------------------------------------------


def test_enable_now_with_the_kubernetes_api(fresh: Node, tmp_path: Path) -> None:
    lab, container = fresh.lab, fresh.container
    with api_lab(lab, tmp_path) as api:
        api.set_services(egress_service(lab))
        kubeconfig = yaml.safe_load((tmp_path / "kubeconfig").read_text())
        authority = Path(kubeconfig["clusters"][0]["cluster"].pop("certificate-authority"))
        encoded = base64.b64encode(authority.read_bytes()).decode()
        kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"] = encoded
        fresh.configure(cluster={})
        container.write(KUBECONFIG, yaml.safe_dump(kubeconfig), mode=0o600)
        refused = container.run("systemctl", "start", "metaleg-node", check=False)
        assert (refused.returncode, container.property("ExecMainStatus")) == (1, EX_CONFIG)
        assert f"{KUBECONFIG}: cannot be read: Permission denied" in container.log()
        container.run("chgrp", "metaleg-node", KUBECONFIG)
        container.run("chmod", "640", KUBECONFIG)
        fresh.start()
        fresh.expect(fresh.address)
        api.failover("web", NODE3)
        fresh.expect(fresh.address)
        assert fresh.status().returncode == 0


# --- booting ---------------------------------------------------------------------------------------------------------


def boot(node: Node, kubeconfig: Path) -> None:
    """Boots with a kubelet; whoever has the API server's address does not answer, as on a control-plane node whose
    own kubelet has yet to start it."""
    container = node.container
    node.configure(cluster={})
    container.write(KUBECONFIG, write_kubeconfig(kubeconfig, NOBODY_THERE).read_text())
    container.write("/etc/systemd/system/kubelet.service", KUBELET)
    container.run("systemctl", "enable", "metaleg-node", "kubelet")
    container.power_off()
    container.boot()
    container.run(
        "rm", "/etc/systemd/system/kubelet.service", "/etc/systemd/system/multi-user.target.wants/kubelet.service"
    )


def said_at(node: Node, text: str) -> float:
    """When the service said this last, in seconds by the journal's clock."""
    lines = node.container.run("journalctl", "--output=short-unix", "--unit=metaleg-node").stdout.splitlines()
    return max(float(line.split()[0]) for line in lines if text in line)


def test_a_node_boots_without_api_and_state_after_ten_seconds_at_the_latest(fresh: Node, tmp_path: Path) -> None:
    container = fresh.container
    container.run("metaleg-node", "cleanup")
    container.run("rm", "-rf", "/var/lib/metaleg-node")
    boot(fresh, tmp_path / "kubeconfig")
    assert container.run("systemctl", "is-active", "metaleg-node", "kubelet").stdout == "active\nactive\n"
    ready = int(container.property("ActiveEnterTimestampMonotonic"))
    assert ready <= int(container.property("ExecMainStartTimestampMonotonic", "kubelet"))
    # How long a busy machine takes to start an interpreter is not the service's.
    assert said_at(fresh, "what waits for this service goes on") - said_at(fresh, "runs for") < TEN_SECONDS
    assert NOBODY_THERE in container.property("StatusText")


def test_no_pod_starts_before_its_rules_exist(fresh: Node, tmp_path: Path) -> None:
    container = fresh.container
    container.run("metaleg-node", "cleanup")
    known = {"apiVersion": "v1", "kind": "List", "items": fresh.lab.cluster_objects()}
    container.write("/var/lib/metaleg-node/cluster-state.yaml", json.dumps(known))
    boot(fresh, tmp_path / "kubeconfig")
    assert str(fresh.pod.addresses[4]) in container.run("cat", "/tmp/kubelet-saw").stdout
    fresh.expect(fresh.address)


# --- CNI's results ---------------------------------------------------------------------------------------------------


def test_the_unit_that_reads_CNIs_results_tells_the_service_and_may_nothing_else(fresh: Node) -> None:
    container, unit = fresh.container, "metaleg-node-cni.service"
    results = "/var/lib/cni/results"
    container.run("install", "-d", "-m", "700", results)
    container.write(f"{results}/x-eth0", json.dumps(cached()))
    container.run("chmod", "600", f"{results}/x-eth0")
    fresh.configure(egress={"new_pods": "hold"})
    assert container.run("systemd-analyze", "verify", "--man=no", unit).stderr == ""

    def told() -> dict[str, object]:
        return dict(json.loads(container.run("metaleg-node", "status", "--json", check=False).stdout)["new_pods"])

    try:
        fresh.start()
        assert told()["source"] == "API"
        container.run("systemctl", "start", unit)
        assert wait_until(lambda: told()["unknown"] == ["10.244.1.9", "fd00:10:244:1::9"], SETTLED, pause=0.1), (
            container.log(unit)
        )
        process = container.run("systemctl", "show", "--property=MainPID", "--value", unit).stdout.strip()
        lines = container.run("cat", f"/proc/{process}/status").stdout.splitlines()
        assert {line.split()[1] for line in lines if line.startswith(("CapEff", "CapPrm", "CapBnd"))} == {"0" * 16}
        container.run("rm", f"{results}/x-eth0")
        assert wait_until(lambda: told()["unknown"] == [], SETTLED, pause=0.1), told()
    finally:
        container.run("systemctl", "stop", unit)
        container.run("rm", "-r", "/var/lib/cni")
