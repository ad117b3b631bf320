"""The warm-up requests of a SavedModel, replayed as a server does before it serves."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tests.export.exported import SIGNATURES, small_signatures, small_version


def records():
    path = os.path.join(small_version(), "assets.extra", "tf_serving_warmup_requests")
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(path)
    ]


def test_every_signature_is_warmed_up_with_one_row_and_with_many():
    assert all(record.WhichOneof("log_type") == "predict_log" for record in records())
    requests = [record.predict_log.request for record in records()]
    found = {
        (request.model_spec.signature_name, tensor.tensor_shape.dim[0].size)
        for request in requests
        for tensor in request.inputs.values()
    }
    assert found == {(name, rows) for name in SIGNATURES for rows in (1, 16)}


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("name", SIGNATURES)
def test_replay(name, rows):
    (request,) = (
        record.predict_log.request
        for record in records()
        if record.predict_log.request.model_spec.signature_name == name
        and len(tf.make_ndarray(next(iter(record.predict_log.request.inputs.values())))) == rows
    )
    signature = small_signatures()[name]
    assert set(request.inputs) == set(signature.structured_input_signature[1])
    inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
    for output in signature(**inputs).values():
        assert len(output) == rows
        if output.dtype.is_floating:
            assert np.all(np.isfinite(output))
