"""The REST routes of the stand-in server: see `tests.export.model_server`."""

from __future__ import annotations

import base64
import binascii
import http.server
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from tests.export.model_server_batching import Failure

if TYPE_CHECKING:
    from tests.export.model_server import ModelServer

_ROUTE = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>:predict|/metadata)?"
)
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def serve_rest(server: ModelServer, port: int) -> http.server.ThreadingHTTPServer:
    """Starts answering on a port of loopback; 0: a free one."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", b"")

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def log_message(self, *args: Any) -> None:
            """Keeps the tests' output clean."""

        def _answer(self, method: str, body: bytes) -> None:
            try:
                code, answer = 200, _route(server, method, self.path, body)
            except Failure as failure:
                code, answer = _HTTP.get(failure.code, 500), {"error": failure.message}
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    rest = _Server(("127.0.0.1", port), Handler)
    threading.Thread(target=rest.serve_forever, args=(0.05,), daemon=True).start()
    return rest


def _invalid(message: str) -> Failure:
    return Failure(grpc.StatusCode.INVALID_ARGUMENT, message)


def _route(server: ModelServer, method: str, path: str, body: bytes) -> dict[str, Any]:
    match = _ROUTE.fullmatch(path)
    if not match or (method == "POST") != (match["what"] == ":predict"):
        raise _invalid(f"Malformed request: {method} {path}")
    spec = model_pb2.ModelSpec(name=match["name"])
    if match["version"]:
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    if match["what"] == ":predict":
        return _predict(server, spec, body)
    if match["what"] == "/metadata":
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec)
        request.metadata_field.append("signature_def")
        answer = json_format.MessageToDict(
            server.metadata(request), preserving_proto_field_name=True
        )
        answer["metadata"]["signature_def"].pop("@type")
        return answer
    return {
        "model_version_status": [
            {
                "version": str(status.version),
                "state": get_model_status_pb2.ModelVersionStatus.State.Name(status.state),
                "status": {
                    "error_code": "UNKNOWN" if status.status.error_code else "OK",
                    "error_message": status.status.error_message,
                },
            }
            for status in server.status(spec).model_version_status
        ]
    }


def _predict(server: ModelServer, spec: model_pb2.ModelSpec, body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(asked, dict):
        raise _invalid("JSON Value: Is not object")
    spec.signature_name = asked.get("signature_name", "")
    _, version = server.find(spec)
    name = spec.signature_name or "serving_default"
    if name not in version.signatures:
        raise _invalid(f'Serving signature name: "{name}" not found in signature def')
    inputs = version.signatures[name].inputs
    if ("instances" in asked) == ("inputs" in asked):
        raise _invalid("Missing 'inputs' or 'instances' key, or both of them")
    by_row = "instances" in asked
    columns = _columns(asked["instances"], inputs) if by_row else asked["inputs"]
    if not isinstance(columns, dict) or set(columns) == {"b64"}:
        if len(inputs) > 1:
            raise _invalid("inputs is a plain value/list, but expecting an object")
        columns = {next(iter(inputs)): columns}
    request = predict_pb2.PredictRequest(model_spec=spec)
    for key, info in inputs.items():
        if key not in columns:
            raise _invalid(f"Missing named input: {key} in 'inputs' object.")
        request.inputs[key].CopyFrom(_to_tensor(columns[key], info))
    outputs = {
        key: _to_json(key, tf.make_ndarray(value))
        for key, value in server.predict(request).outputs.items()
    }
    single = next(iter(outputs.values())) if len(outputs) == 1 else None
    if not by_row:
        return {"outputs": outputs if single is None else single}
    if single is not None:
        return {"predictions": single}
    return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}


def _columns(rows: Any, inputs: Any) -> dict[str, list[Any]]:
    """Inputs by name, of the format with one object, or value, for each row."""
    if not isinstance(rows, list) or not rows:
        raise _invalid("Excepting 'instances' to be an list/array with values")
    if not isinstance(rows[0], dict) or set(rows[0]) == {"b64"}:
        if len(inputs) > 1:
            raise _invalid("instances is a plain list, but expecting list of objects")
        return {next(iter(inputs)): rows}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(inputs):
            raise _invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{json.dumps(row)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {key: [row[key] for row in rows] for key in inputs}


def _to_tensor(value: Any, info: meta_graph_pb2.TensorInfo) -> tf.compat.v1.TensorProto:
    dtype = tf.as_dtype(info.dtype)
    try:
        if dtype == tf.string:
            return tf.make_tensor_proto(_decoded(value), dtype)
        array = np.array(value)
        if dtype.is_integer and array.dtype.kind not in "iu":
            raise TypeError
        return tf.make_tensor_proto(array.astype(dtype.as_numpy_dtype), dtype)
    except (TypeError, ValueError, KeyError, binascii.Error) as error:
        raise _invalid(
            f"JSON Value: {json.dumps(value)[:100]} is not of expected type: {dtype.name}"
        ) from error


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(element) for element in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, str):
        return value.encode()
    raise TypeError


def _to_json(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(content).decode()} for content in value]
    return [content.decode() for content in value]
