"""The one door to the API server: requests, open watches, and what may be wrong with either, in words.

Works on raw JSON below the package's generated methods, whose signatures changed between releases and whose model
classes cost ten times as much (`ApiClient.rest_client.pool_manager` is the same in all of them).
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import urllib3
from urllib3._collections import HTTPHeaderDict  # urllib3 1.26 shows it nowhere else.

from metaleg_node.sources import credentials
from metaleg_node.sources.credentials import Access, CredentialsError
from metaleg_node.sources.exec_plugin import Plugins
from metaleg_node.text import printable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 5.0
_MAX_LINE: Final = 16 * 1024 * 1024
"""An event is one object, and etcd takes none above 1.5 MiB (etcd's --max-request-bytes)."""
_SHOWN: Final = 300
_CHUNK: Final = 65536

Object = dict[str, Any]


class Failure(enum.Enum):
    """What went wrong, as far as it decides what to do next."""

    UNREACHABLE = enum.auto()
    EXPIRED = enum.auto()
    NOT_SERVED = enum.auto()
    UNAUTHORIZED = enum.auto()
    FORBIDDEN = enum.auto()
    BUSY = enum.auto()
    REFUSED = enum.auto()
    GARBAGE = enum.auto()
    CREDENTIALS = enum.auto()


_FAILURES: Final[Mapping[int, Failure]] = {
    401: Failure.UNAUTHORIZED,
    403: Failure.FORBIDDEN,
    404: Failure.NOT_SERVED,
    410: Failure.EXPIRED,
    429: Failure.BUSY,
}

_UNKNOWN_FIELD: Final = "field label not supported"
"""What a server says that cannot select by a field (apimachinery, conversion of field labels)."""


class ApiError(Exception):
    """A request failed; the text is for people. `retry_after` is what the server asks for, in seconds."""

    def __init__(self, failure: Failure, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.failure = failure
        self.retry_after = retry_after


class ApiClient:
    """Requests with the credentials of a kubeconfig, which is read again when it changes or is refused.

    May be used by several threads. Opens nothing before the first request.
    """

    def __init__(self, kubeconfig: str, context: str = "", plugins: Plugins | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._plugins = plugins or Plugins()
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._refused = False
        self._reading: Future[Access] | None = None
        self._told = ""
        self._streams: set[Stream] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def get(self, path: str, params: Mapping[str, str], timeout: float, total: float = 60.0) -> Object:
        """The JSON object that a GET gives; `timeout` is the longest silence, `total` the longest time that the answer
        may take, both in seconds. Raises ApiError."""
        end = time.monotonic() + total
        access, response = self._request("GET", path, params, timeout, headers={"Accept-Encoding": "gzip"})
        expired = threading.Event()
        late = threading.Timer(max(0.0, end - time.monotonic()), _give_up, [expired, response])
        late.daemon = True
        late.start()
        try:
            return self._json(path, access, response)
        except ApiError as error:
            if expired.is_set():
                text = f"Kubernetes API {access.host}: {path}: the answer was not complete in time"
                raise ApiError(Failure.UNREACHABLE, text) from error
            raise
        finally:
            late.cancel()

    def create(self, path: str, body: Object, timeout: float) -> Object:
        """What a POST of an object gives; for questions, of which nothing is stored. Raises ApiError."""
        headers = {"Content-Type": "application/json"}
        return self._json(
            path, *self._request("POST", path, {}, timeout, headers=headers, body=json.dumps(body).encode())
        )

    def now(self, timeout: float) -> datetime:
        """The server's clock, to the second. Raises ApiError."""
        access, response = self._request("GET", "/version", {}, timeout)
        told = response.headers.get("Date", "")
        response.close()
        try:
            return parsedate_to_datetime(told)
        except ValueError as error:
            raise _garbage(access, "/version", "without a date") from error

    def apply(self, path: str, body: Object, timeout: float) -> Object:
        """Creates or changes an object by server-side apply. Raises ApiError.

        https://kubernetes.io/docs/reference/using-api/server-side-apply/
        """
        params = {"fieldManager": "metaleg-node", "force": "true"}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        content = json.dumps(body).encode()
        return self._json(path, *self._request("PATCH", path, params, timeout, headers=headers, body=content))

    def watch(self, path: str, params: Mapping[str, str], timeout: float, silence: float) -> Stream:
        """Opens a watch. The server must answer within `timeout` seconds, then not be silent for longer than `silence`.

        Raises ApiError.
        """
        stream = Stream(self, path, *self._request("GET", path, {**params, "watch": "1"}, timeout))
        stream.allow_silence(silence)
        with self._lock:
            self._streams.add(stream)
            closed = self._closed
        if closed:
            stream.interrupt()
        return stream

    def access(self) -> Access:
        """The credentials in use, read anew when they were replaced, expired or refused. Raises ApiError.

        Threads that need them meanwhile wait for the same reading: it may run a plugin, so no lock is held.
        """
        with self._lock:
            if self._closed:
                raise ApiError(Failure.UNREACHABLE, "the service is stopping")
            if self._access and self._access.is_current() and not self._refused:
                return self._access
            reading = self._reading
            mine = reading is None
            if reading is None:
                reading = self._reading = Future()
        if mine:
            self._read(reading)
        try:
            return reading.result()
        except CredentialsError as error:
            raise ApiError(Failure.CREDENTIALS, f"Kubernetes API: {error}") from error

    def forget(self, stream: Stream) -> None:
        """A watch has ended."""
        with self._lock:
            self._streams.discard(stream)

    def close(self) -> None:
        """Ends all open watches, also while threads wait in them, and refuses new requests."""
        with self._lock:
            self._closed = True
            streams, access = list(self._streams), self._access
        self._plugins.stop()
        for stream in streams:
            stream.interrupt()
        if access:
            access.pool.clear()

    def _read(self, reading: Future[Access]) -> None:
        """New credentials that cannot be used leave the old ones in force, unless these were refused."""
        try:
            found = credentials.load(self._kubeconfig, self._context, self._plugins)
        except CredentialsError as error:
            with self._lock:
                self._reading = None
                usable = None if self._refused else self._access
                known, self._told = self._told, str(error)
            if not usable:
                reading.set_exception(error)
                return
            if known != str(error):
                log.warning("%s; the credentials read before stay in use", error)
            reading.set_result(usable)
            return
        with self._lock:
            before, self._access = self._access, found
            self._reading, self._refused, self._told = None, False, ""
        if before:
            log.debug("credentials for %s read again", found.host)
            before.pool.clear()
        reading.set_result(found)

    def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        timeout: float,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        body: bytes | None = None,
    ) -> tuple[Access, Any]:
        access = self.access()
        sent = HTTPHeaderDict({"Accept": "application/json", **headers})
        for name, value in access.headers:
            sent.add(name, value)
        # A version may hold anything that JSON can, half a surrogate pair too.
        url = f"{access.host}{path}?{urllib.parse.urlencode(params, errors='replace')}"
        try:
            response = access.pool.request(
                method,
                url,
                body=body,
                headers=sent,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=timeout),
                preload_content=False,
                retries=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.broken(access, error) from error
        if not 200 <= response.status < 300:
            raise self._refusal(access, path, method, response)
        return access, response

    def _json(self, path: str, access: Access, response: Any) -> Object:
        try:
            found = json.loads(response.data)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.broken(access, error) from error
        except (ValueError, RecursionError) as error:
            raise _garbage(access, path, f"no JSON ({error})") from error
        finally:
            response.release_conn()
        if not isinstance(found, dict):
            raise _garbage(access, path, "no JSON object")
        return found

    def broken(self, access: Access, error: BaseException) -> ApiError:
        """A connection that cannot be made or that broke; TLS trouble may come from certificates that were replaced."""
        if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):
            self._distrust(access)
        return ApiError(Failure.UNREACHABLE, f"Kubernetes API {access.host}: {_plain(error)}")

    def _distrust(self, access: Access) -> None:
        """The credentials are read again before the next request, unless that was done already."""
        with self._lock:
            self._refused = self._refused or access is self._access

    def _refusal(self, access: Access, path: str, method: str, response: Any) -> ApiError:
        """What an answer other than success means."""
        try:
            body = response.read(_CHUNK, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError):
            body = b""
        finally:
            response.close()
        told = _status_message(body)
        failure = _FAILURES.get(response.status, Failure.REFUSED)
        if failure is Failure.NOT_SERVED and not _is_api_404(body, told):
            failure = Failure.REFUSED
        elif response.status == 400 and _UNKNOWN_FIELD in told:
            failure = Failure.NOT_SERVED
        if failure is Failure.UNAUTHORIZED:
            self._distrust(access)
        place = f"Kubernetes API {access.host}"
        text = f"{place}: {method} {path}: {response.status} {told or printable(body[:80].decode(errors='replace'))}"
        if failure is Failure.UNAUTHORIZED:
            text = f"{place}: the credentials of {self._kubeconfig or 'the pod'} are not accepted (401 {told})"
        elif failure is Failure.FORBIDDEN:
            text = f"{place}: the service account lacks a right; see etc/metaleg-node/kubernetes/rbac.yaml: {told}"
        return ApiError(failure, text.rstrip(), _retry_after(response))


class Stream:
    """An open watch: iterate over its events once, inside a `with` block.

    Ends when the server ends it. Raises ApiError, also for an ERROR event.
    """

    def __init__(self, api: ApiClient, path: str, access: Access, response: Any) -> None:
        self._api = api
        self._path = path
        self._access = access
        self._response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._api.forget(self)
        self._response.close()

    def __iter__(self) -> Iterator[Object]:
        try:
            for line in lines(self._response.stream(_CHUNK, decode_content=False)):
                yield event(line)
        except GarbageError as error:
            raise _garbage(self._access, self._path, str(error)) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # Also ValueError: urllib3 reads from a socket that `interrupt` has shut down.
            raise self._api.broken(self._access, error) from error

    def allow_silence(self, seconds: float) -> None:
        """Sets how long nothing may come."""
        if sock := _socket_of(self._response):
            sock.settimeout(seconds)

    def interrupt(self) -> None:
        """Ends the watch from another thread."""
        _shut_down(self._response)


def _give_up(expired: threading.Event, response: Any) -> None:
    expired.set()
    _shut_down(response)


def _shut_down(response: Any) -> None:
    """Ends an answer from another thread: closing it would block both of them, a shutdown does not."""
    with contextlib.suppress(OSError):
        if sock := _socket_of(response):
            sock.shutdown(socket.SHUT_RDWR)


def _socket_of(response: Any) -> socket.socket | None:
    """None when the answer has come to its end. The attribute has another name in urllib3 1."""
    connection = response.connection or getattr(response, "_connection", None)
    found: socket.socket | None = getattr(connection, "sock", None)
    return found


class GarbageError(ValueError):
    """What came is not what the Kubernetes API sends."""


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in a stream of chunks; what follows the last newline is no line. Raises GarbageError."""
    rest = b""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        yield from (line for line in complete if line.strip())
        if len(rest) > _MAX_LINE:
            raise GarbageError(f"a line of more than {_MAX_LINE >> 20} MiB")


def event(line: bytes) -> Object:
    """One event of a watch: `type` and `object`. Raises GarbageError, or ApiError for an ERROR event.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GarbageError(f"no JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("object"), dict):
        raise GarbageError("no watch event")
    if found.get("type") == "ERROR":
        status = found["object"]
        code = status.get("code")
        failure = _FAILURES.get(code, Failure.REFUSED) if isinstance(code, int) else Failure.REFUSED
        raise ApiError(failure, f"Kubernetes API ended a watch: {printable(str(status.get('message'))[:_SHOWN])}")
    return found


def _garbage(access: Access, path: str, what: str) -> ApiError:
    text = f"Kubernetes API {access.host}: {path}: the answer is {what}; is a proxy in between?"
    return ApiError(Failure.GARBAGE, text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is behind it, outermost first."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        here = todo.pop(0)
        if here in seen:
            continue
        seen.append(here)
        yield here
        behind = (getattr(here, "reason", None), here.__cause__, here.__context__, *here.args)
        todo += [one for one in behind if isinstance(one, BaseException)]


def _plain(error: BaseException) -> str:
    """A connection error in a few words: the innermost that says something."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError) or type(cause).__name__ == "CertificateError":
            return f"its certificate cannot be verified: {getattr(cause, 'verify_message', '') or cause}"
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    if any(isinstance(cause, urllib3.exceptions.TimeoutError) for cause in causes):
        return "no answer in time"
    if any(isinstance(cause, urllib3.exceptions.ProtocolError) for cause in causes):
        return "the connection was cut"
    return printable(str(causes[-1]))[:_SHOWN] or type(error).__name__


def _status_message(body: bytes) -> str:
    """The message of a Status object; empty if the body is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(found, dict) or found.get("kind") != "Status":
        return ""
    return printable(str(found.get("message") or found.get("reason") or "no message")[:_SHOWN])


def _is_api_404(body: bytes, told: str) -> bool:
    """Whether the API server itself said so; a proxy's page must not make resources vanish."""
    return bool(told) or body.strip() == b"404 page not found"


def _retry_after(response: Any) -> float:
    """In seconds; the form with a date is not used by the API server."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), 300.0) if value.isascii() and value.isdigit() else 0.0
