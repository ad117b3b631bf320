"""Requests over HTTP in KServe's protocol, version 2, that Triton and others speak.

Its servers have no signatures. Each portable signature is a model of its own, `NAME_SIGNATURE`,
such as `nvae_sample_tensors`; `export.triton_repository` lays them out for Triton. Tensors travel
as they are, by the protocol's extension for binary data. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import json
import math
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.limits import MAX_REPLY
from export.portable_names import PORTABLE_NAMES
from export.seed_noise import noise_inputs
from export.transports.http import WRONG_SHAPE, HttpServer
from export.transports.transport import Refusal, Target

_FLOAT = np.dtype("<f4")
_JSON_LENGTH = "Inference-Header-Content-Length"
_PER_ROW = ("elbo", "bits_per_dim")  # outputs (B,), which Triton declares as (B, 1)


class KserveTransport:
    """A transport that posts to `/v2/models/NAME_SIGNATURE/infer`.

    Of the serving signatures it answers `sample`, from `sample_tensors`: it draws the noise of the
    seeds here, in the shapes that the server says.

    Raises:
      ValueError: The target has a label, which the protocol does not know.
    """

    def __init__(self, target: Target, retries: int):
        if target.label is not None:
            raise ValueError(f"KServe's protocol has no labels: {target.label!r}; use a version.")
        self._target = target
        self._server = HttpServer(target.server, retries)

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        end = time.monotonic() + seconds
        if signature == "sample":
            return {"image": _pixels(self._sample(inputs, end).get("image"))}
        if signature not in PORTABLE_NAMES:
            raise Refusal(
                "UNIMPLEMENTED",
                f"over kserve there are only sample, {', '.join(PORTABLE_NAMES)}; the others read "
                "and write pictures, which takes TensorFlow Serving",
            )
        if signature == "sample_tensors":
            return self._sample(inputs, end)
        return self._infer(self._path(signature), inputs, end)

    def close(self) -> None:
        """Does nothing, because every request has a connection of its own."""

    def _sample(self, inputs: Mapping[str, np.ndarray], end: float) -> dict[str, np.ndarray]:
        if "temperature" not in inputs:
            raise Refusal("INVALID_ARGUMENT", "the input 'temperature' is missing")
        path = self._path("sample_tensors")
        shapes = self._input_shapes(path, end)
        noise = _noise(shapes, inputs["seed"]) if "seed" in inputs else inputs
        temperature = inputs["temperature"].reshape(-1, *shapes["temperature"])
        return self._infer(path, {**noise, "temperature": temperature}, end)

    def _path(self, signature: str) -> str:
        path = f"/v2/models/{urllib.parse.quote(f'{self._target.model}_{signature}', safe='')}"
        if self._target.version is not None:
            path += f"/versions/{self._target.version}"
        return path

    def _input_shapes(self, path: str, end: float) -> dict[str, list[int]]:
        """Returns the shapes of a model's inputs by name, without the batch, as its server says."""
        answer = self._server.request("GET", path, end)
        try:
            shapes = {
                value["name"]: [int(size) for size in value["shape"][1:]]
                for value in json.loads(answer.content)["inputs"]
            }
            if sum(math.prod(shape) for shape in shapes.values()) * _FLOAT.itemsize > MAX_REPLY:
                raise ValueError("inputs beyond all models")
            if shapes.get("temperature") not in ([], [1]):  # Triton knows no inputs (B,)
                raise ValueError("its inputs are not those of sample_tensors")
            return shapes
        except WRONG_SHAPE as error:
            raise _no_answer(error) from error

    def _infer(
        self, path: str, inputs: Mapping[str, np.ndarray], end: float
    ) -> dict[str, np.ndarray]:
        arrays = {name: np.ascontiguousarray(value, _FLOAT) for name, value in inputs.items()}
        description = {
            "inputs": [
                {
                    "name": name,
                    "shape": value.shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": value.nbytes},
                }
                for name, value in arrays.items()
            ],
            "parameters": {"binary_data_output": True},
        }
        head = json.dumps(description).encode()
        answer = self._server.request(
            "POST",
            f"{path}/infer",
            end,
            b"".join([head, *(value.tobytes() for value in arrays.values())]),
            content_type="application/octet-stream",
            **{_JSON_LENGTH.replace("-", "_"): str(len(head))},
        )
        try:
            return _read(answer.content, answer.headers.get(_JSON_LENGTH))
        except WRONG_SHAPE as error:
            raise _no_answer(error) from error


def _no_answer(error: Exception) -> Refusal:
    return Refusal(
        "INTERNAL", f"its answer is not that of a KServe server: {type(error).__name__}: {error}"
    )


def _noise(shapes: dict[str, list[int]], seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs `noise_00`, … (B, H_l, W_l, C_z) of seeds (B,).

    Raises:
      Refusal: The server's model is none of this package.
    """
    count = sum(name.startswith("noise_") for name in shapes)
    # By number, for as text noise_100 comes before noise_11.
    groups = [shapes.get(f"noise_{group:02}", []) for group in range(count)]
    if not groups or any(len(shape) != 3 or min(shape) < 1 for shape in groups):
        raise Refusal(
            "INTERNAL",
            "its model's inputs are not those of sample_tensors, noise_00, noise_01, … with three "
            f"sizes each: {shapes}",
        )
    return noise_inputs(seeds, groups)


def _read(content: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """Returns the outputs of an answer, in JSON alone or followed by binary tensors.

    Raises:
      ValueError, TypeError, KeyError: It is no such answer.
    """
    length = len(content) if json_length is None else int(json_length)
    if not 0 <= length <= len(content):
        raise ValueError("a length that its content has not")
    outputs = {}
    first = length
    for value in json.loads(content[:length])["outputs"]:
        parameters = dict(value["parameters"]) if "parameters" in value else {}
        size = parameters.get("binary_data_size")
        if value["datatype"] != "FP32":
            raise TypeError(f"{value['datatype']}, and not FP32")
        if size is None:
            array = np.array(value["data"], _FLOAT)
        else:
            array = np.frombuffer(content[first : first + size], _FLOAT)
            first += size
        name, shape = value["name"], value["shape"]
        if min(shape) < 0:
            raise ValueError(f"the shape {shape}")
        outputs[name] = array.reshape(shape[:1] if name in _PER_ROW else shape)
    return outputs


def _pixels(image: Any) -> np.ndarray:
    """Returns the uint8 images of `image` in [0, 1], as the signature `sample` does."""
    if image is None or not ((image >= 0) & (image <= 1)).all():
        raise Refusal("INTERNAL", "its answer has no images from 0 to 1")
    return np.round(255 * image).astype(np.uint8)
