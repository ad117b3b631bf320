"""HTTP requests that end by a deadline, and whose answers have at most `MAX_REPLY` bytes."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection

from export.limits import MAX_REPLY
from export.transports.transport import FIRST_WAIT, TOO_LARGE, Refusal

# gRPC's names by HTTP status code, as TensorFlow Serving and Triton map them.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TEMPORARY = (429, 503)
_OK = 200
_CHUNK = 1 << 16  # bytes
# What an answer of the wrong shape raises while it is taken apart.
WRONG_SHAPE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


class Answer(NamedTuple):
    """An answer of status 200."""

    headers: Mapping[str, str]  # their names in any case
    content: bytes


class HttpServer:
    """A server that is asked over HTTP. urllib3 retries.

    Each request has a connection of its own, whose socket holds the limits, so that nothing that
    a server sends slowly or without end outlasts them.

    Args:
      address: HOST:PORT.
      retries: Number of times a request is repeated if the server is down or busy.
    """

    def __init__(self, address: str, retries: int):
        url = urllib3.util.parse_url(f"http://{address}")
        self._host, self._port = url.host or "", url.port
        self._retries = retries

    def request(
        self, method: str, path: str, end: float, body: bytes = b"", **headers: str
    ) -> Answer:
        """Sends a request.

        Args:
          method: `"GET"` or `"POST"`.
          path: The path, quoted.
          end: When the whole answer must be here, by `time.monotonic`.
          body: The content.
          **headers: Headers, with `_` for `-` in their names.

        Raises:
          Refusal: The answer has another status than 200, is too large, or does not come in time.
        """
        retries = _Retries(
            end,
            self._retries,
            read=False,
            redirect=False,
            other=False,
            allowed_methods=None,  # all; a request changes nothing
            status_forcelist=_TEMPORARY,
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        pool = _Pool(self._host, self._port, end=end)
        try:
            response = pool.urlopen(
                method, path, body, sent, retries, redirect=False, preload_content=False
            )
            chunks = iter(lambda: response.read(_CHUNK, decode_content=False), b"")
            answer = Answer(response.headers, b"".join(chunks))
        except (exceptions.HTTPError, OSError) as error:
            raise _network_refusal(error) from error
        finally:
            pool.close()
        if response.status != _OK:
            code = _CODES.get(response.status, "UNKNOWN")
            raise Refusal(code, _error_message(response.status, answer.content))
        return answer


class _Retries(urllib3.Retry):
    """urllib3's retries, with waits that double from the first one, and none after `end`."""

    def __init__(self, end: float, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._end = end

    def new(self, **changes: Any) -> _Retries:
        return super().new(end=self._end, **changes)

    def get_backoff_time(self) -> float:
        return FIRST_WAIT * 2 ** (len(self.history) - 1)

    def increment(
        self, method: Any = None, url: Any = None, response: Any = None, *args: Any, **options: Any
    ) -> _Retries:
        wait = FIRST_WAIT * 2 ** len(self.history)
        allowed = self if time.monotonic() + wait < self._end else self.new(total=0)
        following = super(_Retries, allowed).increment(method, url, response, *args, **options)
        if response is not None:
            response.close()  # unread, for nobody needs what it says
        return following

    def _sleep_backoff(self) -> None:
        time.sleep(self.get_backoff_time() * random.uniform(0.8, 1))


class _Connection(HTTPConnection):
    """A connection until `end` (monotonic), over a socket with limits."""

    def __init__(self, *args: Any, end: float, **options: Any):
        super().__init__(*args, **options)
        self._end = end

    def connect(self) -> None:
        super().connect()
        self.sock = _LimitedSocket(self.sock, self._end, MAX_REPLY)

    def _new_conn(self) -> socket.socket:
        """Connects to the first of the host's addresses that answers before the end.

        urllib3 would give each of them the whole time.
        """
        try:
            found = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise exceptions.NameResolutionError(self.host, self, error) from error
        failure: OSError | None = None
        for family, kind, protocol, _, address in found:
            connecting = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    connecting.setsockopt(*option)
                connecting.settimeout(_seconds_until(self._end))
                connecting.connect(address)
                return connecting
            except OSError as error:
                connecting.close()
                failure = error
        if isinstance(failure, TimeoutError):
            raise exceptions.ConnectTimeoutError(self, "timed out") from failure
        raise exceptions.NewConnectionError(self, str(failure)) from failure


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TooLargeError(OSError):
    """An answer is larger than `MAX_REPLY`."""


class _LimitedSocket(socket.socket):
    """A connected socket that sends and receives until `end` (monotonic), and only so much.

    A timeout of sockets counts from each call, and a server that sends byte by byte never meets
    it. Here it is set to what is left.
    """

    def __init__(self, connected: socket.socket, end: float, most: int):
        self._end = end
        self._left = most
        kind = (connected.family, connected.type, connected.proto)
        super().__init__(*kind, fileno=connected.detach())

    def sendall(self, *args: Any) -> None:
        self.settimeout(_seconds_until(self._end))
        super().sendall(*args)

    def recv_into(self, *args: Any) -> int:
        if self._left < 0:
            raise _TooLargeError(TOO_LARGE)
        self.settimeout(_seconds_until(self._end))
        received = super().recv_into(*args)
        self._left -= received
        return received


def _seconds_until(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _error_message(status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except WRONG_SHAPE:
        return f"HTTP {status}"


def _network_refusal(error: Exception) -> Refusal:
    if isinstance(error, exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    refused = isinstance(
        error, exceptions.NewConnectionError
    )  # which is a TimeoutError by inheritance
    cause = error.__cause__ or error.__context__ or error
    late = exceptions.TimeoutError | TimeoutError
    if (isinstance(error, late) or isinstance(cause, TimeoutError)) and not refused:
        return Refusal("DEADLINE_EXCEEDED", "timed out")
    if isinstance(cause, _TooLargeError):
        return Refusal("OUT_OF_RANGE", TOO_LARGE)
    return Refusal("UNAVAILABLE", str(getattr(cause, "strerror", None) or cause))
