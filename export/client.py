"""Asks a server for images: `nvae-client --server=HOST:PORT --output=x.png`.

The server is TensorFlow Serving, or with `--protocol=kserve` Triton, which only samples. Its model
returns images:

  sample        images from the prior
  reconstruct   reconstructions of pictures
  vary          several for each picture, a row of the sheet, whose first groups are kept and the
                others drawn anew, from the same seeds for every picture
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags

from export.limits import MAX_ROWS
from export.serving_client import PROTOCOLS, Client, read_pictures
from export.transports.transport import MAX_RETRIES
from nvae_tf.command_line import MAX_IMAGES, MAX_SEED, check_flags_of_mode, usage_errors
from nvae_tf.sampling.images import check_image_output, image_writer

_FLAGS_OF_MODE = {
    "sample": ("num_samples", "seed", "temperature"),
    "reconstruct": ("images",),
    "vary": ("images", "keep_groups", "num_samples", "seed", "temperature"),
}

_SERVER = flags.DEFINE_string(
    "server",
    None,
    "Address of the server, HOST:PORT. TensorFlow Serving uses port 8500 for gRPC, 8501 for REST; "
    "Triton uses 8000.",
    required=True,
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "grpc",
    list(PROTOCOLS),
    "Protocol of the requests: grpc or rest, for TensorFlow Serving; kserve, for Triton.",
)
_MODEL = flags.DEFINE_string("model", "nvae", "Name of the model on the server.")
_VERSION = flags.DEFINE_integer(
    "version", None, "Version of the model; default: the newest that is loaded.", lower_bound=0
)
_LABEL = flags.DEFINE_string("label", None, "Label of the version, instead of its number.")
_MODE = flags.DEFINE_enum("mode", "sample", list(_FLAGS_OF_MODE), "Images to ask for.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    16,
    "Number of images; vary: number of images for each picture.",
    lower_bound=1,
    upper_bound=MAX_IMAGES,
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the first image; the other images have the seeds after it. A seed gives the first "
    "image that nvae-sample draws for it.",
    lower_bound=0,
    upper_bound=MAX_SEED - MAX_IMAGES,
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    1.0,
    "Factor of the prior's standard deviations; lower values give more typical and less diverse "
    "images.",
)
_IMAGES = flags.DEFINE_list("images", [], "Pictures, as paths of PNG or JPEG files: a.png,b.jpg.")
_KEEP_GROUPS = flags.DEFINE_integer(
    "keep_groups",
    1,
    "vary: number of groups, from the lowest resolution, that are kept from the picture.",
    lower_bound=0,
)
_DEADLINE = flags.DEFINE_float(
    "deadline", 60.0, "Seconds for a request of up to 32 images, including its retries."
)
_RETRIES = flags.DEFINE_integer(
    "retries",
    MAX_RETRIES,
    "Number of times a request is repeated if the server is down or busy.",
    lower_bound=0,
    upper_bound=MAX_RETRIES,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "samples.png",
    "x.png: a sheet of all images; x.npy: a uint8 array (N, h, w, C); x/: a directory of PNGs.",
)


def check_flags(mode: str) -> None:
    """Raises a ValueError if the mode does not use a flag that was given, or lacks one."""
    check_flags_of_mode(mode, _FLAGS_OF_MODE)
    if "images" in _FLAGS_OF_MODE[mode] and not _IMAGES.value:
        raise ValueError(f"--mode={mode} needs --images.")
    if _PROTOCOL.value == "kserve" and mode != "sample":
        raise ValueError(f"--mode={mode} needs TensorFlow Serving, with --protocol=grpc or rest.")


def ask(client: Client, mode: str, contents: Sequence[bytes]) -> Iterator[np.ndarray]:
    """Yields the answers to the requests that a mode takes, (B, h, w, C) uint8.

    Args:
      client: The client.
      mode: The mode.
      contents: The files of the pictures.
    """
    number, seed, temperature = _NUM_SAMPLES.value, _SEED.value, _TEMPERATURE.value
    if mode == "reconstruct":
        for first in range(0, len(contents), MAX_ROWS):
            yield client.reconstruct(contents[first : first + MAX_ROWS])
        return
    blocks = [(first, min(MAX_ROWS, number - first)) for first in range(0, number, MAX_ROWS)]
    if mode == "sample":
        for first, count in blocks:
            yield client.sample(count, seed + first, temperature)
    else:
        for content in contents:
            for first, count in blocks:
                yield client.vary(count * [content], _KEEP_GROUPS.value, seed + first, temperature)


def main(argv: list[str]) -> None:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it reports each retry
    with usage_errors(argv):
        mode, number, pictures = _MODE.value, _NUM_SAMPLES.value, _IMAGES.value
        check_flags(mode)
        rows = {"sample": number, "reconstruct": len(pictures), "vary": number * len(pictures)}
        check_image_output(_OUTPUT.value, rows[mode])
        with Client(
            _SERVER.value,
            _PROTOCOL.value,
            _MODEL.value,
            _VERSION.value,
            _LABEL.value,
            _DEADLINE.value,
            _RETRIES.value,
        ) as client:
            # All of them before the first request.
            contents = list(read_pictures(pictures)) if pictures else []
            answers = ask(client, mode, contents)
            first = next(answers)
            columns = number if mode == "vary" else None
            with image_writer(_OUTPUT.value, rows[mode], first.shape[1:], columns) as write:
                write(first)
                for images in answers:
                    write(images)
    print(f"{mode}, {rows[mode]} images from {_SERVER.value}: {_OUTPUT.value}")


def run() -> None:
    """Entry point of `nvae-client`."""
    app.run(main)


if __name__ == "__main__":
    run()
