"""A server of KServe's protocol, version 2, over HTTP, with the portable signatures of a model.

It stands in for Triton where that cannot run (`tests/export/triton_server.py`), and declares the
shapes that Triton declares: what has one value for each row is (B, 1).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from export.portable_names import PORTABLE_NAMES
from export.signatures import Signature

_LENGTH = "Inference-Header-Content-Length"


@contextlib.contextmanager
def kserve_server(signatures: Mapping[str, Signature], binary: bool = True) -> Iterator[str]:
    """Serves the portable signatures as models `nvae_NAME`, and yields HOST:PORT.

    Args:
      signatures: The signatures by name.
      binary: Whether outputs are sent as binary data, if the request asks for that.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._with_signature(lambda signature: (_metadata(signature), b""))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers[_LENGTH])
            request, tensors = json.loads(content[:length]), content[length:]

            def infer(signature: Signature) -> tuple[Any, bytes]:
                outputs = signature(**_inputs(signature, request, tensors))
                return _answer(outputs, binary and request["parameters"]["binary_data_output"])

            self._with_signature(infer)

        def _with_signature(self, answer: Any) -> None:
            name = self.path.removesuffix("/infer").removeprefix("/v2/models/nvae_")
            if name not in PORTABLE_NAMES:
                self._send(404, {"error": f"unknown model: {self.path}"}, b"")
                return
            try:
                self._send(200, *answer(signatures[name]))
            except AssertionError as error:
                self._send(400, {"error": str(error)}, b"")

        def _send(self, status: int, document: Any, tensors: bytes) -> None:
            head = json.dumps(document).encode()
            self.send_response(status)
            if tensors:
                self.send_header(_LENGTH, str(len(head)))
            self.send_header("Content-Length", str(len(head + tensors)))
            self.end_headers()
            self.wfile.write(head + tensors)

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def _specs(signature: Signature) -> dict[str, list[int]]:
    """The shapes of the inputs by name, without the batch."""
    return {
        spec.name: spec.shape.as_list()[1:]
        for spec in signature.structured_input_signature[1].values()
    }


def _metadata(signature: Signature) -> dict[str, Any]:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, *(shape or [1])]}
        for name, shape in _specs(signature).items()
    ]
    return {"name": "nvae", "versions": ["1"], "platform": "test", "inputs": inputs, "outputs": []}


def _inputs(signature: Signature, request: Any, tensors: bytes) -> dict[str, np.ndarray]:
    specs = _specs(signature)
    inputs = {}
    for value in request["inputs"]:
        name, shape, size = value["name"], value["shape"], value["parameters"]["binary_data_size"]
        assert value["datatype"] == "FP32" and shape[1:] == (specs[name] or [1]), f"{name}: {shape}"
        part, tensors = tensors[:size], tensors[size:]
        inputs[name] = np.frombuffer(part, np.float32).reshape([shape[0], *specs[name]])
    assert set(inputs) == set(specs) and not tensors, "other inputs"
    return inputs


def _answer(outputs: Mapping[str, Any], binary: bool) -> tuple[dict[str, Any], bytes]:
    described, tensors = [], []
    for name, value in outputs.items():
        array = np.asarray(value)
        entry = {"name": name, "datatype": "FP32", "shape": [*array.shape, 1][: max(array.ndim, 2)]}
        if binary:
            tensors.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    return {"model_name": "nvae", "outputs": described}, b"".join(tensors)
