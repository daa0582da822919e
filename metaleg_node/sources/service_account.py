"""Makes the service account and the kubeconfig for it, with an administrator's credentials."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from metaleg_node import files
from metaleg_node.sources import access_rights, credentials
from metaleg_node.sources.api_client import ApiClient, ApiError, Failure

_TIMEOUT: Final = 15.0
_TOKEN_WAIT: Final = 30.0
"""How long Kubernetes may take to put the token into its Secret."""
_RIGHTS_WAIT: Final = 10.0
"""How long it may take until all API servers know the token and its rights."""

Object = dict[str, Any]


Error: Final = (ApiError, credentials.CredentialsError)
"""What the functions here raise."""


def announcement(admin: Path, context: str, objects: list[Object]) -> str:
    """What `make` is about to do, for people. Raises CredentialsError."""
    server = credentials.cluster_of(admin, context)["server"]
    return f"to be created, or changed to be so, at {server}:\n{yaml.safe_dump_all(objects, sort_keys=False)}"


def make(admin: Path, context: str, objects: list[Object]) -> str:
    """Creates or updates the objects of `access_rights.objects`; returns the kubeconfig's text, which was tried.

    Raises ApiError and CredentialsError.
    """
    cluster = credentials.cluster_of(admin, context)
    with ApiClient(str(admin), context) as api:
        for one in objects:
            api.apply(access_rights.path(one), one, _TIMEOUT)
        token, authority = _token(api, objects[-1])
    errors: list[ApiError] = []
    for way in _ways(cluster, authority):
        text = _kubeconfig(way, token)
        try:
            _try(text)
        except ApiError as error:
            errors.append(error)
        else:
            return text
    told = "; ".join(dict.fromkeys(map(str, errors)))
    raise ApiError(errors[0].failure, f"the account is made, but a kubeconfig for it does not work: {told}")


def _token(api: ApiClient, secret: Object) -> tuple[str, str]:
    """The token, and the cluster's certificate authority in base64, as the Secret carries it."""
    path = access_rights.path(secret)
    deadline = time.monotonic() + _TOKEN_WAIT
    while True:
        data = api.get(path, {}, _TIMEOUT).get("data")
        if isinstance(data, dict) and (token := data.get("token")):
            try:
                return base64.b64decode(token).decode(), str(data.get("ca.crt") or "")
            except (TypeError, ValueError) as error:
                raise ApiError(Failure.GARBAGE, f"{path}: the token in this Secret is no base64: {error}") from error
        if time.monotonic() > deadline:
            raise ApiError(Failure.REFUSED, f"{path}: Kubernetes puts no token into this Secret; try again later")
        time.sleep(0.5)


def _ways(cluster: Object, authority: str) -> Iterator[Object]:
    """The administrator's way to the cluster with the authority that Kubernetes gives to its pods; then as it is: where
    something before the API server ends TLS, that authority knows nothing of its certificate."""
    if authority:
        verified = {key: value for key, value in cluster.items() if key != "insecure-skip-tls-verify"}
        yield {**verified, "certificate-authority-data": authority}
    yield cluster


def _try(text: str) -> None:
    """One request with a kubeconfig, more while its account is not known everywhere. Raises ApiError."""
    deadline = time.monotonic() + _RIGHTS_WAIT
    with tempfile.TemporaryDirectory(prefix="metaleg-node-") as directory:
        file = Path(directory) / "kubeconfig"
        files.replace(file, text.encode(), mode=0o600)
        with ApiClient(str(file)) as api:
            while True:
                try:
                    api.get("/api/v1/nodes", {"limit": "1"}, _TIMEOUT)
                except ApiError as error:
                    unknown = error.failure in (Failure.UNAUTHORIZED, Failure.FORBIDDEN)
                    if not unknown or time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
                else:
                    return


def _kubeconfig(cluster: Object, token: str) -> str:
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
