"""How to reach the API server: from a kubeconfig, or from what Kubernetes gives to a pod.

The `kubernetes` package makes the connections and knows the old ways to log in. What its releases lack or do each in
their own way is done here: every field is looked at before the package sees it, so that an error names it;
`tls-server-name`, `proxy-url`, impersonation, token files and certificates that are replaced; and private keys stay in
temporary files no longer than it takes to read them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import socket
import ssl
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml
from kubernetes import client
from kubernetes.config import kube_config

from metaleg_node.files import Stamp, stamp
from metaleg_node.sources.exec_plugin import Issued, PluginError, Plugins
from metaleg_node.sources.secrets import LARGEST
from metaleg_node.text import printable

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
# The fields that are read, with what they hold; `-data` is the content instead of a file's name, in base64, or as bytes
# where YAML has decoded it: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
_TEXT: Final = (str,)
_DATA: Final = (str, bytes)
_CLUSTER_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "server": _TEXT,
    "certificate-authority": _TEXT,
    "certificate-authority-data": _DATA,
    "insecure-skip-tls-verify": (bool,),
    "tls-server-name": _TEXT,
    "proxy-url": _TEXT,
    "extensions": (list,),
}
_USER_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "client-certificate": _TEXT,
    "client-certificate-data": _DATA,
    "client-key": _TEXT,
    "client-key-data": _DATA,
    "token": _TEXT,
    "tokenFile": _TEXT,
    "username": _TEXT,
    "password": _TEXT,
    "as": _TEXT,
    "as-uid": _TEXT,
    "as-groups": (list,),
    "as-user-extra": (dict,),
    "exec": (dict,),
    "auth-provider": (dict,),
}
_KINDS: Final[Mapping[type, str]] = {str: "a string", bool: "true or false", list: "a list", dict: "a mapping"}
_CLUSTER_FILES: Final = ("certificate-authority",)
_USER_FILES: Final = ("client-certificate", "client-key")
_BEFORE_EXPIRY: Final = timedelta(seconds=10)
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHOWN: Final = 300

Raw = dict[str, Any]


class CredentialsError(Exception):
    """The credentials cannot be read or used; the text, one line, names the file, the place in it and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A way to the API server. `headers` authenticate; `stamp` changes when any of the files behind it does."""

    host: str
    pool: urllib3.PoolManager
    headers: tuple[tuple[str, str], ...]
    expires: datetime | None
    stamp: tuple[Stamp, ...]
    files: tuple[Path, ...]

    def is_current(self) -> bool:
        """Whether the files are still those that were read, and what a plugin gave is still good."""
        expired = self.expires is not None and self.expires - _BEFORE_EXPIRY <= datetime.now(UTC)
        return not expired and _stamps(self.files) == self.stamp


def load(kubeconfig: str, context: str = "", plugins: Plugins | None = None) -> Access:
    """Reads the credentials; an empty `kubeconfig` means those of a pod. `plugins` runs what `exec` names, so that
    another thread can end it. Raises CredentialsError."""
    place = kubeconfig or str(_SERVICE_ACCOUNT)
    try:
        return _of_file(Path(kubeconfig), context, plugins or Plugins()) if kubeconfig else _of_pod()
    except CredentialsError:
        raise
    except Exception as error:  # The package and those below it raise whatever a strange value leads to.
        raise CredentialsError(f"{place}: cannot be used: {_words(error)}") from error


def check(kubeconfig: str, context: str = "") -> None:
    """Looks whether there are credentials at all, without using them. Raises CredentialsError."""
    if kubeconfig:
        _chosen(Path(kubeconfig), _document(Path(kubeconfig)), context)
    else:
        _pod_server()


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What of a kubeconfig may end, or be wrong in a way that only people see: the server's URL, the client certificate
    (PEM) and the token; empty where there is none."""

    server: str
    certificate: bytes
    token: str


def details(kubeconfig: str, context: str = "") -> Details:
    """Reads them without using them; runs no plugin. Raises CredentialsError, and OSError for a file that it names."""
    file = Path(kubeconfig)
    cluster, user = _chosen(file, _document(file), context)
    certificate = b""
    if data := user.get("client-certificate-data"):
        certificate = _decoded(f"{file}: client-certificate-data", data)
    elif name := user.get("client-certificate"):
        certificate = (file.parent / name).read_bytes()
    token = user.get("token", "")
    if name := user.get("tokenFile"):
        token = _token_of_file(f"{file}: tokenFile", file.parent / name, token)
    return Details(server=cluster["server"], certificate=certificate, token=token)


def cluster_of(kubeconfig: Path, context: str) -> Raw:
    """How a context reaches its cluster: fields of the kubeconfig, the certificate authority inline.

    Raises CredentialsError.
    """
    cluster = _chosen(kubeconfig, _document(kubeconfig), context)[0]
    cluster.pop("extensions", None)
    name = cluster.pop("certificate-authority", None)
    if name and "certificate-authority-data" not in cluster:
        where = f"{kubeconfig}: certificate-authority"
        cluster["certificate-authority-data"] = _inline(_existing(where, kubeconfig.parent / name))
    elif isinstance(data := cluster.get("certificate-authority-data"), bytes):
        cluster["certificate-authority-data"] = base64.b64encode(data).decode()
    return cluster


def _inline(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _stamps(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    return tuple(map(stamp, paths))


def _of_pod() -> Access:
    cluster = {"server": _pod_server(), "certificate-authority": "ca.crt"}
    return _of_parts(_SERVICE_ACCOUNT, cluster, {"tokenFile": "token"}, (), Plugins())


def _pod_server() -> str:
    """https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/"""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise CredentialsError("cluster.kubeconfig is empty, but this is no pod with a service account; set it")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _of_file(file: Path, context: str, plugins: Plugins) -> Access:
    read = _stamps([file])
    return _of_parts(file, *_chosen(file, _document(file), context), read, plugins)


def _of_parts(place: Path, cluster: Raw, user: Raw, read: tuple[Stamp, ...], plugins: Plugins) -> Access:
    """Credentials that stand in a kubeconfig, which was read as it was at `read`, or in a pod's directory."""
    base = place.parent if read else place
    named = tuple(_named_files(base, cluster, user))
    before = (*read, *_stamps(named))
    configuration = client.Configuration()
    configuration.connection_pool_maxsize = _CONNECTIONS
    _set_proxy(place, cluster, configuration)
    passwords, impersonation = _passwords(user), tuple(_impersonation(place, user))
    with _temporary_directory(place) as directory:
        cluster, user = (_with_files(part, place, base, Path(directory)) for part in (cluster, user))
        user, expires = _logged_in(place, cluster, user, plugins, Path(directory))
        try:
            loader = kube_config.KubeConfigLoader(config_dict=_single(cluster, user), config_base_path=str(base))
            loader.load_and_set(configuration)
        except Exception as error:  # Of any kind, above all where an `auth-provider` is asked.
            what = "auth-provider: " if "auth-provider" in user else ""
            raise CredentialsError(f"{place}: {what}{_words(error)}") from error
        return Access(
            host=configuration.host,
            pool=_pool(place, configuration, cluster),
            headers=(*(_authentication(configuration) or passwords), *impersonation),
            expires=expires,
            stamp=before,
            files=(*([place] if read else []), *named),
        )


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
        with file.open("rb") as opened:
            text = opened.read(LARGEST + 1)
        document = yaml.load(text, _LOADER) if len(text) <= LARGEST else None
    except FileNotFoundError as error:
        raise CredentialsError(
            f"{file}: does not exist; put a kubeconfig there (docs/kubernetes.md), or set cluster.kubeconfig"
        ) from error
    except PermissionError as error:
        advice = f"let the service's user read it: chgrp metaleg-node {file}; chmod 640 {file}"
        raise CredentialsError(f"{file}: cannot be read: {error.strerror}; {advice}") from error
    except OSError as error:
        raise CredentialsError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # PyYAML also lets through what its constructors raise, of a date that is none.
        raise CredentialsError(f"{file}: is not valid YAML: {_words(error)}") from error
    if len(text) > LARGEST:
        raise CredentialsError(f"{file}: is larger than {LARGEST >> 20} MiB; put a kubeconfig there")
    if not isinstance(document, dict):
        raise CredentialsError(f"{file}: is no kubeconfig, but empty or a plain value; put a kubeconfig there")
    return document


def _chosen(file: Path, document: Raw, context: str) -> tuple[Raw, Raw]:
    """The cluster and the user of a context, with the fields that are read. Raises CredentialsError."""
    name = context or document.get("current-context")
    if not name:
        raise CredentialsError(f"{file}: has no current-context; set it there, or cluster.context")
    chosen = _entry(file, document, "contexts", "context", name)
    cluster = _fields(file, _entry(file, document, "clusters", "cluster", chosen.get("cluster")), _CLUSTER_FIELDS)
    if "server" not in cluster:
        raise CredentialsError(f"{file}: the cluster of context {name!r} has no server; give its URL")
    user = _fields(file, _entry(file, document, "users", "user", chosen.get("user")), _USER_FIELDS)
    return {**cluster, "server": _server(file, cluster, user)}, user


def _entry(file: Path, document: Raw, section: str, key: str, name: object) -> Raw:
    entries = document.get(section)
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not isinstance(name, str):
        raise CredentialsError(f"{file}: the name of a {key} must be a string; put it in quotes")
    named = [entry for entry in entries if entry.get("name") == name]
    if not named:
        known = printable(", ".join(n for entry in entries if isinstance(n := entry.get("name"), str))) or "none"
        raise CredentialsError(f"{file}: {section} has no {key} named {name!r}; there is: {known[:_SHOWN]}")
    found = named[0].get(key)
    if not isinstance(found, dict):
        raise CredentialsError(f"{file}: {section}: {name!r} has no {key}")
    return found


def _fields(file: Path, part: Raw, known: Mapping[str, tuple[type, ...]]) -> Raw:
    """Those that are known and not empty: an empty one is as good as none, as it is for kubectl."""
    found = {key: part[key] for key in known if part.get(key) not in (None, "", b"", [], {})}
    for key, value in found.items():
        if not isinstance(value, known[key]):
            kind = _KINDS[known[key][0]]
            hint = "; put it in quotes" if kind == _KINDS[str] else ""
            raise CredentialsError(f"{file}: {key}: must be {kind}{hint}")
    return found


def _server(file: Path, cluster: Raw, user: Raw) -> str:
    """The URL; without a scheme it is HTTPS if anything tells of TLS, as kubectl has it."""
    server = str(cluster["server"]).strip()
    if "://" not in server:
        certificates = any(
            key.startswith(("certificate-authority", "client-certificate")) for key in {**cluster, **user}
        )
        secure = certificates or cluster.get("insecure-skip-tls-verify")
        server = f"{'https' if secure else 'http'}://{server}"
    return _url(f"{file}: server", server, ("https", "http"))


def _url(where: str, text: str, schemes: tuple[str, ...]) -> str:
    """Raises CredentialsError. What is wrong is told without the text, which may hold a password."""
    try:
        parts = urllib.parse.urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise CredentialsError(f"{where}: is no URL: {error}") from error
    if parts.scheme not in schemes:
        raise CredentialsError(f"{where}: {parts.scheme or 'no scheme'}: must begin with {' or '.join(schemes)}://")
    if not host or port == 0 or not text.isprintable() or " " in text or parts.query or parts.fragment:
        raise CredentialsError(f"{where}: is no URL like {schemes[0]}://HOST:PORT")
    return text


def _named_files(base: Path, cluster: Raw, user: Raw) -> Iterator[Path]:
    """The files that the credentials are spread over."""
    for part, keys in ((cluster, _CLUSTER_FILES), (user, (*_USER_FILES, "tokenFile"))):
        for key in keys:
            if key in part and f"{key}-data" not in part:
                yield base / part[key]


def _with_files(part: Raw, place: Path, base: Path, directory: Path) -> Raw:
    """The same with absolute paths, and with content that was inline in files; a token file becomes a token."""
    made = dict(part)
    for key in (*_CLUSTER_FILES, *_USER_FILES):
        if data := made.pop(f"{key}-data", None):
            made[key] = str(_written(directory / key, _decoded(f"{place}: {key}-data", data)))
        elif key in made:
            made[key] = str(_existing(f"{place}: {key}", base / made[key]))
    if name := made.pop("tokenFile", None):
        made["token"] = _token_of_file(f"{place}: tokenFile", base / name, made.get("token", ""))
    return made


def _token_of_file(where: str, file: Path, stale: str) -> str:
    """The file counts before a token beside it, which is what it once was, as for kubectl."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        if not stale:
            raise CredentialsError(f"{where}: {file}: {error.strerror}") from error
        return stale
    except UnicodeDecodeError as error:
        raise CredentialsError(f"{where}: {file}: is no text") from error


def _decoded(where: str, data: str | bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CredentialsError(f"{where}: is not base64: {error}") from error


def _written(file: Path, content: bytes) -> Path:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
    return file


def _logged_in(place: Path, cluster: Raw, user: Raw, plugins: Plugins, directory: Path) -> tuple[Raw, datetime | None]:
    """The user with what its plugin gives, and until when that is good; a token makes a plugin needless."""
    made = {key: value for key, value in user.items() if key not in ("exec", "username", "password")}
    issued = Issued()
    if "exec" in user and "token" not in user:
        with contextlib.suppress(KeyError):
            cluster = {**cluster, "certificate-authority-data": _inline(Path(cluster["certificate-authority"]))}
        try:
            issued = plugins.issue(user["exec"], cluster, place.parent)
        except PluginError as error:
            raise CredentialsError(f"{place}: {error}") from error
        if issued.token:
            made["token"] = issued.token
        if issued.key:
            made["client-certificate"] = str(_written(directory / "issued.crt", issued.certificate.encode()))
            made["client-key"] = str(_written(directory / "issued.key", issued.key.encode()))
    if "token" in made:
        made["token"] = _header(f"{place}: token", made["token"])
    return made, issued.expires


def _header(where: str, text: object) -> str:
    """A value that can stand in a header. Raises CredentialsError, which does not show it: it is a secret."""
    found = text.strip() if isinstance(text, str) else ""
    if not found:
        raise CredentialsError(f"{where}: is empty or no string")
    if not found.isascii() or not found.isprintable():
        raise CredentialsError(f"{where}: has a line break in it, or another character that cannot be sent")
    return found


def _impersonation(place: Path, user: Raw) -> Iterator[tuple[str, str]]:
    """https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation"""
    others = [key for key in ("as-uid", "as-groups", "as-user-extra") if key in user]
    if others and "as" not in user:
        raise CredentialsError(f"{place}: {others[0]}: needs `as`, the user to act as")
    for key, name in (("as", "Impersonate-User"), ("as-uid", "Impersonate-Uid")):
        if key in user:
            yield name, _header(f"{place}: {key}", user[key])
    for group in user.get("as-groups", ()):
        yield "Impersonate-Group", _header(f"{place}: as-groups", group)
    for key, values in user.get("as-user-extra", {}).items():
        where = f"{place}: as-user-extra"
        for value in values if isinstance(values, list) else (values,):
            name = urllib.parse.quote(_header(where, key), safe="")
            yield f"Impersonate-Extra-{name}", _header(where, value)


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


def _authentication(configuration: Any) -> list[tuple[str, str]]:
    settings = configuration.auth_settings().values()
    return [(setting["key"], setting["value"].strip()) for setting in settings if setting["value"]]


def _passwords(user: Raw) -> list[tuple[str, str]]:
    """https://www.rfc-editor.org/rfc/rfc7617, in UTF-8 as kubectl sends it."""
    if "username" not in user:
        return []
    pair = f"{user['username']}:{user.get('password', '')}".encode()
    return [("Authorization", f"Basic {base64.b64encode(pair).decode()}")]


def _set_proxy(place: Path, cluster: Raw, configuration: Any) -> None:
    """The kubeconfig's proxy, else that of the environment. Raises CredentialsError."""
    if own := cluster.get("proxy-url"):
        configuration.proxy, configuration.no_proxy = _url(f"{place}: proxy-url", own, ("http", "https")), None
        return
    proxies = urllib.request.getproxies()
    scheme = cluster["server"].partition(":")[0]
    found = proxies.get(scheme)
    if found and "://" not in found:
        found = f"http://{found}"
    configuration.no_proxy = proxies.get("no")
    configuration.proxy = found and _url(f"the variable {scheme.upper()}_PROXY", found, ("http", "https"))


def _pool(place: Path, configuration: Any, cluster: Raw) -> urllib3.PoolManager:
    """What the configuration says, as connections. Raises CredentialsError."""
    pool: urllib3.PoolManager = client.ApiClient(configuration).rest_client.pool_manager
    settings = pool.connection_pool_kw
    settings["socket_options"] = list(_KEEPALIVE)
    if name := cluster.get("tls-server-name"):
        settings["server_hostname"] = name
    if configuration.host.startswith("https:"):
        settings["ssl_context"] = _tls(place, configuration)
        for key in ("ca_certs", "cert_file", "key_file"):
            settings.pop(key, None)
    return pool


def _tls(place: Path, configuration: Any) -> ssl.SSLContext:
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
            # An encrypted key is an error: without a callback OpenSSL would ask on the terminal.
            context.load_cert_chain(configuration.cert_file, configuration.key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        raise CredentialsError(f"{place}: the {what} of the kubeconfig cannot be used: {_words(error)}") from error
    return context


def _words(error: BaseException) -> str:
    """What an exception says, on one line."""
    return printable(" ".join(str(error).split()))[:_SHOWN] or type(error).__name__
