"""How to reach the API server: from a kubeconfig, or from what Kubernetes gives to a pod.

The `kubernetes` package reads the kubeconfig and gets tokens, also from exec plugins. What its older releases lack is
added here, so that all of them behave alike: `tls-server-name`, `proxy-url`, token files and certificates that are
replaced, clear errors, and private keys that stay in temporary files no longer than it takes to read them.
"""

from __future__ import annotations

import base64
import binascii
import os
import socket
import ssl
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.config import kube_config

from metaleg_node.files import Stamp, stamp

_CONNECTIONS: Final = 32
"""Connections that are kept open: one for each watch, and some for lists."""
_KEEPALIVE: Final = (
    *urllib3.connection.HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""A peer that vanished without a word is noticed after half a minute (tcp(7)), not after a watch's whole timeout."""
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The fields that may hold a file's content instead of its name, and the fields for that name:
# https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
_CLUSTER_FILES: Final = ("certificate-authority",)
_USER_FILES: Final = ("client-certificate", "client-key")

Raw = dict[str, Any]


class CredentialsError(Exception):
    """The credentials cannot be read or used; the text names the file, the place in it and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A way to the API server. `stamp` changes when any of the files behind it does."""

    host: str
    pool: urllib3.PoolManager
    configuration: Any
    stamp: tuple[Stamp, ...]
    files: tuple[Path, ...]

    def headers(self) -> dict[str, str]:
        """The headers that authenticate; runs an exec plugin again when its token has expired."""
        found: dict[str, str] = {}
        for setting in self.configuration.auth_settings().values():
            if setting["value"]:
                found[setting["key"]] = setting["value"].strip()
        return found

    def is_current(self) -> bool:
        """Whether the files are still those that were read."""
        return _stamps(self.files) == self.stamp


def load(kubeconfig: str, context: str = "") -> Access:
    """Reads the credentials; an empty `kubeconfig` means those of a pod. Raises CredentialsError."""
    return _of_pod() if not kubeconfig else _of_file(Path(kubeconfig), context)


def check(kubeconfig: str, context: str = "") -> None:
    """Looks whether there are credentials at all, without using them. Raises CredentialsError."""
    if kubeconfig:
        _chosen(Path(kubeconfig), _document(Path(kubeconfig)), context)
    else:
        _pod_server()


def cluster_of(kubeconfig: Path, context: str) -> Raw:
    """The cluster of a context as it stands in the kubeconfig. Raises CredentialsError."""
    return dict(_chosen(kubeconfig, _document(kubeconfig), context)[0])


def _stamps(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    return tuple(map(stamp, paths))


def _of_pod() -> Access:
    cluster = {"server": _pod_server(), "certificate-authority": "ca.crt"}
    return _of_parts(_SERVICE_ACCOUNT, cluster, {"tokenFile": "token"}, ())


def _pod_server() -> str:
    """https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/"""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise CredentialsError("cluster.kubeconfig is empty, but this is no pod with a service account; set it")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _of_file(file: Path, context: str) -> Access:
    read = _stamps([file])
    return _of_parts(file, *_chosen(file, _document(file), context), read)


def _of_parts(place: Path, cluster: Raw, user: Raw, read: tuple[Stamp, ...]) -> Access:
    """Credentials that stand in a kubeconfig, which was read as it was at `read`, or in a pod's directory."""
    base = place.parent if read else place
    named = tuple(_named_files(base, cluster, user))
    before = (*read, *_stamps(named))
    configuration = client.Configuration()
    with _temporary_directory(place) as directory:
        parts = [_with_files(part, place, base, directory) for part in (cluster, user)]
        try:
            loader = kube_config.KubeConfigLoader(config_dict=_single(*parts), config_base_path=str(base))
            loader.load_and_set(configuration)
        except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise CredentialsError(f"{place}: {error}") from error
        _check_exec(place, user, configuration)
        return _access(configuration, cluster, before, (*([place] if read else []), *named))


@contextmanager
def _temporary_directory(place: Path) -> Iterator[Path]:
    """For what OpenSSL reads from files only. Raises CredentialsError."""
    try:
        with tempfile.TemporaryDirectory(prefix="metaleg-node-") as directory:
            yield Path(directory)
    except OSError as error:
        advice = "is the disk of $TMPDIR, else of /tmp, full or read-only?"
        text = f"{place}: temporary files for its keys cannot be written: {error.strerror or error}; {advice}"
        raise CredentialsError(text) from error


def _document(file: Path) -> Raw:
    try:
        document = yaml.safe_load(file.read_bytes())
    except FileNotFoundError as error:
        raise CredentialsError(
            f"{file}: does not exist; put a kubeconfig there (docs/kubernetes.md), or set cluster.kubeconfig"
        ) from error
    except PermissionError as error:
        advice = f"let the service's user read it: chgrp metaleg-node {file}; chmod 640 {file}"
        raise CredentialsError(f"{file}: cannot be read: {error.strerror}; {advice}") from error
    except OSError as error:
        raise CredentialsError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise CredentialsError(f"{file}: is no kubeconfig, but empty or a plain value; put a kubeconfig there")
    return document


def _chosen(file: Path, document: Raw, context: str) -> tuple[Raw, Raw]:
    """The cluster and the user of a context. Raises CredentialsError."""
    name = context or document.get("current-context")
    if not name:
        raise CredentialsError(f"{file}: has no current-context; set it there, or cluster.context")
    chosen = _entry(file, document, "contexts", "context", name)
    cluster = _entry(file, document, "clusters", "cluster", chosen.get("cluster"))
    if not isinstance(cluster.get("server"), str):
        raise CredentialsError(f"{file}: the cluster of context {name!r} has no server; give its URL")
    return cluster, _entry(file, document, "users", "user", chosen.get("user"))


def _entry(file: Path, document: Raw, section: str, key: str, name: object) -> Raw:
    entries = document.get(section)
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    named = [entry for entry in entries if entry.get("name") == name]
    if not named:
        known = ", ".join(str(entry.get("name")) for entry in entries) or "none"
        raise CredentialsError(f"{file}: {section} has no {key} named {name!r}; there is: {known}")
    found = named[0].get(key)
    if not isinstance(found, dict):
        raise CredentialsError(f"{file}: {section}: {name!r} has no {key}")
    return found


def _named_files(base: Path, cluster: Raw, user: Raw) -> Iterator[Path]:
    """The files that the credentials are spread over."""
    for part, keys in ((cluster, _CLUSTER_FILES), (user, (*_USER_FILES, "tokenFile"))):
        for key in keys:
            if isinstance(part.get(key), str) and not part.get(f"{key}-data"):
                yield base / part[key]


def _with_files(part: Raw, place: Path, base: Path, directory: Path) -> Raw:
    """The same with absolute paths, and with content that was inline in files."""
    made = dict(part)
    for key in (*_CLUSTER_FILES, *_USER_FILES):
        if data := made.pop(f"{key}-data", None):
            made[key] = str(_decoded(f"{place}: {key}-data", data, directory / key))
        elif isinstance(made.get(key), str):
            made[key] = str(_existing(f"{place}: {key}", base / made[key]))
    if isinstance(made.get("tokenFile"), str):
        made["tokenFile"] = str(_existing(f"{place}: tokenFile", base / made["tokenFile"]))
    return made


def _decoded(where: str, data: object, file: Path) -> Path:
    try:
        content = base64.b64decode(str(data), validate=True)
    except binascii.Error as error:
        raise CredentialsError(f"{where}: is not base64: {error}") from error
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
    return file


def _existing(where: str, file: Path) -> Path:
    try:
        file.open("rb").close()
    except OSError as error:
        raise CredentialsError(f"{where}: {file}: {error.strerror}") from error
    return file.absolute()


def _single(cluster: Raw, user: Raw) -> Raw:
    """A kubeconfig with one context."""
    return {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": user}],
    }


def _check_exec(file: Path, user: Raw, configuration: Any) -> None:
    """The package only logs why an exec plugin failed, and goes on as nobody."""
    if "exec" in user and not configuration.cert_file and not any(configuration.auth_settings().values()):
        command = user["exec"].get("command") if isinstance(user["exec"], dict) else user["exec"]
        raise CredentialsError(f"{file}: the exec plugin {command!r} gave no credentials; run it by hand to see why")


def _access(
    configuration: Any, cluster: Mapping[str, Any], before: tuple[Stamp, ...], files: tuple[Path, ...]
) -> Access:
    """What the configuration says, as connections. Raises CredentialsError."""
    configuration.connection_pool_maxsize = _CONNECTIONS
    proxies = urllib.request.getproxies()
    scheme = configuration.host.partition(":")[0]
    configuration.proxy = cluster.get("proxy-url") or proxies.get(scheme)
    configuration.no_proxy = None if cluster.get("proxy-url") else proxies.get("no")
    pool = client.ApiClient(configuration).rest_client.pool_manager
    settings = pool.connection_pool_kw
    settings["socket_options"] = list(_KEEPALIVE)
    if name := cluster.get("tls-server-name"):
        settings["server_hostname"] = name
    if scheme == "https":
        settings["ssl_context"] = _tls(configuration)
        for key in ("ca_certs", "cert_file", "key_file"):
            settings.pop(key, None)
    return Access(host=configuration.host, pool=pool, configuration=configuration, stamp=before, files=files)


def _tls(configuration: Any) -> ssl.SSLContext:
    """The TLS context: made once, since the files it is made of may be temporary. Raises CredentialsError.

    Not ssl.create_default_context: from Python 3.13 on that refuses certificate authorities that Kubernetes installers
    have made for years (VERIFY_X509_STRICT).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # urllib3 compares the name itself then, in all releases also for an IP address.
    if not configuration.verify_ssl:
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    what = "certificate-authority"
    try:
        if configuration.ssl_ca_cert:
            context.load_verify_locations(configuration.ssl_ca_cert)
        else:
            context.load_default_certs()
        what = "client-certificate and client-key"
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ssl.SSLError) as error:
        raise CredentialsError(f"the {what} of the kubeconfig cannot be used: {error}") from error
    return context
