"""Warm-up requests, which TensorFlow Serving sends to a model before it accepts other requests.

The first call of a signature optimises its graph, and takes much longer than later calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from export.manifest import EXTRA

BATCH_SIZES = (1, 16)  # few, because each request takes time; servers refuse more than 1,000
_FILE = "tf_serving_warmup_requests"
_SIDE = 64  # height and width of the picture in the requests, in pixels


def write_warmup_requests(
    directory: str | os.PathLike,
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
) -> str:
    """Writes requests to all signatures into a SavedModel's directory.

    Args:
      directory: Directory of the SavedModel.
      signatures: Functions of named tensors (B, …), by the signature's name.

    Returns:
      The path of the file.
    """
    path = os.path.join(directory, EXTRA, _FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for request in _requests(signatures):
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString(deterministic=True))
    return path


def _requests(
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
) -> Iterator[predict_pb2.PredictRequest]:
    for name, function in signatures.items():
        specs = function.structured_input_signature[0]
        for batch_size in BATCH_SIZES:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = name
            for spec in specs:
                row = _row(spec)
                rows = np.broadcast_to(row, [batch_size, *row.shape])
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(rows, spec.dtype))
            yield request


def _row(spec: tf.TensorSpec) -> np.ndarray:
    """Returns one row of an input: a gray picture, a tf.Example without features, or zeros."""
    if spec.name == "image_bytes":
        grey = np.full((_SIDE, _SIDE, 1), 128, np.uint8)
        return np.array(tf.io.encode_png(grey).numpy(), object)
    if spec.dtype == tf.string:  # a tf.Example without features
        return np.array(tf.train.Example().SerializeToString(), object)
    return np.zeros(spec.shape[1:], spec.dtype.as_numpy_dtype)
