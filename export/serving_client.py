"""A client for models on TensorFlow Serving or Triton. See docs/client.md.

Over REST and KServe's protocol, neither TensorFlow nor the model's code is imported.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from export.limits import MAX_PIXELS, MAX_ROWS
from export.transports.transport import MAX_RETRIES, TEMPORARY, Refusal, Target, Transport

_PICTURE_FORMATS = ("PNG", "JPEG", "MPO")  # MPO is a JPEG that is followed by more pictures
_MAX_FILE = 1 << 26  # bytes of a picture
_MAX_DETAIL = 300  # characters


def _grpc(target: Target, retries: int) -> Transport:
    from export.transports.grpc_transport import GrpcTransport  # it imports TensorFlow

    return GrpcTransport(target, retries)


def _rest(target: Target, retries: int) -> Transport:
    from export.transports.rest_transport import RestTransport

    return RestTransport(target, retries)


def _kserve(target: Target, retries: int) -> Transport:
    from export.transports.kserve_transport import KserveTransport

    return KserveTransport(target, retries)


PROTOCOLS: dict[str, Callable[[Target, int], Transport]] = {
    "grpc": _grpc,
    "rest": _rest,
    "kserve": _kserve,
}


class RequestError(OSError):
    """A request that the server did not answer or refused.

    Attributes:
      code: gRPC's name of the reason, over all protocols: `"UNAVAILABLE"` (no server, or too busy),
        `"NOT_FOUND"` (no such model or version), `"DEADLINE_EXCEEDED"`, `"INVALID_ARGUMENT"`,
        `"FAILED_PRECONDITION"`, ….
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Client:
    """A client that asks a served model for images. Threads may share it.

    Image i of an answer depends only on seed + i and on picture i. The number of images and the
    server's load change its pixels by one grey level at most. Image 0 is the first image that
    `nvae-sample` draws with the same seed, and image 1 is image 0 of the next seed.

    Args:
      server: HOST:PORT. TensorFlow Serving uses port 8500 for gRPC and 8501 for REST, and Triton
        8000 for HTTP.
      protocol: `"grpc"` or `"rest"`, for TensorFlow Serving; or `"kserve"`, for Triton and other
        servers of KServe's protocol over HTTP. That one has `sample`, and `ask` for the portable
        signatures; `reconstruct` and `vary` need TensorFlow Serving.
      model: Name of the model on the server.
      version: Version of the model; None for the newest that is loaded.
      label: Label of the version, instead of its number; not over `"kserve"`.
      deadline: Seconds for each request of up to `MAX_ROWS` rows, including its retries.
      retries: Number of times a request is repeated if the server is down or busy, at most 4. The
        waits in between double, starting from about 0.2 seconds.

    Raises:
      ValueError: if an argument is not allowed.

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
        retries: int = MAX_RETRIES,
    ):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}: {protocol!r}.")
        address = re.fullmatch(r"([^\s/:@]+|\[[0-9a-fA-F:.]+\]):(\d+)", server)
        if not (address and _is_host(address[1]) and 0 < int(address[2]) < 2**16):
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
        if not 0 <= retries <= MAX_RETRIES:
            raise ValueError(f"retries must be from 0 to {MAX_RETRIES}, received {retries}.")
        self._protocol = protocol
        self._target = Target(server, model, version, label)
        self._deadline = deadline
        self._retries = retries
        self._transport: Transport = PROTOCOLS[protocol](self._target, retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def sample(self, num_samples: int, seed: int = 0, temperature: float = 1.0) -> np.ndarray:
        """Asks for images that are drawn from the prior.

        Args:
          num_samples: Number of images, at least 1.
          seed: Seed of the first image, at least 0. The other images have the seeds after it.
          temperature: Factor of the prior's standard deviations.

        Returns:
          (num_samples, h, w, C) uint8.

        Raises:
          ValueError: if an argument is not allowed. No request is sent then.
          RequestError: if the server does not answer or refuses.
        """
        return self._images("sample", _drawing_inputs(num_samples, seed, temperature))

    def reconstruct(self, pictures: Sequence[str | os.PathLike | bytes]) -> np.ndarray:
        """Asks for the model's reconstructions of pictures.

        Args:
          pictures: N PNG or JPEG files of any size, each as a path or as the file's bytes.

        Returns:
          (N, h, w, C) uint8.

        Raises:
          ValueError: if a file is not such a picture. No request is sent then.
          OSError: if a file cannot be read.
          RequestError: if the server does not answer or refuses.
        """
        return self._images("reconstruct", {"image_bytes": read_pictures(pictures)})

    def vary(
        self,
        pictures: Sequence[str | os.PathLike | bytes],
        keep_groups: int,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Asks for variations of pictures, with some latent groups kept and the others drawn.

        Args:
          pictures: N pictures; see `reconstruct`.
          keep_groups: Number of groups, from the lowest resolution, that are kept from the picture.
            If it is at least the model's number of groups, all are kept.
          seed: Seed of the first picture, at least 0. The other pictures have the seeds after it.
          temperature: Factor of the prior's standard deviations in the groups that are drawn.

        Returns:
          (N, h, w, C) uint8.

        Raises:
          ValueError: if an argument is not allowed. No request is sent then.
          OSError: if a file cannot be read.
          RequestError: if the server does not answer or refuses.
        """
        if not 0 <= keep_groups < 2**31:
            raise ValueError(f"keep_groups must be at least 0, received {keep_groups}.")
        contents = read_pictures(pictures)
        inputs = _drawing_inputs(len(contents), seed, temperature)
        kept = np.full(len(contents), keep_groups, np.int32)
        return self._images("vary", inputs | {"image_bytes": contents, "keep_groups": kept})

    def ask(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Asks any signature, and returns its outputs by name.

        More than `MAX_ROWS` rows are sent in several requests, because the server refuses more rows
        than its largest batch.

        Args:
          signature: Name of the signature.
          inputs: Arrays (B, …) by name; bytes are objects.

        Returns:
          Arrays (B, …) by name. Where one is called `error`, it says in a few words what is wrong
          with an input's row, whose other outputs are blank then; see docs/serving.md.

        Raises:
          ValueError: if the inputs have no rows, or different numbers of them.
          RequestError: if the server does not answer, refuses, or answers with other rows.
        """
        counts = {name: len(value) for name, value in inputs.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(
                "All inputs must have the same number of rows, at least 1; received "
                f"{counts or 'no inputs'}."
            )
        (rows,) = set(counts.values())
        answers = [
            self._request(
                signature,
                {name: value[first : first + MAX_ROWS] for name, value in inputs.items()},
            )
            for first in range(0, rows, MAX_ROWS)
        ]
        if len({_kinds(answer) for answer in answers}) > 1:
            raise self._wrong_answer(signature, "its parts do not fit together")
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _images(self, signature: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        answer = self.ask(signature, inputs)
        images = answer.get("image")
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise self._wrong_answer(signature, "it has no images")
        for index, error in enumerate(answer.get("error", [])):
            if error:
                said = _printable(error.decode(errors="replace"))
                raise RequestError(
                    "INVALID_ARGUMENT",
                    f"The server at {self._target.server} cannot use picture {index}: {said}.",
                )
        return images

    def _request(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            answer = self._transport.ask(signature, inputs, self._deadline)
        except Refusal as refusal:
            message = self._explain(refusal, signature)
            raise RequestError(refusal.code, message) from refusal
        rows = len(next(iter(inputs.values())))
        if not answer or any(value.shape[:1] != (rows,) for value in answer.values()):
            raise self._wrong_answer(signature, f"it has not {rows} rows")
        return answer

    def _wrong_answer(self, signature: str, fault: str) -> RequestError:
        return RequestError(
            "INTERNAL",
            f"The answer of {self._target} at {self._target.server} to {signature!r} is wrong: "
            f"{fault}.",
        )

    def _explain(self, refusal: Refusal, signature: str) -> str:
        """Returns one line that says what went wrong and what may help."""
        server = f"The server at {self._target.server}"
        said = f"({refusal.code}: {_printable(refusal.detail)})"
        if "Serving signature" in refusal.detail and "not found" in refusal.detail:
            return (
                f"{server} has {self._target}, but without a signature {signature!r}: was it "
                f"exported by this package, and has it images that a PNG can hold? {said}"
            )
        if refusal.code == "NOT_FOUND" or "version label" in refusal.detail:
            loaded = "" if "version label" in refusal.detail else " loaded, or not yet"
            return f"{server} has no {self._target}{loaded}. {said}"
        faults = {
            "DEADLINE_EXCEEDED": f"did not answer within {self._deadline:g} seconds",
            "UNIMPLEMENTED": f"has no {signature!r} over {self._protocol}",
            "OUT_OF_RANGE": "answers too much: ask for fewer images at a time",
        }
        if refusal.code in faults:
            return f"{server} {faults[refusal.code]}. {said}"
        if refusal.code in TEMPORARY:
            return (
                f"No answer from {self._target.server}: is a server running there, "
                f"with {self._protocol} on this port, and not too busy? {said}"
            )
        return f"{server} refuses the request to {signature!r} of {self._target}. {said}"


def _kinds(answer: dict[str, np.ndarray]) -> frozenset[tuple]:
    return frozenset((name, value.dtype, value.shape[1:]) for name, value in answer.items())


def _printable(text: str) -> str:
    """Returns a server's text as one line, without what a terminal would obey."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= _MAX_DETAIL else f"{line[:_MAX_DETAIL]}…"


def _is_host(name: str) -> bool:
    """Returns whether a host can have the name: none of its parts may be empty or too long."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


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


def read_pictures(pictures: Sequence[str | os.PathLike | bytes]) -> np.ndarray:
    """Reads N pictures into an array (N,) of bytes, and decodes each once as a check.

    Args:
      pictures: Each a PNG or JPEG file, as a path or as the file's bytes.

    Raises:
      ValueError: if there are none, or one is not a regular file, not a PNG or JPEG, too large,
        damaged, or in CMYK.
      OSError: if a file cannot be read.
    """
    contents = np.empty(len(pictures), object)
    checked: set[bytes] = set()
    for index, picture in enumerate(pictures):
        if isinstance(picture, bytes):
            name, content = f"Picture {index}", picture
        else:
            name = repr(os.fspath(picture))
            content = _read_file(picture)
        if content not in checked:
            _check_picture(name, content)
            checked.add(content)
        contents[index] = content
    if not len(contents):
        raise ValueError("Expected at least one picture, received none.")
    return contents


def _read_file(path: str | os.PathLike) -> bytes:
    """Does what `nvae_tf.files.read_bytes` does, whose package imports TensorFlow."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device may never end
        raise ValueError(f"{os.fspath(path)!r} is not a regular file.")
    if os.path.getsize(path) > _MAX_FILE:
        raise ValueError(f"{os.fspath(path)!r} has more than {_MAX_FILE >> 20} MiB.")
    with open(path, "rb") as file:
        return file.read()


def _check_picture(name: str, content: bytes) -> None:
    from PIL import Image  # imported here because only pictures need it

    try:
        with Image.open(io.BytesIO(content)) as image:
            file_format, mode = image.format, image.mode
            width, height = image.size
            too_large = width * height > MAX_PIXELS
            if file_format in _PICTURE_FORMATS and not too_large:
                image.load()
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture; PNG and JPEG are.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    # Pillow raises these for damaged files, and for others than PNG and JPEG.
    except (OSError, SyntaxError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{name} is broken: {error}.") from error
    if file_format not in _PICTURE_FORMATS:
        raise ValueError(f"{name} is a picture in the format {file_format}; send PNG or JPEG.")
    if too_large:
        raise ValueError(
            f"{name} has {width}x{height} pixels; send at most {MAX_PIXELS:,} of them."
        )
    if mode == "CMYK":
        raise ValueError(
            f"{name} has the four channels of print (CMYK); send gray, RGB or RGBA pictures."
        )
