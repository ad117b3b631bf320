"""Requests to TensorFlow Serving over REST. Nothing here imports TensorFlow."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np
import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection

from export.limits import MAX_REPLY
from export.transports.transport import FIRST_WAIT, Refusal, Target

# gRPC's names by HTTP status code, as TensorFlow Serving maps them.
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
_GREY_LEVELS = 256
# What an answer of the wrong shape raises while it is taken apart.
_WRONG_SHAPE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


class RestTransport:
    """A transport that posts to `/v1/models/NAME:predict`, in REST's columnar format.

    urllib3 retries. Each request has a connection of its own, whose socket holds the limits, so
    that nothing that a server sends slowly or without end outlasts them.
    """

    def __init__(self, target: Target, retries: int):
        address = urllib3.util.parse_url(f"http://{target.server}")
        self._host, self._port = address.host or "", address.port
        path = f"/v1/models/{urllib.parse.quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        if target.label is not None:
            path += f"/labels/{urllib.parse.quote(target.label, safe='')}"
        self._path = f"{path}:predict"
        self._retries = retries

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(value) for name, value in inputs.items()},
        }
        status, content = self._post(json.dumps(body).encode(), time.monotonic() + seconds)
        if status != _OK:
            raise Refusal(_CODES.get(status, "UNKNOWN"), _error_message(status, content))
        try:
            outputs = json.loads(content)["outputs"]
            if not isinstance(outputs, dict):
                raise TypeError("its outputs have no names")
            return {name: _from_json(name, value) for name, value in outputs.items()}
        except _WRONG_SHAPE as error:
            detail = f"its answer is not that of a model server: {type(error).__name__}"
            raise Refusal("INTERNAL", detail) from error

    def _post(self, body: bytes, end: float) -> tuple[int, bytes]:
        """Posts a body, and returns status and content if they come before `end` (monotonic)."""
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
        headers = {"Content-Type": "application/json"}
        pool = _Pool(self._host, self._port, end=end)
        try:
            response = pool.urlopen(
                "POST", self._path, body, headers, retries, redirect=False, preload_content=False
            )
            chunks = iter(lambda: response.read(_CHUNK, decode_content=False), b"")
            return response.status, b"".join(chunks)
        except (exceptions.HTTPError, OSError) as error:
            raise _network_refusal(error) from error
        finally:
            pool.close()

    def close(self) -> None:
        """Does nothing, because every request has a connection of its own."""


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
        self.timeout = _seconds_until(self._end)
        super().connect()
        self.sock = _LimitedSocket(self.sock, self._end, MAX_REPLY)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


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
            raise OSError(f"its answer has more than {MAX_REPLY:,} bytes")
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
    except _WRONG_SHAPE:
        return f"HTTP {status}"


def _network_refusal(error: Exception) -> Refusal:
    if isinstance(error, exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    refused = isinstance(
        error, exceptions.NewConnectionError
    )  # which is a TimeoutError by inheritance
    if isinstance(error, exceptions.TimeoutError | TimeoutError) and not refused:
        return Refusal("DEADLINE_EXCEEDED", "timed out")
    cause = error.__cause__ or error.__context__ or error
    return Refusal("UNAVAILABLE", str(getattr(cause, "strerror", None) or cause))


def _to_json(value: np.ndarray) -> list[Any]:
    if value.dtype == object:
        return [{"b64": base64.b64encode(content).decode()} for content in value]
    return value.tolist()


def _from_json(name: str, value: list[Any]) -> np.ndarray:
    """Converts an output: bytes and text to objects, integers to uint8, other numbers to float32.

    Raises:
      ValueError, TypeError, KeyError: It is nothing of that.
    """
    if name.endswith("_bytes"):  # by this suffix the server tells bytes from text
        return np.array(
            [base64.b64decode(content["b64"], validate=True) for content in value], object
        )
    array = np.asarray(value)
    if array.dtype.kind == "U" and array.ndim == 1:
        return np.array([text.encode() for text in value], object)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind != "i" or not ((array >= 0) & (array < _GREY_LEVELS)).all():
        raise TypeError("not numbers that an output of ours has")
    return array.astype(np.uint8)
