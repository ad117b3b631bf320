"""Requests to TensorFlow Serving's PredictionService over gRPC.

Its protocol buffers import TensorFlow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export.limits import MAX_REPLY
from export.transports.transport import (
    FIRST_WAIT,
    MAX_RETRIES,
    TEMPORARY,
    TOO_LARGE,
    Refusal,
    Target,
)

_RECONNECT = (100, 1000)  # milliseconds; gRPC's default, 1 s to 2 min, would outlast the retries
_LARGEST_RETRIED = 1 << 28  # bytes of a request; by gRPC's default, those above 256 KiB are final
_OBJECT = 8  # bytes of a reference to a string


class GrpcTransport:
    """A transport that calls the PredictionService, with gRPC's own retries and limits."""

    def __init__(self, target: Target, retries: int):
        self._target = target
        self._channel = grpc.insecure_channel(target.server, _options(retries))
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        request = predict_pb2.PredictRequest()
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
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            # Our own limit, and not a server's for requests.
            if code == "RESOURCE_EXHAUSTED" and f"vs. {MAX_REPLY})" in details:
                raise Refusal("OUT_OF_RANGE", TOO_LARGE) from error
            raise Refusal(code, details) from error
        return {name: _to_array(name, value) for name, value in response.outputs.items()}

    def close(self) -> None:
        """See `Transport`."""
        self._channel.close()


def _options(retries: int) -> list[tuple[str, Any]]:
    first, longest = _RECONNECT
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_REPLY),
        ("grpc.initial_reconnect_backoff_ms", first),
        ("grpc.min_reconnect_backoff_ms", first),
        ("grpc.max_reconnect_backoff_ms", longest),
        ("grpc.per_rpc_retry_buffer_size", _LARGEST_RETRIED),
    ]
    if not retries:
        return [*options, ("grpc.enable_retries", 0)]
    policy = {
        "maxAttempts": 1 + retries,
        "initialBackoff": f"{FIRST_WAIT}s",
        "maxBackoff": f"{FIRST_WAIT * 2**MAX_RETRIES}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": TEMPORARY,
    }
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    return [*options, ("grpc.service_config", json.dumps(config))]


def _to_array(name: str, value: tf.compat.v1.TensorProto) -> np.ndarray:
    """Converts a tensor, which may repeat its last value up to the size that it declares."""
    try:
        dtype = tf.as_dtype(value.dtype)
        sizes = [dimension.size for dimension in value.tensor_shape.dim]
        if min(sizes, default=0) < 0 or value.tensor_shape.unknown_rank:
            raise ValueError(f"its shape is {sizes}")
        if math.prod(sizes) * (dtype.size or _OBJECT) > MAX_REPLY:
            raise ValueError(f"it declares {'x'.join(map(str, sizes))} values")
        return tf.make_ndarray(value)
    except (ValueError, TypeError) as error:
        detail = f"its output {name!r} cannot be read: {error}"
        raise Refusal("INTERNAL", detail) from error
