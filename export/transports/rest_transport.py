"""Requests to TensorFlow Serving over REST. Nothing here imports TensorFlow."""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.transports.http import WRONG_SHAPE, HttpServer
from export.transports.transport import Refusal, Target

_GREY_LEVELS = 256
_LONE_OUTPUT = "image"  # of every signature of ours that has one output only


class RestTransport:
    """A transport that posts to `/v1/models/NAME:predict`, in REST's columnar format."""

    def __init__(self, target: Target, retries: int):
        self._server = HttpServer(target.server, retries)
        path = f"/v1/models/{urllib.parse.quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        if target.label is not None:
            path += f"/labels/{urllib.parse.quote(target.label, safe='')}"
        self._path = f"{path}:predict"

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(value) for name, value in inputs.items()},
        }
        answer = self._server.request(
            "POST",
            self._path,
            time.monotonic() + seconds,
            json.dumps(body).encode(),
            content_type="application/json",
        )
        try:
            outputs = json.loads(answer.content)["outputs"]
            if isinstance(outputs, list):  # the server leaves out the name of a lone output
                outputs = {_LONE_OUTPUT: outputs}
            return {name: _from_json(name, value) for name, value in dict(outputs).items()}
        except WRONG_SHAPE as error:
            detail = f"its answer is not that of a model server: {type(error).__name__}"
            raise Refusal("INTERNAL", detail) from error

    def close(self) -> None:
        """Does nothing, because every request has a connection of its own."""


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
