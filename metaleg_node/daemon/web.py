"""The small HTTP server behind metrics and health.

It answers GET and HEAD of a few fixed paths from threads of its own, one request a connection. No client can harm the
service: connections are limited in number and each in its total time, silent and dripping clients included. Nor can
one silence it for others: when there are too many connections, the oldest of who has most gives way to the newest.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from metaleg_node.text import endpoint

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 16
_CONNECTION_SECONDS = 5.0
_TICK_SECONDS = 1.0
"""How often overdue connections are looked for."""

_ADVICE = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "no interface of this host has this address: choose one that exists",
    errno.EACCES: "ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose a higher one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a page answers."""

    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    body: bytes


Page = Callable[[Message], Response]
"""Makes the answer from the request's headers ; called in the server's threads."""


class ListenError(Exception):
    """The address cannot be listened on; the message names the configuration key."""


class WebServer:
    """Serves `pages`, keyed by path, on `listen` (address, port), which the configuration key `key` holds."""

    def __init__(self, key: str, listen: tuple[str, int], pages: Mapping[str, Page]) -> None:
        self._key = key
        self._listen = listen
        self._pages = pages
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port, while started; the kernel's choice when port 0 was asked for."""
        assert self._server
        port: int = self._server.server_address[1]
        return port

    def start(self) -> None:
        """Listens and answers from now on. Raises ListenError."""
        host, port = self._listen
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self._server = _Server(family, address, self._pages)
        except OSError as error:
            reason = _ADVICE.get(error.errno or 0) or error.strerror
            raise ListenError(f'{self._key} = "{endpoint(host, port)}": cannot listen: {reason}') from error
        threading.Thread(target=self._server.serve_forever, args=(_TICK_SECONDS,), name=self._key, daemon=True).start()

    def stop(self) -> None:
        """Frees the port and cuts open connections; without a start it does nothing."""
        if self._server:
            self._server.stop()
            self._server = None


class _Connection(NamedTuple):
    """Who it is from, and when it must have ended (time.monotonic)."""

    peer: str
    deadline: float


def _cut(request: socket.socket) -> None:
    """Ends a connection; its thread sees that."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server.HTTPServer: that one asks the DNS for its own name when it binds.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: int, address: object, pages: Mapping[str, Page]) -> None:
        self.address_family = family
        self.pages = pages
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _Connection] = {}
        super().__init__(address, _Handler)  # type: ignore[arg-type]

    def stop(self) -> None:
        # Ends the wait of serve_forever at once, which otherwise would last until its next tick.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()
        self._cut_before(math.inf)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Admits a connection, at the expense of another when there are too many; called for each before its thread
        starts."""
        assert isinstance(request, socket.socket)
        assert isinstance(client_address, tuple)
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                self._make_room()
            self._open[request] = _Connection(client_address[0], time.monotonic() + _CONNECTION_SECONDS)
            return True

    def _make_room(self) -> None:
        held = Counter(connection.peer for connection in self._open.values())
        crowd = max(held.values())
        # In the order of their coming.
        oldest = next(request for request, connection in self._open.items() if held[connection.peer] == crowd)
        log.debug("connection from %s cut for another: %d are open", self._open.pop(oldest).peer, _MAX_CONNECTIONS)
        _cut(oldest)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        # Before it is closed: `_cut` must not touch it afterwards, its number may be in use again.
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._cut_before(time.monotonic())

    def _cut_before(self, moment: float) -> None:
        with self._lock:
            for request, connection in self._open.items():
                if connection.deadline < moment:
                    _cut(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("connection from %s broken", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._page())

    def do_HEAD(self) -> None:
        self._answer(self._page())

    def _page(self) -> Response:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            return Response(status=HTTPStatus.NOT_FOUND, body=b"no such page\n")
        try:
            return page(self.headers)
        except Exception:
            log.exception("the page %s failed", self.path)
            return Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, body=b"internal error, see the log\n")

    def _answer(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def version_string(self) -> str:
        """The Server header; the base class would tell Python's version."""
        return "metaleg-node"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        log.debug("%s: %s", self.client_address[0], format % args)
