"""What API servers, and what stands before them, do wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tests.api.server import Asked, Fault, Handler, reset, status

HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def answers(code: int, reason: str, message: str = "told so", headers: Mapping[str, str] | None = None) -> Fault:
    """A Status object with this HTTP status."""

    def fault(handler: Handler, _asked: Asked) -> bool:
        handler.json(*status(code, reason, message), headers)
        return True

    return fault


def sends(code: int, content: bytes, kind: str) -> Fault:
    """Any body."""

    def fault(handler: Handler, _asked: Asked) -> bool:
        handler.raw(code, content, kind)
        return True

    return fault


def html(code: int = 200) -> Fault:
    """A proxy's page."""
    return sends(code, HTML, "text/html")


def cuts_connection(handler: Handler, _asked: Asked) -> bool:
    """Resets before it answers."""
    reset(handler.connection)
    handler.close_connection = True
    return True


def says_nothing(handler: Handler, _asked: Asked) -> bool:
    """Accepts and is silent until it is shut down."""
    while handler.alive():
        time.sleep(0.05)
    handler.close_connection = True
    return True


def truncates(handler: Handler, _asked: Asked) -> bool:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'{"kind":"ServiceList","metadata":{"resourceVersion":"9"},"items":[')
    reset(handler.connection)
    handler.close_connection = True
    return True


def trickles(handler: Handler, _asked: Asked) -> bool:
    """A list that never ends, a byte after the other, and is never silent for long."""
    handler.begin_stream()
    handler.chunk(b'{"kind":"ServiceList","metadata":{"resourceVersion":"9"},"items":[')
    while handler.alive():
        try:
            handler.chunk(b" ")
        except OSError:
            break
        time.sleep(0.05)
    handler.close_connection = True
    return True


def streams(*chunks: bytes, close: bool = False, silent: float = 0.0) -> Fault:
    """A watch that consists of just these chunks; `close`: cut off in the middle."""

    def fault(handler: Handler, _asked: Asked) -> bool:
        handler.begin_stream()
        for one in chunks:
            handler.chunk(one)
        end = time.monotonic() + silent
        while time.monotonic() < end and handler.alive():
            time.sleep(0.02)
        if close:
            reset(handler.connection)
            handler.close_connection = True
        else:
            handler.chunk(b"")
        return True

    return fault


def a_list(plural: str) -> Callable[[Asked], bool]:
    """Chooses lists of one resource."""
    return lambda asked: asked.plural == plural and not asked.is_watch


def a_watch(plural: str) -> Callable[[Asked], bool]:
    """Chooses watches of one resource."""
    return lambda asked: asked.plural == plural and asked.is_watch
