"""Images from a model on TensorFlow Serving, over gRPC or REST.

With REST, neither TensorFlow nor anything of the model is imported.
"""

from __future__ import annotations

import io
import math
import os
import random
import re
import time
from collections.abc import Sequence

import numpy as np

from export.transports import GrpcTransport, Refusal, RestTransport, Target, Transport

PROTOCOLS: dict[str, type[GrpcTransport] | type[RestTransport]] = {
    "grpc": GrpcTransport,
    "rest": RestTransport,
}
MAX_ROWS = 32  # of a request: the max_batch_size of export/serving/batching_parameters.txt
_FIRST_WAIT = 0.2  # seconds
_PICTURE_FORMATS = ("PNG", "JPEG", "MPO")  # MPO: JPEG with more pictures behind the first
_MAX_DETAIL = 300  # characters


class RequestError(OSError):
    """A server that does not answer, or refuses.

    Attributes:
      code: gRPC's name for the reason, over REST too: `"UNAVAILABLE"` (no server, or too busy),
        `"NOT_FOUND"` (no such model or version), `"DEADLINE_EXCEEDED"`, `"INVALID_ARGUMENT"`,
        `"FAILED_PRECONDITION"`, ….
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Client:
    """Asks a served model for images. Threads may share it.

    Image i of an answer depends on seed + i and on picture i alone: more images, or what else the
    server is doing, change none of them (by more than one grey level). Image 0 is that of
    `nvae-sample` with the same seed, image 1 is image 0 of the next seed.

    Args:
      server: HOST:PORT; TensorFlow Serving has gRPC on port 8500 and REST on 8501.
      protocol: `"grpc"` or `"rest"`.
      model: its name on the server.
      version: of the model; None: the newest that is loaded.
      label: instead of a version.
      deadline: seconds for each request of up to `MAX_ROWS` rows, all its retries included.
      retries: how often a request is sent again if the server is down or too busy, after waits
        which double from 0.2 seconds.

    Raises:
      ValueError: for anything else.

    Example:
    ```python
    with Client("localhost:8500") as client:
        images = client.sample(16, seed=1, temperature=0.7)  # (16, h, w, C) uint8
        again = client.reconstruct(["a.png", "b.jpg"])  # (2, h, w, C)
    ```
    """

    def __init__(
        self,
        server: str,
        protocol: str = "grpc",
        model: str = "nvae",
        version: int | None = None,
        label: str | None = None,
        deadline: float = 60.0,
        retries: int = 4,
    ):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}: {protocol!r}.")
        address = re.fullmatch(r"(?:[^\s/:@]+|\[[0-9a-fA-F:.]+\]):(\d+)", server)
        if not address or not 0 < int(address[1]) < 2**16:
            raise ValueError(
                f"server must be HOST:PORT, such as localhost:8500, received {server!r}."
            )
        if not model:
            raise ValueError("model must be the name of a model, received an empty one.")
        if version is not None and label is not None:
            raise ValueError(f"Choose between version {version} and label {label!r}.")
        if version is not None and not 0 <= version < 2**63:
            raise ValueError(f"version must be at least 0, received {version}.")
        if label == "":
            raise ValueError("label must be the label of a version, received an empty one.")
        if not (math.isfinite(deadline) and deadline > 0):
            raise ValueError(f"deadline must be positive and finite, received {deadline}.")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, received {retries}.")
        self._protocol = protocol
        self._target = Target(server, model, version, label)
        self._deadline = deadline
        self._retries = retries
        self._transport: Transport = PROTOCOLS[protocol](self._target)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()

    def sample(self, num_samples: int, seed: int = 0, temperature: float = 1.0) -> np.ndarray:
        """Images (num_samples, h, w, C) uint8 from the prior.

        Args:
          num_samples: at least 1.
          seed: of the first image, at least 0; the others have the seeds after it.
          temperature: multiplies the prior's scales.

        Raises:
          ValueError: for anything else, before the server is asked.
          RequestError: if there is no answer.
        """
        return self._images("sample", _drawing_inputs(num_samples, seed, temperature))

    def reconstruct(self, pictures: Sequence[str | os.PathLike | bytes]) -> np.ndarray:
        """Pictures (N, h, w, C) uint8, encoded and decoded again.

        Args:
          pictures: PNG or JPEG files of any size: paths, or what is in them.

        Raises:
          ValueError: for what is no such picture, before the server is asked.
          OSError: for files that cannot be read.
          RequestError: if there is no answer.
        """
        return self._images("reconstruct", {"image_bytes": _read_pictures(pictures)})

    def vary(
        self,
        pictures: Sequence[str | os.PathLike | bytes],
        keep_groups: int,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Variations (N, h, w, C) uint8: some latent groups of the pictures, the others drawn.

        Args:
          pictures: as for `reconstruct`.
          keep_groups: how many groups come from the picture, from the top; L or more: all.
          seed: of the first picture, at least 0; the others have the seeds after it.
          temperature: of what is drawn.

        Raises:
          ValueError: for anything else, before the server is asked.
          OSError: for files that cannot be read.
          RequestError: if there is no answer.
        """
        if not 0 <= keep_groups < 2**31:
            raise ValueError(f"keep_groups must be at least 0, received {keep_groups}.")
        contents = _read_pictures(pictures)
        inputs = _drawing_inputs(len(contents), seed, temperature)
        kept = np.full(len(contents), keep_groups, np.int32)
        return self._images("vary", inputs | {"image_bytes": contents, "keep_groups": kept})

    def ask(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of any signature, by name.

        Args:
          signature: its name.
          inputs: arrays (B, …) by name, bytes as objects. More than `MAX_ROWS` rows are sent in
            several requests, for a server refuses more than its largest batch.

        Raises:
          RequestError: if there is no answer.
        """
        rows = len(next(iter(inputs.values())))
        answers = [
            self._request(
                signature,
                {name: value[first : first + MAX_ROWS] for name, value in inputs.items()},
            )
            for first in range(0, rows, MAX_ROWS)
        ]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _images(self, signature: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.ask(signature, inputs)["image"]

    def _request(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        end = time.monotonic() + self._deadline
        wait = _FIRST_WAIT
        for attempt in range(1, self._retries + 2):
            try:
                return self._transport.ask(signature, inputs, end - time.monotonic())
            except Refusal as refusal:
                # Clients that were refused together do not come back together.
                pause = wait * random.uniform(0.5, 1)
                last = attempt > self._retries or time.monotonic() + pause >= end
                if last or not refusal.passing:
                    message = self._explain(refusal, signature, attempt)
                    raise RequestError(refusal.code, message) from refusal
            time.sleep(pause)
            wait *= 2
        raise AssertionError("The last attempt returns or raises.")

    def _explain(self, refusal: Refusal, signature: str, attempts: int) -> str:
        """What went wrong, and what may help, in one line."""
        server = f"The server at {self._target.server}"
        said = " ".join(refusal.detail.split())
        if len(said) > _MAX_DETAIL:
            said = said[:_MAX_DETAIL] + "…"
        said = f"({refusal.code}: {said})"
        if "Serving signature" in refusal.detail and "not found" in refusal.detail:
            return (
                f"{server} has {self._target}, but without a signature {signature!r}: was it "
                f"exported by this package, and has it images that a PNG can hold? {said}"
            )
        if "version label" in refusal.detail:
            return f"{server} has no {self._target}. {said}"
        if refusal.code == "NOT_FOUND":
            return f"{server} has no {self._target} loaded, or not yet. {said}"
        if refusal.code == "DEADLINE_EXCEEDED":
            return f"{server} did not answer within {self._deadline:g} seconds. {said}"
        if refusal.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            tries = f"{attempts} attempts" if attempts > 1 else "1 attempt"
            return (
                f"No answer from {self._target.server} in {tries}: is a server running there, "
                f"with {self._protocol} on this port, and not too busy? {said}"
            )
        return f"{server} refuses the request to {signature!r} of {self._target}. {said}"


def _drawing_inputs(rows: int, seed: int, temperature: float) -> dict[str, np.ndarray]:
    if rows < 1:
        raise ValueError(f"num_samples must be at least 1, received {rows}.")
    if not 0 <= seed <= 2**63 - rows:
        raise ValueError(
            f"seed must be at least 0 and, with those of all {rows} images, below 2^63; "
            f"received {seed}."
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and not negative, received {temperature}.")
    return {
        "seed": seed + np.arange(rows, dtype=np.int64),
        "temperature": np.full(rows, temperature, np.float32),
    }


def _read_pictures(pictures: Sequence[str | os.PathLike | bytes]) -> np.ndarray:
    """The contents (N,) of picture files, each of which has been decoded once as a check.

    One that the server cannot decode would fail the requests of others that are merged with it.

    Raises:
      ValueError: if there are none, or one of them is no PNG or JPEG, is broken or has other
        channels than gray, RGB or these with transparency.
      OSError: if a file cannot be read.
    """
    contents = np.empty(len(pictures), object)
    checked: set[bytes] = set()
    for index, picture in enumerate(pictures):
        if isinstance(picture, bytes):
            name, content = f"Picture {index}", picture
        else:
            name = repr(os.fspath(picture))
            with open(picture, "rb") as file:
                content = file.read()
        if content not in checked:
            _check_picture(name, content)
            checked.add(content)
        contents[index] = content
    if not len(contents):
        raise ValueError("Expected at least one picture, received none.")
    return contents


def _check_picture(name: str, content: bytes) -> None:
    from PIL import Image  # nothing else needs it

    try:
        with Image.open(io.BytesIO(content)) as image:
            kind, mode = image.format, image.mode
            if kind in _PICTURE_FORMATS:
                image.load()
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture; PNG and JPEG are.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # whatever Pillow says of broken files
        raise ValueError(f"{name} is broken: {error}.") from error
    if kind not in _PICTURE_FORMATS:
        raise ValueError(f"{name} is a picture in the format {kind}; send PNG or JPEG.")
    if mode == "CMYK":
        raise ValueError(
            f"{name} has the four channels of print (CMYK); send gray, RGB or RGBA pictures."
        )
