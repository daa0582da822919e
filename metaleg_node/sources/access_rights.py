"""What the service account is allowed to do: read what `sources.resources` lists and, if wanted, write Events.

The same objects are shipped as etc/metaleg-node/kubernetes/rbac.yaml and made by `metaleg-node kubeconfig`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

from metaleg_node.sources.resources import Resource, all_resources

NAME: Final = "metaleg-node"
NAMESPACE: Final = "kube-system"
TOKEN_SECRET: Final = "metaleg-node-token"
_EVENTS: Final = "metaleg-node-events"
_VERBS: Final = ["get", "list", "watch"]
_RBAC: Final = "rbac.authorization.k8s.io"

Object = dict[str, Any]


def objects(
    metallb_namespace: str, metallb_configmap: str, namespace: str = NAMESPACE, *, events: bool = False
) -> list[Object]:
    """ServiceAccount, roles, bindings and the Secret that Kubernetes puts the account's token into, in order.

    https://kubernetes.io/docs/reference/access-authn-authz/rbac/
    https://kubernetes.io/docs/concepts/configuration/secret/#serviceaccount-token-secrets
    With `events` also the right to write Events.
    """
    everywhere: list[Resource] = []
    in_metallb: list[Resource] = []
    for resource in all_resources(metallb_namespace, metallb_configmap):
        (in_metallb if resource.namespace else everywhere).append(resource)
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": namespace}
    return [
        _object("v1", "ServiceAccount", namespace),
        _object(f"{_RBAC}/v1", "ClusterRole", "", rules=list(_rules(everywhere))),
        _object(f"{_RBAC}/v1", "ClusterRoleBinding", "", roleRef=_reference("ClusterRole"), subjects=[account]),
        _object(f"{_RBAC}/v1", "Role", metallb_namespace, rules=list(_rules(in_metallb))),
        _object(f"{_RBAC}/v1", "RoleBinding", metallb_namespace, roleRef=_reference("Role"), subjects=[account]),
        *(event_objects(namespace) if events else ()),
        _token_secret(namespace),
    ]


def event_objects(namespace: str = NAMESPACE) -> list[Object]:
    """The right to write Events, for `cluster.events`: a role and its binding."""
    rule = {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
    role = _object(f"{_RBAC}/v1", "ClusterRole", "", rules=[rule])
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": namespace}
    reference = {**_reference("ClusterRole"), "name": _EVENTS}
    binding = _object(f"{_RBAC}/v1", "ClusterRoleBinding", "", roleRef=reference, subjects=[account])
    for one in (role, binding):
        one["metadata"]["name"] = _EVENTS
    return [role, binding]


def path(one: Object) -> str:
    """Where the API has one of these objects."""
    version = one["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = one["metadata"].get("namespace")
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{one['kind'].lower()}s/{one['metadata']['name']}"


def _rules(resources: Iterable[Resource]) -> Iterator[Object]:
    """One rule for each API group, and for each object that is named.

    https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources
    """
    ordered = sorted(resources, key=lambda one: (one.group, one.name, one.plural))
    for (group, name), members in itertools.groupby(ordered, lambda one: (one.group, one.name)):
        only = {"resourceNames": [name]} if name else {}
        plurals = [member.plural for member in members]
        yield {"apiGroups": [group], "resources": plurals, **only, "verbs": list(_VERBS)}


def _token_secret(namespace: str) -> Object:
    secret = _object("v1", "Secret", namespace, type="kubernetes.io/service-account-token")
    secret["metadata"] |= {"name": TOKEN_SECRET, "annotations": {"kubernetes.io/service-account.name": NAME}}
    return secret


def _reference(kind: str) -> Object:
    return {"apiGroup": _RBAC, "kind": kind, "name": NAME}


def _object(version: str, kind: str, namespace: str, **parts: Any) -> Object:
    metadata = {"name": NAME, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **parts}
