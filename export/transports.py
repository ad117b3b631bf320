"""Transports that carry requests to TensorFlow Serving, over gRPC or over REST.

REST does not import TensorFlow. With gRPC, the protocol buffers of TensorFlow Serving import it.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

_UNLIMITED = -1
_RECONNECT = (100, 1000)  # milliseconds; gRPC's default, 1 s to 2 min, would outlast our retries
_CHUNK = 1 << 16  # bytes

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
_TEMPORARY = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class Target(NamedTuple):
    """A model on a server, optionally in the version of a number or of a label."""

    server: str  # HOST:PORT
    model: str
    version: int | None = None  # None for the newest that is loaded
    label: str | None = None

    def __str__(self) -> str:
        text = f"model {self.model!r}"
        if self.version is not None:
            text += f" in version {self.version}"
        if self.label is not None:
            text += f" with label {self.label!r}"
        return text


class Refusal(Exception):
    """A request that was sent once and got no answer.

    Args:
      code: gRPC's name of the reason, such as `"NOT_FOUND"`, also over REST.
      detail: The message of the server or the network.
      temporary: Whether the same request may succeed a little later.
    """

    def __init__(self, code: str, detail: str, temporary: bool):
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.temporary = temporary


class Transport(Protocol):
    """A way to send one request to a signature of a model, without retries."""

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """Sends inputs and returns outputs, arrays (B, …) by name.

        Raises:
          Refusal: if the server refuses, or does not answer within that many seconds.
        """

    def close(self) -> None:
        """Closes the connection."""


class GrpcTransport:
    """A transport that calls the PredictionService over gRPC."""

    def __init__(self, target: Target):
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self._target = target
        self._error: type[Exception] = grpc.RpcError
        self._request = predict_pb2.PredictRequest
        first, longest = _RECONNECT
        self._channel = grpc.insecure_channel(
            target.server,
            [
                ("grpc.max_receive_message_length", _UNLIMITED),
                ("grpc.initial_reconnect_backoff_ms", first),
                ("grpc.min_reconnect_backoff_ms", first),
                ("grpc.max_reconnect_backoff_ms", longest),
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        import tensorflow as tf  # the protocol buffers have imported it already

        request = self._request()
        spec = request.model_spec
        spec.name, spec.signature_name = self._target.model, signature
        if self._target.version is not None:
            spec.version.value = self._target.version
        if self._target.label is not None:
            spec.version_label = self._target.label
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except self._error as error:
            code = error.code().name  # type: ignore[attr-defined]
            detail = error.details() or ""  # type: ignore[attr-defined]
            raise Refusal(code, detail, code in _TEMPORARY) from error
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def close(self) -> None:
        """See `Transport`."""
        self._channel.close()


class RestTransport:
    """A transport that posts to `/v1/models/NAME:predict`, in REST's columnar format."""

    def __init__(self, target: Target):
        path = f"/v1/models/{urllib.parse.quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        if target.label is not None:
            path += f"/labels/{urllib.parse.quote(target.label, safe='')}"
        self._url = f"http://{target.server}{path}:predict"

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(value) for name, value in inputs.items()},
        }
        content = self._post(json.dumps(body).encode(), time.monotonic() + seconds)
        try:
            outputs = json.loads(content)["outputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal("INTERNAL", "its answer is not that of a model server", False) from error
        if not isinstance(outputs, dict):
            outputs = {"image": outputs}  # the server omits a single output's name; ours is image
        return {name: _from_json(name, value) for name, value in outputs.items()}

    def _post(self, body: bytes, end: float) -> bytes:
        """Posts a body, and returns the answer if it arrives before `time.monotonic()` is `end`."""
        request = urllib.request.Request(
            self._url, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            seconds = max(end - time.monotonic(), 1e-3)
            with urllib.request.urlopen(request, timeout=seconds) as response:
                chunks = []
                while chunk := response.read1(_CHUNK):
                    chunks.append(chunk)
                    if time.monotonic() > end:  # urllib's timeout applies to each piece
                        raise TimeoutError
                return b"".join(chunks)
        except urllib.error.HTTPError as error:
            with error:
                code = _CODES.get(error.code, "UNKNOWN")
                raise Refusal(code, _error_message(error), code in _TEMPORARY) from error
        except (OSError, http.client.HTTPException) as error:
            raise _network_refusal(error) from error

    def close(self) -> None:
        """Does nothing, because every request has a connection of its own."""


def _error_message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return f"HTTP {error.code} {error.reason}"


def _network_refusal(error: Exception) -> Refusal:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return Refusal("DEADLINE_EXCEEDED", "timed out", False)
    if isinstance(cause, ConnectionRefusedError):
        return Refusal("UNAVAILABLE", "connection refused", True)
    if isinstance(cause, socket.gaierror):
        return Refusal("UNAVAILABLE", f"no such host ({cause.strerror})", False)
    return Refusal("UNAVAILABLE", f"no answer in HTTP ({cause})", False)


def _to_json(value: np.ndarray) -> list[Any]:
    if value.dtype == object:
        return [{"b64": base64.b64encode(content).decode()} for content in value]
    return value.tolist()


def _from_json(name: str, value: list[Any]) -> np.ndarray:
    if name.endswith("_bytes"):  # by this suffix the server tells bytes from text
        return np.array([base64.b64decode(content["b64"]) for content in value], object)
    array = np.asarray(value)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.uint8)
