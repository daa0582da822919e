"""The health pages, for probes and load balancers: /livez, also by its old name /healthz, and /readyz."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from metaleg_node.daemon.web import Page, Response, WebServer

Check = Callable[[], tuple[bool, str]]
"""Whether all is well, and one line that says so or says what is not."""


def server(listen: tuple[str, int], *, alive: Check, ready: Check) -> WebServer:
    """A server, not yet started: /livez and /healthz answer 200 while `alive` says so, /readyz while `ready` does, else
    503.

    The checks are called from the server's threads.
    """
    return WebServer(
        "health.listen", listen, {"/livez": _page(alive), "/healthz": _page(alive), "/readyz": _page(ready)}
    )


def _page(check: Check) -> Page:
    def page(_headers: object) -> Response:
        well, text = check()
        return Response(status=HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, body=f"{text}\n".encode())

    return page
