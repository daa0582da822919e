"""Reads CNI's results: the files that libcni keeps of the networks that it attached pods to.

The form is that of libcni's cache (github.com/containernetworking/cni, libcni/api.go, cachedInfo) with the result of
the CNI specification; the names in cniArgs are the container runtimes'.
"""

from __future__ import annotations

from typing import Any, Final

from metaleg_node.core.model import Attachment
from metaleg_node.core.objects.fields import address_of, is_name, is_namespace

_INTERFACE: Final = "eth0"
"""A pod's own; the kubelet's runtimes call it so. Others are the loopback and further networks."""
_KINDS: Final = ("cniCacheV1",)
_MAX_UID: Final = 64
_NEVER: Final = 1e12


def read(raw: object, since: float) -> Attachment | None:
    """The attachment that one file tells of, None for one of another kind or interface. `since` is when it was written,
    in seconds since the epoch. Raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError("is no JSON object")
    if raw.get("kind") not in _KINDS or raw.get("ifName") != _INTERFACE:
        return None
    pairs = [pair for pair in _list(raw.get("cniArgs")) if isinstance(pair, list) and len(pair) == 2]
    arguments = {key: value for key, value in pairs if isinstance(key, str)}
    result = raw.get("result")
    ips = _list(result.get("ips")) if isinstance(result, dict) else []
    return made(
        {
            "namespace": arguments.get("K8S_POD_NAMESPACE"),
            "name": arguments.get("K8S_POD_NAME"),
            "uid": arguments.get("K8S_POD_UID", ""),
            "addresses": [str(ip.get("address")).partition("/")[0] for ip in ips if isinstance(ip, dict)],
            "since": since,
        }
    )


def made(raw: object) -> Attachment:
    """An attachment from its fields, as `written` gives them. Raises ValueError that names the field."""
    if not isinstance(raw, dict):
        raise ValueError("an attachment is no JSON object")
    namespace, name, uid, since = (raw.get(key) for key in ("namespace", "name", "uid", "since"))
    if not isinstance(namespace, str) or not is_namespace(namespace):
        raise ValueError("namespace: is none")
    if not isinstance(name, str) or not is_name(name):
        raise ValueError("name: is no pod's")
    if not isinstance(uid, str) or len(uid) > _MAX_UID:
        raise ValueError("uid: is none")
    if not isinstance(since, float | int) or not 0 <= since < _NEVER:
        raise ValueError("since: is no time")
    found = [address_of(address) for address in _list(raw.get("addresses"))]
    addresses = tuple(address for address in found if not isinstance(address, str))
    return Attachment(namespace=namespace, name=name, uid=uid, addresses=addresses, since=float(since))


def written(one: Attachment) -> dict[str, Any]:
    """The fields of an attachment, for JSON."""
    return {
        "namespace": one.namespace,
        "name": one.name,
        "uid": one.uid,
        "addresses": [str(address) for address in one.addresses],
        "since": one.since,
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
