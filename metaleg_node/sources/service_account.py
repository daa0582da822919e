"""Makes the service account and the kubeconfig for it, with an administrator's credentials."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any, Final

import yaml

from metaleg_node.sources import access_rights, credentials
from metaleg_node.sources.api_client import ApiClient, ApiError, Failure

_TIMEOUT: Final = 15.0
_TOKEN_WAIT: Final = 30.0
"""How long Kubernetes may take to put the token into its Secret."""

Object = dict[str, Any]


Error: Final = (ApiError, credentials.CredentialsError)
"""What the functions here raise."""


def announcement(admin: Path, context: str, objects: list[Object]) -> str:
    """What `make` is about to do, for people. Raises CredentialsError."""
    server = credentials.cluster_of(admin, context)["server"]
    return f"to be created, or changed to be so, at {server}:\n{yaml.safe_dump_all(objects, sort_keys=False)}"


def make(admin: Path, context: str, objects: list[Object]) -> str:
    """Creates or updates the objects of `access_rights.objects`; returns the kubeconfig's text.

    Raises ApiError and CredentialsError.
    """
    with ApiClient(str(admin), context) as api:
        for one in objects:
            api.apply(access_rights.path(one), one, _TIMEOUT)
        token, authority = _token(api, objects[-1])
    return _kubeconfig(admin, context, token, authority)


def _token(api: ApiClient, secret: Object) -> tuple[str, str]:
    """The token, and the cluster's certificate authority in base64, as the Secret carries it."""
    path = access_rights.path(secret)
    deadline = time.monotonic() + _TOKEN_WAIT
    while True:
        data = api.get(path, {}, _TIMEOUT).get("data") or {}
        if data.get("token"):
            return base64.b64decode(data["token"]).decode(), data.get("ca.crt", "")
        if time.monotonic() > deadline:
            raise ApiError(Failure.REFUSED, f"{path}: Kubernetes puts no token into this Secret; try again later")
        time.sleep(0.5)


def _kubeconfig(admin: Path, context: str, token: str, authority: str) -> str:
    """The administrator's cluster with the service account's token."""
    cluster = credentials.cluster_of(admin, context)
    if authority and not cluster.get("insecure-skip-tls-verify"):
        cluster = {key: value for key, value in cluster.items() if not key.startswith("certificate-authority")}
        cluster["certificate-authority-data"] = authority
    elif name := cluster.get("certificate-authority"):
        cluster["certificate-authority"] = str((admin.parent / name).absolute())
    name = access_rights.NAME
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text
