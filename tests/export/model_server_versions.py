"""Loaded versions of the stand-in server: see `tests.export.model_server`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from tests.export.model_server_batching import Failure

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Version:
    """One loaded SavedModel."""

    def __init__(self, directory: str, grappler: bool):
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = not grappler
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        loader = tf.compat.v1.saved_model.loader
        with self._session.graph.as_default():
            self.signatures = dict(loader.load(self._session, ["serve"], directory).signature_def)
        self._callables: dict[tuple[tuple[str, ...], ...], Callable] = {}
        self._lock = threading.Lock()

    def run(
        self, feeds: tuple[str, ...], fetches: tuple[str, ...], values: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Values of tensors, in C++: Python looks at no shape."""
        with self._lock:
            if (feeds, fetches) not in self._callables:
                self._callables[feeds, fetches] = self._session.make_callable(
                    list(fetches), feed_list=list(feeds)
                )
        try:
            return self._callables[feeds, fetches](*values)
        except tf.errors.OpError as error:
            raise Failure(_CODES[error.error_code], error.message) from error


def of_signature(
    version: Version, request: predict_pb2.PredictRequest
) -> tuple[tuple[str, ...], dict[str, str], list[np.ndarray]]:
    """Tensors to feed, tensors to fetch by output, and what to feed."""
    name = request.model_spec.signature_name or "serving_default"
    if name not in version.signatures:
        raise Failure(
            grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
        )
    signature: meta_graph_pb2.SignatureDef = version.signatures[name]
    sent, wanted = set(request.inputs), set(signature.inputs)
    if sent != wanted:
        raise Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({{{','.join(sorted(sent))}}}) != len({{{','.join(sorted(wanted))}}}). "
            f"Sent extra: {{{','.join(sorted(sent - wanted))}}}. "
            f"Missing but required: {{{','.join(sorted(wanted - sent))}}}.",
        )
    unknown = set(request.output_filter) - set(signature.outputs)
    if unknown:
        raise Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"output tensor alias not found in signature: {unknown.pop()} Outputs expected to be "
            f"in the set {{{','.join(sorted(signature.outputs))}}}.",
        )
    inputs = sorted(wanted)
    for key in inputs:
        if request.inputs[key].dtype != signature.inputs[key].dtype:
            raise Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Expects {key} to be {types_pb2.DataType.Name(signature.inputs[key].dtype)} but "
                f"{types_pb2.DataType.Name(request.inputs[key].dtype)} is provided",
            )
    outputs = list(request.output_filter) or sorted(signature.outputs)
    return (
        tuple(signature.inputs[key].name for key in inputs),
        {key: signature.outputs[key].name for key in outputs},
        [tf.make_ndarray(request.inputs[key]) for key in inputs],
    )


def as_proto_field(value: np.ndarray) -> tensor_pb2.TensorProto:
    """With every value in a field of its own type, which is the real server's default."""
    dtype = tf.as_dtype(value.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in value.shape:
        proto.tensor_shape.dim.add(size=size)
    field = {tf.float32: "float_val", tf.int64: "int64_val", tf.string: "string_val"}
    getattr(proto, field.get(dtype, "int_val")).extend(value.ravel().tolist())
    return proto
