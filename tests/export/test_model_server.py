"""The stand-in server itself: what the tests of the client rely on."""

import base64
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.export.exported import SIGNATURES, requests, small_signatures, small_version
from tests.export.model_server import ModelServer
from tests.export.model_server_batching import Batcher, BatchingParameters, Failure, Merged

PATIENCE = 20.0  # seconds


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("served")
    os.symlink(small_version(), base / "3")
    (base / ".unfinished-4").mkdir()
    with ModelServer(base, labels={"stable": 3, "canary": 9}) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="module")
def predict(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(signature, inputs, outputs=(), **spec):
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = spec.pop("name", "nvae")
        request.model_spec.signature_name = signature
        if "version" in spec:
            request.model_spec.version.value = spec["version"]
        if "label" in spec:
            request.model_spec.version_label = spec["label"]
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return stub.Predict(request)

    return ask


def rest(server, path, body=None):
    content = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://{server.rest_address}/v1/{path}", content) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def arrays(response):
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def numpy_requests(rows, name):
    return {key: value.numpy() for key, value in requests(rows)[name].items()}


def test_warm_up_comes_before_the_first_request(server):
    assert server.warmed_up[:16] == [(3, name) for name in SIGNATURES for _ in range(2)]
    assert len(server.warmed_up) == 16


@pytest.mark.parametrize("name", SIGNATURES)
def test_predict_over_grpc(predict, name):
    inputs = numpy_requests(3, name)
    response = predict(name, inputs, label="stable")
    assert response.model_spec.version.value == 3
    expected = small_signatures()[name](**requests(3)[name])
    answer = arrays(response)
    assert set(answer) == set(expected)
    for key in set(expected) - {"image_bytes", "error"}:
        limits = {"atol": 1} if key == "image" else {"rtol": 1e-4, "atol": 1e-3}
        value = expected[key].numpy()
        assert answer[key].dtype == value.dtype
        np.testing.assert_allclose(
            answer[key].astype(np.float64), value.astype(np.float64), **limits
        )


def test_only_the_outputs_asked_for(predict):
    response = predict("encode", numpy_requests(2, "encode"), ["kl"])
    assert set(response.outputs) == {"kl"}


@pytest.mark.parametrize(
    "signature, change, spec, code, message",
    [
        ("sample", {}, {"name": "vae"}, "NOT_FOUND", "Servable not found for request: Latest(vae)"),
        ("sample", {}, {"version": 4}, "NOT_FOUND", "Specific(nvae, 4)"),
        ("sample", {}, {"label": "canary"}, "NOT_FOUND", "Specific(nvae, 9)"),
        ("sample", {}, {"label": "none"}, "INVALID_ARGUMENT", "Unrecognized servable version labe"),
        ("paint", {}, {}, "FAILED_PRECONDITION", 'Serving signature key "paint" not found.'),
        ("sample", {"image_bytes": [b""]}, {}, "INVALID_ARGUMENT", "Sent extra: {image_bytes}"),
        ("vary", {}, {}, "INVALID_ARGUMENT", "Missing but required: {image_bytes,keep_groups}"),
        ("sample", {"seed": np.float32([1])}, {}, "INVALID_ARGUMENT", "DT_INT64"),
    ],
)
def test_statuses_of_the_real_server(predict, signature, change, spec, code, message):
    inputs = {"seed": np.int64([1]), "temperature": np.float32([1])} | change
    with pytest.raises(grpc.RpcError) as caught:
        predict(signature, inputs, **spec)
    assert caught.value.code().name == code
    assert message in caught.value.details()


@pytest.mark.parametrize("name", ["reconstruct", "vary", "encode", "log_likelihood", "novelty"])
def test_a_bad_picture_answers_for_itself(predict, name):
    inputs = numpy_requests(3, name)
    expected = arrays(predict(name, inputs))
    inputs["image_bytes"][1] = b"no picture"
    answer = arrays(predict(name, inputs))
    assert [bool(error) for error in answer.pop("error")] == [False, True, False]
    for key in set(answer) - {"image_bytes"}:
        limits = {"atol": 1} if key == "image" else {"rtol": 1e-4, "atol": 1e-3}
        others = [values[key][[0, 2]].astype(np.float64) for values in (answer, expected)]
        np.testing.assert_allclose(*others, **limits)
        blank = answer[key][1]
        assert not blank.any() if key == "image" else np.isnan(blank).all()


def test_status_and_metadata(server, channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "nvae"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    (status,) = stub.GetModelStatus(request).model_version_status
    assert (status.version, status.state) == (3, status.AVAILABLE)
    request.model_spec.version.value = 8
    with pytest.raises(grpc.RpcError, match="Could not find version 8 of model nvae"):
        stub.GetModelStatus(request)

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "nvae"
    answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    assert set(SIGNATURES) <= set(signatures.signature_def)

    state = {"version": "3", "state": "AVAILABLE"}
    state["status"] = {"error_code": "OK", "error_message": ""}
    assert rest(server, "models/nvae") == (200, {"model_version_status": [state]})
    assert rest(server, "models/vae")[0] == 404
    code, answer = rest(server, "models/nvae/versions/3/metadata")
    assert code == 200 and answer["model_spec"]["version"] == "3"
    assert set(SIGNATURES) <= set(answer["metadata"]["signature_def"]["signature_def"])


def test_rest_by_row_and_by_column(server, predict):
    inputs = numpy_requests(2, "vary")
    expected = arrays(predict("vary", inputs))
    coded = [{"b64": base64.b64encode(content).decode()} for content in inputs["image_bytes"]]
    columns = {key: value.tolist() for key, value in inputs.items() if key != "image_bytes"}
    columns["image_bytes"] = coded
    body = {"signature_name": "vary", "inputs": columns}
    code, answer = rest(server, "models/nvae/labels/stable:predict", body)
    assert code == 200
    outputs = answer["outputs"]
    np.testing.assert_array_equal(outputs["image"], expected["image"])
    assert [base64.b64decode(png["b64"]) for png in outputs["image_bytes"]] == list(
        expected["image_bytes"]
    )

    rows = [{key: value[row] for key, value in columns.items()} for row in range(2)]
    body = {"signature_name": "vary", "instances": rows}
    assert rest(server, "models/nvae/versions/3:predict", body) == (
        200,
        {"predictions": [{key: outputs[key][row] for key in outputs} for row in range(2)]},
    )
    body = {"signature_name": "reconstruct", "instances": coded}  # values, of a single input
    assert len(rest(server, "models/nvae:predict", body)[1]["predictions"]) == 2


@pytest.mark.parametrize(
    "path, body, code, message",
    [
        ("models/vae:predict", {"inputs": {}}, 404, "Servable not found"),
        ("models/nvae/labels/none:predict", {"inputs": {}}, 400, "servable version label: none"),
        ("models/nvae:predict", {"signature_name": "paint", "inputs": {}}, 400, "not found in sig"),
        ("models/nvae:predict", {}, 400, "Missing 'inputs' or 'instances'"),
        ("models/nvae:predict", {"signature_name": "sample", "inputs": {}}, 400, "Missing named"),
        (
            "models/nvae:predict",
            {"signature_name": "sample", "instances": [{"seed": 0.5, "temperature": 1}]},
            400,
            "expected type: int64",
        ),
        ("models/nvae:classify", {}, 400, "Malformed request"),
    ],
)
def test_rest_errors(server, path, body, code, message):
    status, answer = rest(server, path, body)
    assert status == code and message in answer["error"]


def test_versions_come_and_go(tmp_path):
    """Without warm-up, which takes time."""
    shutil.copytree(small_version(), tmp_path / "1", ignore=lambda *_: ["assets.extra"])

    def status(number):
        return rest(server, f"models/nvae/versions/{number}")[1]["model_version_status"][0]

    def answers(number):
        body = {"signature_name": "sample", "inputs": {"seed": [1], "temperature": [1.0]}}
        return rest(server, f"models/nvae/versions/{number}:predict", body)[0]

    with ModelServer(tmp_path, poll_seconds=0.02) as server:
        assert answers(1) == 200
        (tmp_path / "2").mkdir()  # nothing that could be loaded: the one before it stays
        wait_until(lambda: rest(server, "models/nvae/versions/2")[0] == 200)
        wait_until(lambda: status(2)["state"] == "END")
        assert "SavedModel" in status(2)["status"]["error_message"]
        assert (answers(1), answers(2)) == (200, 404)
        shutil.copytree(tmp_path / "1", tmp_path / "aside")
        os.rename(tmp_path / "aside", tmp_path / "3")
        wait_until(lambda: answers(3) == 200)
        wait_until(lambda: answers(1) == 404)
        assert (status(1)["state"], status(3)["state"]) == ("END", "AVAILABLE")


class Computation:
    """Doubles its input, and remembers what it got; waits until it may."""

    def __init__(self):
        self.batches = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, inputs):
        self.may_run.wait(PATIENCE)
        self.batches.append(inputs[0].tolist())
        if -1 in inputs[0]:
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "negative")
        return [2 * inputs[0]]


def together(batcher, computation, tasks, key="double"):
    """Outputs, or failures, of tasks that arrive one after the other but do not wait."""
    results = [None] * len(tasks)

    def ask(index):
        try:
            (results[index],) = batcher.run(key, key, [np.array(tasks[index])], computation)
        except Failure as failure:
            results[index] = failure

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
        time.sleep(0.04)
    return threads, results


@pytest.fixture
def batcher():
    parameters = BatchingParameters(8, (1, 4, 8), 1.0, max_enqueued_batches=2, num_batch_threads=1)
    batcher = Batcher(parameters)
    yield batcher
    batcher.close()


def test_requests_are_merged_and_filled_up_with_the_first_row_of_the_last(batcher):
    double = Computation()
    threads, results = together(batcher, double, [[1, 2], [3], [4, 5, 6]])
    for thread in threads:
        thread.join()
    assert double.batches == [[1, 2, 3, 4, 5, 6, 4, 4]]
    assert [result.tolist() for result in results] == [[2, 4], [6], [8, 10, 12]]
    assert batcher.merged == [Merged("double", 3, 6, 2)]


def test_a_full_batch_does_not_wait_and_others_are_not_merged_with_it(batcher):
    double, other = Computation(), Computation()
    start = time.monotonic()
    together(batcher, other, [[9]], key="other")
    threads, _ = together(batcher, double, [[1] * 5, [2] * 3])
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 0.8 and double.batches == [[1] * 5 + [2] * 3]
    assert other.batches == []
    wait_until(lambda: other.batches == [[9]])


def test_a_failing_row_fails_its_batch(batcher):
    threads, results = together(batcher, Computation(), [[1], [-1]])
    for thread in threads:
        thread.join()
    assert [str(result) for result in results] == ["negative", "negative"]


def test_too_many_rows_and_a_full_queue(batcher):
    double = Computation()
    with pytest.raises(Failure, match="Task size 9 is larger than maximum input batch size 8"):
        batcher.run("double", "double", [np.arange(9)], double)
    with pytest.raises(Failure, match="equal 0th-dimension"):
        batcher.run("double", "double", [np.arange(2), np.arange(3)], double)
    double.may_run.clear()
    threads, results = together(batcher, double, 4 * [[1] * 8])  # one runs, two wait
    threads[3].join()
    assert results[3].code == grpc.StatusCode.UNAVAILABLE
    double.may_run.set()
    for thread in threads:
        thread.join()
    assert [len(result) for result in results[:3]] == [8, 8, 8]
