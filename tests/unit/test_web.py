"""The HTTP server behind metrics and health, on the loopback address and ports of the kernel's choice."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus

import pytest

from metaleg_node.daemon import health, web
from metaleg_node.daemon.web import ListenError, Response, WebServer


class Cluster:
    """What the checks tell, for the tests to change."""

    alive = True
    ready = False


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[WebServer]:
    started = health.server(
        (request.param, 0),
        alive=lambda: (cluster.alive, "the loop runs" if cluster.alive else "stuck for 90 s"),
        ready=lambda: (cluster.ready, "applied" if cluster.ready else "nothing applied yet"),
    )
    started.host = request.param  # type: ignore[attr-defined]
    started.start()
    yield started
    started.stop()


def ask(server: WebServer, method: str, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(getattr(server, "host", "127.0.0.1"), server.port, timeout=3)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_healthz_follows_the_loop(server: WebServer, cluster: Cluster) -> None:
    for page in ("/livez", "/healthz"):
        assert ask(server, "GET", page)[:2] == (200, b"the loop runs\n")
    cluster.alive = False
    assert ask(server, "GET", "/healthz?verbose")[:2] == (503, b"stuck for 90 s\n")


def test_readyz_waits_for_the_first_apply(server: WebServer, cluster: Cluster) -> None:
    assert ask(server, "GET", "/readyz")[:2] == (503, b"nothing applied yet\n")
    cluster.ready = True
    assert ask(server, "GET", "/readyz")[:2] == (200, b"applied\n")


def test_head_answers_without_a_body(server: WebServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=3) as client:  # type: ignore[attr-defined]
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: 14\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("HEAD", "/metrics", 404), ("POST", "/healthz", 501)]
)
def test_nothing_else_is_served(server: WebServer, method: str, path: str, status: int) -> None:
    assert ask(server, method, path)[0] == status


def test_the_version_of_python_is_nobodys_business(server: WebServer) -> None:
    assert ask(server, "GET", "/healthz")[2]["Server"] == "metaleg-node"


@pytest.fixture
def plain() -> Iterator[WebServer]:
    def broken(_headers: object) -> Response:
        raise RuntimeError("secret detail")

    server = WebServer("health.listen", ("127.0.0.1", 0), {"/ok": lambda _: Response(body=b"ok"), "/broken": broken})
    server.start()
    yield server
    server.stop()


def test_a_broken_page_is_an_error_in_the_log_not_in_the_answer(
    plain: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    status, body, _ = ask(plain, "GET", "/broken")
    assert status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert b"secret" not in body
    assert "secret detail" in caplog.text


def closed_by_the_server(client: socket.socket, within: float) -> bool:
    client.settimeout(within)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_silent_and_dripping_clients_are_cut_off(plain: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_CONNECTION_SECONDS", 0.1)
    with (
        socket.create_connection(("127.0.0.1", plain.port)) as silent,
        socket.create_connection(("127.0.0.1", plain.port)) as dripping,
    ):
        deadline = time.monotonic() + 3
        while not closed_by_the_server(dripping, within=0.02) and time.monotonic() < deadline:
            with suppress(BrokenPipeError):
                dripping.sendall(b"G")
        assert time.monotonic() < deadline
        assert closed_by_the_server(silent, within=2)
    assert ask(plain, "GET", "/ok")[0] == 200


def test_connections_are_limited_and_the_oldest_gives_way(plain: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 2)
    clients = [socket.create_connection(("127.0.0.1", plain.port)) for _ in range(3)]
    assert [closed_by_the_server(c, within=0.2) for c in clients] == [True, False, False]
    for client in clients:
        client.close()


def test_who_holds_connections_silences_nobody(plain: WebServer) -> None:
    holders = [socket.create_connection(("127.0.0.1", plain.port)) for _ in range(4 * web._MAX_CONNECTIONS)]
    for _ in range(3):
        assert ask(plain, "GET", "/ok")[0] == 200
        holders.extend(socket.create_connection(("127.0.0.1", plain.port)) for _ in range(web._MAX_CONNECTIONS))
    for holder in holders:
        holder.close()


def test_who_has_many_connections_costs_others_none_of_theirs(
    plain: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 4)
    first = socket.create_connection(("127.0.0.1", plain.port), source_address=("127.0.0.2", 0))
    crowd = [socket.create_connection(("127.0.0.1", plain.port)) for _ in range(8)]
    assert [closed_by_the_server(c, within=0.2) for c in crowd] == [True] * 5 + [False] * 3
    first.sendall(b"GET /ok HTTP/1.0\r\n\r\n")
    with first, first.makefile("rb") as answer:
        assert answer.readline() == b"HTTP/1.0 200 OK\r\n"
    for client in crowd:
        client.close()


def test_stopping_is_prompt_frees_the_port_and_cuts_clients() -> None:
    server = WebServer("health.listen", ("127.0.0.1", 0), {})
    server.start()
    port = server.port
    with socket.create_connection(("127.0.0.1", port)) as silent:
        ask(server, "GET", "/")  # The silent one, which came before, has its thread now.
        started = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - started < 5
        assert closed_by_the_server(silent, within=1)
    again = WebServer("health.listen", ("127.0.0.1", port), {})
    again.start()
    again.stop()


def test_stopping_right_after_the_start_works() -> None:
    for _ in range(20):
        server = WebServer("health.listen", ("127.0.0.1", 0), {})
        server.start()
        server.stop()


def test_a_busy_port_names_the_key_and_what_to_do(plain: WebServer) -> None:
    second = WebServer("metrics.listen", ("127.0.0.1", plain.port), {})
    with pytest.raises(ListenError) as error:
        second.start()
    assert str(error.value) == (
        f'metrics.listen = "127.0.0.1:{plain.port}": cannot listen: another program listens there: '
        "stop it, or choose another port"
    )
    second.stop()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (("192.0.2.77", 0), "no interface of this host has this address"),
        (("2001:db8::77", 1), r'"\[2001:db8::77\]:1": cannot listen: no interface'),
    ],
)
def test_an_address_of_nobody_is_told(address: tuple[str, int], complaint: str) -> None:
    with pytest.raises(ListenError, match=complaint):
        WebServer("health.listen", address, {}).start()
