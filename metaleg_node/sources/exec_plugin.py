"""Exec plugins of a kubeconfig: programs that print credentials.

The `kubernetes` package would wait for one without end, give it our terminal, and keep its message to itself.
https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from metaleg_node.text import printable

TIME_LIMIT: Final = 30.0
"""Seconds that a plugin may take."""
_SHOWN: Final = 300
_EXTENSION: Final = "client.authentication.k8s.io/exec"

Raw = dict[str, Any]


class PluginError(Exception):
    """A plugin gave no credentials; the text says why, with its own message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What a plugin gave: a token, or a certificate with its key in PEM, or all of it; `expires` None: never."""

    token: str = ""
    certificate: str = ""
    key: str = ""
    expires: datetime | None = None


class Plugins:
    """Runs plugins, one at a time; `stop` ends the one that runs, from any thread, and all later ones."""

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def issue(self, plugin: Mapping[str, Any], cluster: Raw, base: Path) -> Issued:
        """What the plugin of a user's `exec` gives for a cluster, both as they stand in a kubeconfig in the directory
        `base`; `cluster` carries its certificate authority inline. Raises PluginError."""
        command = _text(plugin, "command")
        version = _text(plugin, "apiVersion")
        if plugin.get("interactiveMode") == "Always":
            raise PluginError(f"exec plugin {command!r}: asks for a terminal (interactiveMode), a service has none")
        argv = [str(base / command) if "/" in command else command, *_texts(plugin.get("args") or [], "args")]
        spec: Raw = {"interactive": False}
        if plugin.get("provideClusterInfo"):
            spec["cluster"] = _cluster_info(cluster)
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
        environment = {**os.environ, **_environment(plugin), "KUBERNETES_EXEC_INFO": json.dumps(info, default=str)}
        try:
            return _issued(self._output(argv, environment, base), version)
        except PluginError as error:
            hint = printable(str(plugin.get("installHint") or ""))[:_SHOWN]
            raise PluginError(f"exec plugin {command!r} gave no credentials: {error}{hint and f'; {hint}'}") from error

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._running:
                _kill(self._running)

    def _output(self, argv: list[str], environment: Mapping[str, str], directory: Path) -> bytes:
        try:
            with self._lock:
                if self._stopped:
                    raise PluginError("the service is stopping")
                process = self._running = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise PluginError(f"it cannot be started: {getattr(error, 'strerror', None) or error}") from error
        try:
            output, told = process.communicate(timeout=self._time_limit)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise PluginError(f"it did not end within {self._time_limit:g} s and was killed") from error
        finally:
            with self._lock:
                self._running = None
            _close(process)
        if process.returncode:
            words = printable(" ".join(told.decode(errors="replace").split()))[-_SHOWN:]
            ended = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise PluginError(f"{ended}: {words or 'it says nothing'}")
        return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The plugin with what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _cluster_info(cluster: Raw) -> Raw:
    """https://kubernetes.io/docs/reference/config-api/client-authentication.v1/#client-authentication-k8s-io-v1-Cluster"""
    keys = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
    found: Raw = {key: cluster[key] for key in keys if key in cluster}
    extensions = cluster.get("extensions")
    for one in extensions if isinstance(extensions, list) else ():
        if isinstance(one, dict) and one.get("name") == _EXTENSION:
            found["config"] = one.get("extension")
    return found


def _environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    found = plugin.get("env") or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise PluginError("exec: env: must be a list of names and values")
    return {_text(one, "name"): str(one.get("value") or "") for one in found}


def _text(part: Mapping[str, Any], key: str) -> str:
    value = part.get(key)
    if not isinstance(value, str) or not value:
        raise PluginError(f"exec: {key}: must be a string that is not empty")
    return value


def _texts(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise PluginError(f"exec: {key}: must be a list of strings; put numbers in quotes")
    return value


def _issued(output: bytes, version: str) -> Issued:
    """What an ExecCredential says."""
    try:
        found = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise PluginError(f"its output is no JSON ({printable(str(error))[:_SHOWN]})") from error
    status = found.get("status") if isinstance(found, dict) else None
    if not isinstance(status, dict) or found.get("kind") != "ExecCredential":
        raise PluginError("its output is no ExecCredential with a status")
    if found.get("apiVersion") != version:
        raise PluginError(f"its output has another apiVersion than the kubeconfig, {version}")
    names = ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    token, certificate, key, expires = (_status_text(status, name) for name in names)
    if bool(certificate) != bool(key) or not (token or key):
        raise PluginError("its status has neither a token nor clientCertificateData with clientKeyData")
    return Issued(token=token, certificate=certificate, key=key, expires=_moment(expires))


def _status_text(status: Raw, name: str) -> str:
    value = status.get(name)
    if value is not None and not isinstance(value, str):
        raise PluginError(f"its status.{name} is no string")
    return value or ""


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError as error:
        raise PluginError("its status.expirationTimestamp is no time as in RFC 3339") from error
    return found.replace(tzinfo=found.tzinfo or UTC) if found else None
