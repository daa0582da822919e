"""Fields of a state file that look like misspelt ones."""

from __future__ import annotations

from typing import Any

import pytest

from metaleg_node.core.objects.spelling import misspelt
from metaleg_node.sources.documents import read_json, read_yaml
from tests.unit import test_manifests as good

NOWHERE = ("", "")


def put(raw: dict[str, Any], path: str, key: str) -> dict[str, Any]:
    """The object with one more field somewhere."""
    here: Any = raw
    for step in filter(None, path.split(".")):
        here = here[int(step)] if step.isdecimal() else here[step]
    here[key] = []
    return raw


MISSPELT = [
    (good.peer, "spec", "nodeSelector", "nodeSelectors"),
    (good.peer, "spec", "peeraddress", "peerAddress"),
    (good.peer, "spec.nodeSelectors.0", "matchLabel", "matchLabels"),
    (good.peer, "metadata", "label", "labels"),
    (good.peer, "", "specs", "spec"),
    (good.pool, "spec", "address", "addresses"),
    (good.advertisement, "spec", "ipAddressPool", "ipAddressPools"),
    (good.advertisement, "spec", "ipAddressPoolSelector", "ipAddressPoolSelectors"),
    (good.service, "spec", "externalIP", "externalIPs"),
    (good.service, "status", "loadbalancer", "loadBalancer"),
    (good.endpoint_slice, "endpoints.0", "nodename", "nodeName"),
    (good.endpoint_slice, "endpoints.0", "targetref", "targetRef"),
    (good.endpoint_slice, "endpoints.0.conditions", "terminatin", "terminating"),
    (good.node, "spec", "podCIDRS", "podCIDRs"),
    (good.pod, "status", "podIPS", "podIPs"),
    (good.l2_status, "status", "nodeName", "node"),
]


@pytest.mark.parametrize(("make", "path", "key", "meant"), MISSPELT)
def test_a_misspelt_field_is_told_with_what_was_meant(make: Any, path: str, key: str, meant: str) -> None:
    raw = put(make(), path, key)
    for one in (raw, {"kind": "List", "items": [raw]}, {"kind": f"{raw['kind']}List", "items": [raw]}):
        (told,) = misspelt(one)
        assert told.ref.kind == raw["kind"]
        assert told.reason.endswith(f"{key}: there is no such field; did you mean {meant}? It is left out")


@pytest.mark.parametrize("make", good.EVERY_KIND.values())
def test_good_objects_have_nothing_misspelt(make: Any) -> None:
    assert not [*misspelt(make())]


REAL = {
    "Service": (
        "spec",
        "externalName ipFamilies ipFamilyPolicy selector sessionAffinity loadBalancerClass healthCheckNodePort",
    ),
    "Pod": ("spec", "nodeSelector hostname hostPID hostIPC hostAliases hostUsers containers volumes tolerations"),
    "BGPPeer": (
        "spec",
        "bfdProfile connectTime ebgpMultiHop holdTime myASN password passwordSecret peerASN peerPort"
        " routerID sourceAddress interface vrf dynamicASN disableMP keepaliveTime",
    ),
    "Node": ("spec", "externalID providerID taints unschedulable configSource"),
    "IPAddressPool": ("spec", "autoAssign avoidBuggyIPs serviceAllocation"),
    "BGPAdvertisement": ("spec", "aggregationLength aggregationLengthV6 communities localPref nodeSelectors peers"),
}


@pytest.mark.parametrize("kind", REAL)
def test_fields_that_there_are_are_not_taken_for_misspelt_ones(kind: str) -> None:
    path, words = REAL[kind]
    raw = {
        "kind": kind,
        "metadata": {
            "uid": 1,
            "resourceVersion": 2,
            "generation": 3,
            "deletionTimestamp": 4,
            "generateName": 5,
            "managedFields": [],
            "ownerReferences": [],
            "finalizers": [],
        },
        path: {key: [] for key in words.split()},
    }
    assert not [*misspelt(raw)]


def test_other_kinds_groups_and_values_are_left_alone() -> None:
    strange: list[object] = [
        None,
        5,
        [],
        {"kind": 5},
        {"kind": "Thing", "spce": 1},
        {"kind": "List", "items": [5, None, {"a": 1}]},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"externalIP": 1}},
        {"kind": "BGPPeer", "spec": {5: 1, None: 2}},
        {"kind": "EndpointSlice", "endpoints": 5},
    ]
    assert not [one for raw in strange for one in misspelt(raw)]


@pytest.mark.parametrize("key", ["node-selector", "peer-adress"])
def test_the_old_configuration_is_looked_at_too(key: str) -> None:
    (told,) = misspelt({"peers": [{"peer-address": "10.0.0.1", key: []}], "address-pools": []})
    assert told.reason.startswith(f"peers[0].{key}: there is no such field")


def test_both_forms_of_a_state_file_are_looked_at_and_what_the_api_gives_is_not() -> None:
    text = '{"apiVersion": "metallb.io/v1beta2", "kind": "BGPPeer", "metadata": {"name": "p", "namespace": "m"},'
    text += ' "spec": {"peerAddress": "10.0.0.1", "nodeSelector": []}}'
    for read in (read_json, read_yaml):
        (found,) = read(text, NOWHERE)
        assert len(found.objects) == 1
        assert ["did you mean nodeSelectors" in one.reason for one in found.rejections] == [True]
