"""A Kubernetes API server for tests, over HTTP or HTTPS, which follows the API's conventions and injects faults.

It knows lists in pages, label and field selectors, watches with bookmarks, resource versions and their expiry, Status
objects, bearer tokens and client certificates, and server-side apply: what
https://kubernetes.io/docs/reference/using-api/api-concepts/ says about them, not what any client expects.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import re
import socket
import ssl
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]

KINDS = {
    "services": "Service",
    "endpointslices": "EndpointSlice",
    "nodes": "Node",
    "pods": "Pod",
    "events": "Event",
    "servicecidrs": "ServiceCIDR",
    "servicel2statuses": "ServiceL2Status",
    "servicebgpstatuses": "ServiceBGPStatus",
    "configmaps": "ConfigMap",
    "ipaddresspools": "IPAddressPool",
    "bgppeers": "BGPPeer",
    "bgpadvertisements": "BGPAdvertisement",
}
CORE = ("v1/services", "v1/nodes", "v1/events", "v1/pods", "v1/configmaps", "discovery.k8s.io/v1/endpointslices")
"""What every cluster serves."""
EXTRA = (
    "networking.k8s.io/v1/servicecidrs",
    "metallb.io/v1beta1/servicel2statuses",
    "metallb.io/v1beta1/servicebgpstatuses",
    "metallb.io/v1beta1/ipaddresspools",
    "metallb.io/v1beta2/bgppeers",
    "metallb.io/v1beta1/bgpadvertisements",
)
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of a resource's history; `before` is the object as it was, None if it is new."""

    version: int
    before: Object | None
    after: Object | None
    _lines: dict[str, bytes] = field(default_factory=dict)

    def line(self, kind: str) -> bytes:
        """The event of this type, made once for all watches, as a real server does it."""
        if kind not in self._lines:
            one = self.after
            if kind == "DELETED" and self.before:  # What it was, with the version of now.
                one = {**self.before, "metadata": {**self.before["metadata"], "resourceVersion": str(self.version)}}
            self._lines[kind] = _line(kind, one)
        return self._lines[kind]


@dataclass(slots=True, kw_only=True)
class Table:
    """One resource: its objects, and what happened since `floor`. `changed` has the server's lock."""

    changed: threading.Condition
    objects: dict[Key, Object] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    floor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    impersonation: tuple[tuple[str, str], ...] = ()

    @property
    def plural(self) -> str:
        found = _PATH.fullmatch(self.path)
        return found["plural"] if found else self.path.rpartition("/")[2]

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")


Fault = Callable[["Handler", Asked], bool]
"""Answers a request wrongly; returns whether it did, else the request is answered as usual."""


class ApiServer:
    """Serves until `stop`; `down` and `up` make it die and come back on the same port."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
        open_socket: Callable[[], socket.socket] | None = None,
        tokens: set[str] | None = None,
    ) -> None:
        self.tokens = tokens
        self.forbidden: set[str] = set()
        self.bookmark_seconds = 60.0
        self.page_limit = 500
        self.gone_as_status = False
        self.asked: list[Asked] = []
        self.sent = Counter[str]()
        self.bookmarks = Counter[str]()
        self._lock = threading.RLock()
        self.tables = {name: Table(changed=threading.Condition(self._lock)) for name in (*CORE, *EXTRA)}
        self.version = 1
        self._tls = tls
        self._open_socket = open_socket or _tcp
        self.service_account_token = "secret"
        self.authority = b""
        self.clock_ahead = 0.0
        """Seconds by which the server's clock is before this machine's."""
        self.rules: list[Object] = []
        """What a SelfSubjectRulesReview tells."""
        self.made: dict[str, Object] = {}
        """What was applied, by path."""
        self._faults: list[tuple[Callable[[Asked], bool], Fault, list[int]]] = []
        self._snapshots: dict[str, list[Object]] = {}
        self._tokens_made = itertools.count(1)
        self._http: _Http | None = None
        self._thread: threading.Thread | None = None
        self._address: tuple[str, int] = address

    # --- running -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> ApiServer:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._address[0]}:{self._address[1]}"

    def up(self) -> None:
        """Starts, on the port that it had before if it ran before."""
        sock = self._open_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self._address)
        self._address = sock.getsockname()[:2]
        sock.listen(128)
        self._http = _Http(self, sock, self._tls)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Dies: refuses connections and breaks those there are."""
        http, self._http = self._http, None
        if http is None or self._thread is None:
            return
        http.shutdown()
        http.server_close()
        self._thread.join()
        http.break_all()
        with self._lock:
            for table in self.tables.values():
                table.changed.notify_all()

    def break_connections(self) -> None:
        """Resets every connection; new ones are welcome."""
        if self._http:
            self._http.break_all()

    # --- objects -----------------------------------------------------------------------------------------------------

    def put(self, *objects: Object) -> None:
        """Creates or replaces objects; what does not change the object changes nothing."""
        with self._lock:
            for one in objects:
                table, key = self._table_of(one), _key(one)
                before = table.objects.get(key)
                if before is not None and _without_version(before) == _without_version(one):
                    continue
                self._change(table, key, before, one)

    def delete(self, *objects: Object) -> None:
        with self._lock:
            for one in objects:
                table, key = self._table_of(one), _key(one)
                if before := table.objects.get(key):
                    self._change(table, key, before, None)

    def set_all(self, objects: Iterable[Object]) -> None:
        """Makes the objects of all kinds exactly these."""
        wanted: dict[int, set[Key]] = {}
        objects = list(objects)
        for one in objects:
            wanted.setdefault(id(self._table_of(one)), set()).add(_key(one))
        for table in self.tables.values():
            gone = [one for key, one in table.objects.items() if key not in wanted.get(id(table), set())]
            self.delete(*gone)
        self.put(*objects)

    def compact(self) -> None:
        """Forgets the history and the snapshots of lists under way, as etcd's compaction does."""
        with self._lock:
            self.version += 1
            for table in self.tables.values():
                table.history.clear()
                table.floor = self.version
            self._snapshots.clear()

    def serve_resource(self, name: str, *, served: bool) -> None:
        """Installs or removes a custom resource, named as in `EXTRA`."""
        with self._lock:
            if served:
                self.tables.setdefault(name, Table(changed=threading.Condition(self._lock), floor=self.version))
            else:
                self.tables.pop(name, None)

    def _table_of(self, one: Object) -> Table:
        plural = next(plural for plural, kind in KINDS.items() if kind == one["kind"])
        return self.tables[f"{one['apiVersion']}/{plural}"]

    def _change(self, table: Table, key: Key, before: Object | None, after: Object | None) -> None:
        self.version += 1
        if after is None:
            del table.objects[key]
        else:
            after = json.loads(json.dumps(after))
            after["metadata"]["resourceVersion"] = str(self.version)
            table.objects[key] = after
        table.history.append(Change(version=self.version, before=before, after=after))
        table.changed.notify_all()

    def applied(self, path: str, one: Object) -> Object:
        """Server-side apply; the token controller fills a service account's Secret."""
        if one.get("type") == "kubernetes.io/service-account-token":
            content = {"token": self.service_account_token.encode(), "ca.crt": self.authority}
            one = {**one, "data": {key: base64.b64encode(value).decode() for key, value in content.items()}}
        self.made[path] = one
        return one

    # --- faults ------------------------------------------------------------------------------------------------------

    def inject(self, fault: Fault, *, when: Callable[[Asked], bool], times: int = 1) -> None:
        """Lets a fault happen at the next `times` requests for which `when` holds."""
        self._faults.append((when, fault, [times]))

    @property
    def faults_to_come(self) -> int:
        """How many of the faults have not happened yet."""
        return sum(left[0] for _, _, left in self._faults)

    def heal(self) -> None:
        """Ends all faults."""
        self._faults.clear()

    def fault_for(self, asked: Asked) -> Fault | None:
        for when, fault, left in self._faults:
            if left[0] > 0 and when(asked):
                left[0] -= 1
                return fault
        return None

    # --- answers -----------------------------------------------------------------------------------------------------

    def page(self, table: Table, query: dict[str, str], namespace: str) -> tuple[int, Object]:
        """One page of a list: HTTP status and body."""
        with self._lock:
            if token := query.get("continue"):
                if token not in self._snapshots:
                    return status(410, "Expired", "The provided continue parameter is too old")
                found, version = self._snapshots.pop(token), token.partition("-")[0]
            else:
                found = [one for one in table.objects.values() if matches(one, query, namespace)]
                found.sort(key=_key)
                version = str(self.version)
            limit = min(int(query.get("limit", "0")) or len(found) + 1, self.page_limit)
            metadata: Object = {"resourceVersion": version}
            if len(found) > limit:
                metadata["continue"] = f"{version}-{next(self._tokens_made)}"
                metadata["remainingItemCount"] = len(found) - limit
                self._snapshots[metadata["continue"]] = found[limit:]
            return 200, {"metadata": metadata, "items": found[:limit]}

    def events(
        self, table: Table, query: dict[str, str], namespace: str, alive: Callable[[], bool]
    ) -> Iterator[tuple[str, bytes]]:
        """The events of a watch until its timeout, by type and as they are sent."""
        version = int(query["resourceVersion"])
        end = time.monotonic() + float(query.get("timeoutSeconds", "300"))
        bookmark = time.monotonic() + self.bookmark_seconds
        while alive():
            with self._lock:
                if version < table.floor:
                    text = f"too old resource version: {version} ({table.floor})"
                    yield "ERROR", _line("ERROR", status(410, "Expired", text)[1])
                    return
                fresh = [change for change in table.history[-200:] if change.version > version]
                if len(fresh) == 200:
                    fresh = [change for change in table.history if change.version > version]
                if not fresh:
                    table.changed.wait(max(0.0, min(end, bookmark) - time.monotonic()))
            for change in fresh:
                version = change.version
                if kind := _event(change, query, namespace):
                    yield kind, change.line(kind)
            now = time.monotonic()
            if now >= end:
                return
            if now >= bookmark and query.get("allowWatchBookmarks") == "true":
                bookmark = now + self.bookmark_seconds
                with self._lock:
                    version = max([version, *(c.version for c in table.history[-1:])])
                yield "BOOKMARK", _line("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


def matches(one: Object, query: dict[str, str], namespace: str) -> bool:
    """Equality-based label selectors, "!=" included, field selectors, and the namespace of the path."""
    if namespace and one["metadata"].get("namespace") != namespace:
        return False
    labels = one["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = pair.partition("=")
        if (labels.get(key.removesuffix("!")) == value) is key.endswith("!"):
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = pair.partition("=")
        here: Any = one
        for step in path.split("."):
            here = here.get(step, "") if isinstance(here, dict) else ""
        if here != value:
            return False
    return True


def _event(change: Change, query: dict[str, str], namespace: str) -> str:
    """The type of event that a watcher with these selectors sees of a change; empty: none."""
    was = change.before is not None and matches(change.before, query, namespace)
    if change.after is not None and matches(change.after, query, namespace):
        return "MODIFIED" if was else "ADDED"
    return "DELETED" if was else ""


def _line(kind: str, one: Object | None) -> bytes:
    return json.dumps({"type": kind, "object": one}, separators=(",", ":")).encode() + b"\n"


def status(code: int, reason: str, message: str) -> tuple[int, Object]:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return code, {**body, "metadata": {}}


def _key(one: Object) -> Key:
    return one["metadata"].get("namespace", ""), one["metadata"]["name"]


def _without_version(one: Object) -> Object:
    return {**one, "metadata": {k: v for k, v in one["metadata"].items() if k != "resourceVersion"}}


def _tcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, api: ApiServer, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.api = api
        self.tls = tls
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the connection's own thread, so that a slow TLS handshake holds up nobody else."""
        with self.lock:
            self.open.add(request)
        try:
            if self.tls:
                request.settimeout(10)
                secured = self.tls.wrap_socket(request, server_side=True)
                secured.settimeout(None)
                with self.lock:
                    self.open.discard(request)
                    self.open.add(secured)
                request = secured
            Handler(request, client_address, self)
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.open.discard(request)
            with contextlib.suppress(OSError):
                request.close()

    def break_all(self) -> None:
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            reset(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what the tests are about."""


def reset(connection: socket.socket) -> None:
    """Ends a connection with RST (SO_LINGER of zero, socket(7)), also while another thread reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        if not self.alive():
            reset(self.connection)
            self.close_connection = True
            return
        asked = self._asked()
        api = self.server.api
        fault = api.fault_for(asked)
        if fault and fault(self, asked):
            return
        if refused := self._refusal(asked):
            self.json(*refused)
            return
        found = _PATH.fullmatch(asked.path)
        name = f"{found['group']}/{found['version']}/{found['plural']}" if found and found["group"] else ""
        name = name or (f"{found['version']}/{found['plural']}" if found else "")
        table = api.tables.get(name)
        if asked.path == "/version":
            self.json(200, {"major": "1", "minor": "33"})
        elif asked.path in api.made:
            self.json(200, api.made[asked.path])
        elif found is None or table is None:
            self.raw(404, b"404 page not found\n", "text/plain; charset=utf-8")
        elif found["name"]:
            one = table.objects.get((found["namespace"] or "", found["name"]))
            self.json(*((200, one) if one else status(404, "NotFound", f"{asked.path} not found")))
        elif asked.is_watch:
            self._watch(asked, table, found["namespace"] or "")
        else:
            code, body = api.page(table, asked.query, found["namespace"] or "")
            if code == 200:
                version = name.rpartition("/")[0]
                body = {"kind": f"{KINDS[found['plural']]}List", "apiVersion": version, **body}
            self.json(code, body)

    def do_POST(self) -> None:
        """Of all there is to ask, which rights somebody has."""
        asked = self._asked()
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if refused := self._refusal(asked):
            self.json(*refused)
        elif content["kind"] != "SelfSubjectRulesReview" or not asked.path.endswith("/selfsubjectrulesreviews"):
            self.json(*status(403, "Forbidden", f"nothing may be made of kind {content['kind']}"))
        else:
            rules = {"resourceRules": self.server.api.rules, "nonResourceRules": [], "incomplete": False}
            self.json(201, {**content, "status": rules})

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.server.api.clock_ahead)

    def do_PATCH(self) -> None:
        asked = self._asked()
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if refused := self._refusal(asked):
            self.json(*refused)
        elif asked.query.get("fieldManager", "") == "" or "apply-patch" not in self.headers["Content-Type"]:
            self.json(*status(400, "BadRequest", "server-side apply needs a field manager"))
        else:
            self.json(200, self.server.api.applied(asked.path, content))

    def _asked(self) -> Asked:
        path, _, query = self.path.partition("?")
        asked = Asked(
            method=self.command,
            path=path,
            query=dict(urllib.parse.parse_qsl(query)),
            authorization=self.headers.get("Authorization", ""),
            impersonation=tuple(
                (name, value) for name, value in self.headers.items() if name.startswith("Impersonate")
            ),
        )
        self.server.api.asked.append(asked)
        return asked

    def _refusal(self, asked: Asked) -> tuple[int, Object] | None:
        api = self.server.api
        known = api.tokens is None or asked.authorization.removeprefix("Bearer ") in api.tokens
        if not known and not self._certificate():
            return status(401, "Unauthorized", "Unauthorized")
        if asked.plural in api.forbidden:
            verb = "watch" if asked.is_watch else "list"
            text = f'{asked.plural} is forbidden: User "metaleg-node" cannot {verb} resource "{asked.plural}"'
            return status(403, "Forbidden", text)
        return None

    def _certificate(self) -> bool:
        return isinstance(self.connection, ssl.SSLSocket) and bool(self.connection.getpeercert())

    def _watch(self, asked: Asked, table: Table, namespace: str) -> None:
        api = self.server.api
        version = asked.query.get("resourceVersion", "")
        if not version.isdigit():
            self.json(*status(400, "BadRequest", f"invalid resource version {version!r}"))
        elif int(version) > api.version:
            self.json(*status(504, "Timeout", f"Too large resource version: {version}, current: {api.version}"))
        elif int(version) < table.floor and api.gone_as_status:
            self.json(*status(410, "Expired", f"too old resource version: {version} ({table.floor})"))
        else:
            self.begin_stream()
            for kind, line in api.events(table, asked.query, namespace, self.alive):
                self.chunk(line)
                api.bookmarks[asked.plural] += kind == "BOOKMARK"
                if kind == "ERROR":
                    break
            self.chunk(b"")

    def alive(self) -> bool:
        return self.server.api._http is self.server

    # --- writing -----------------------------------------------------------------------------------------------------

    def json(self, code: int, body: Object, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body, separators=(",", ":")).encode()
        if len(content) > 128 * 1024 and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers = {**(headers or {}), "Content-Encoding": "gzip"}
            content = gzip.compress(content, 4)
        self.raw(code, content, "application/json", headers)

    def raw(self, code: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self._count(content)
        self.wfile.write(content)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def chunk(self, content: bytes) -> None:
        self._count(content)
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _count(self, content: bytes) -> None:
        self.server.api.sent[self.path.partition("?")[0].rpartition("/")[2]] += len(content)
