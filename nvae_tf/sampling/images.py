"""Images as 8-bit pictures: side by side on sheets, animated, and as files."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.files import check_directory_of, new_directory, new_file, write_atomically

SHEET_LIMIT = 4096  # images; more are not for the eye, and do not fit into memory
ANIMATIONS = (".gif", ".webp")


def to_uint8(images: np.ndarray | tf.Tensor) -> np.ndarray:
    """Values in [0, 1] as 0 to 255, rounded."""
    return np.round(255 * np.clip(np.asarray(images), 0, 1)).astype(np.uint8)


def sheet(images: np.ndarray, columns: int | None = None, margin: int = 2) -> np.ndarray:
    """Images (N, H, W, C) side by side, row after row, on one picture (H', W', C).

    Args:
      images: uint8.
      columns: of the sheet; None: as many as make it about square.
      margin: white pixels between the images and around them.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, channels)
    picture = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top = margin + index // columns * (height + margin)
        left = margin + index % columns * (width + margin)
        picture[top : top + height, left : left + width] = image
    return picture


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of (H, W, C) uint8.

    Raises:
      ValueError: if there are not 1 (gray), 3 (RGB) or 4 (RGBA) channels.
    """
    _check_channels(".png", picture.shape[-1])
    return tf.io.encode_png(picture).numpy()


def _check_channels(extension: str, channels: int) -> None:
    if extension == ".png" and channels not in (1, 3, 4):
        raise ValueError(f"A PNG has 1, 3 or 4 channels, the images have {channels}.")
    if extension in ANIMATIONS and channels not in (1, 3):
        raise ValueError(f"An animation has 1 or 3 channels, the images have {channels}.")


def encode_animation(frames: np.ndarray, extension: str, milliseconds: int = 100) -> bytes:
    """An endless animation of frames (F, H, W, C) uint8.

    Args:
      frames: gray or RGB. GIF has 256 colours per frame, so RGB frames are approximated there;
        everything else is exact.
      extension: `".gif"` or `".webp"`.
      milliseconds: of each frame.

    Raises:
      ValueError: for another extension, or if there are not 1 or 3 channels.
    """
    from PIL import Image  # nothing else needs it

    if extension not in ANIMATIONS:
        raise ValueError(
            f"An animation must be one of {', '.join(ANIMATIONS)}; received {extension!r}."
        )
    _check_channels(extension, frames.shape[-1])
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    content = io.BytesIO()
    images[0].save(
        content,
        extension[1:],
        save_all=True,
        append_images=images[1:],
        duration=milliseconds,
        loop=0,
        **({"lossless": True} if extension == ".webp" else {}),
    )
    return content.getvalue()


def encode_grid(grid: np.ndarray, extension: str) -> bytes:
    """A picture of images (rows, columns, H, W, C) uint8.

    Args:
      grid: the images.
      extension: `".png"` for a sheet; `".gif"` or `".webp"` for an animation which shows one column
        after the other, and then goes back.
    """
    rows, columns = grid.shape[:2]
    if extension == ".png":
        return encode_png(sheet(grid.reshape(rows * columns, *grid.shape[2:]), columns))
    order = [*range(columns), *range(columns - 2, 0, -1)]
    return encode_animation(np.stack([sheet(grid[:, column]) for column in order]), extension)


def check_grid_output(path: str, channels: int) -> None:
    """Checks that `encode_grid` can make what a path ends in, and that it has a directory.

    Raises:
      ValueError: for another ending, or a number of channels that the format does not have.
      FileNotFoundError: if the directory does not exist.
    """
    extension = os.path.splitext(path)[1]
    if extension not in (".png", *ANIMATIONS):
        raise ValueError(
            f"The output must end in .png, {' or '.join(ANIMATIONS)}; received {path!r}."
        )
    _check_channels(extension, channels)
    check_directory_of(path)


@contextlib.contextmanager
def image_writer(
    path: str, count: int, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes many images as they come, to what the path ends in; it appears whole at the end.

    Args:
      path: `x.png`, a sheet; `x.npy`, a uint8 array (count, h, w, C); or `x/`, a new directory of
        `00000.png`, `00001.png`, …. The last two take no memory.
      count: how many images there will be.
      shape: h, w, C of an image.

    Yields:
      A function that takes a batch (B, h, w, C) uint8.

    Raises:
      ValueError: for what `check_image_output` refuses, channels that a PNG cannot have, or a
        directory that is there and not empty; when the scope begins.
      FileNotFoundError: as `check_image_output`.
    """
    kind = check_image_output(path, count)
    if kind != ".npy":
        _check_channels(".png", shape[-1])
    writer = {".png": _sheet_writer, ".npy": _array_writer, "/": _directory_writer}[kind]
    with writer(path, count, shape) as write:
        yield write


def check_image_output(path: str, count: int) -> str:
    """Checks what `image_writer` is to write; returns `".png"`, `".npy"` or `"/"`.

    Raises:
      ValueError: for a path that ends in something else, or a sheet of more than `SHEET_LIMIT`
        images.
      FileNotFoundError: if the directory that a file is to be in does not exist.
    """
    if path.endswith("/"):
        return "/"
    extension = os.path.splitext(path)[1]
    if extension not in (".png", ".npy"):
        raise ValueError(
            "The output must end in .png (one sheet), .npy (one array) or / (a directory of PNG "
            f"files), received {path!r}."
        )
    if extension == ".png" and count > SHEET_LIMIT:
        raise ValueError(
            f"A sheet holds up to {SHEET_LIMIT:,} images, {count:,} were asked for: let the output "
            "end in / for a directory of PNG files, or in .npy for an array."
        )
    check_directory_of(path)
    return extension


@contextlib.contextmanager
def _sheet_writer(
    path: str, count: int, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    del count, shape
    batches: list[np.ndarray] = []
    yield batches.append
    write_atomically(path, encode_png(sheet(np.concatenate(batches))))


@contextlib.contextmanager
def _directory_writer(
    path: str, count: int, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    del shape
    digits = max(5, len(str(count - 1)))
    numbers = itertools.count()
    with new_directory(path) as temporary:

        def write(images: np.ndarray) -> None:
            for image in images:
                name = os.path.join(temporary, f"{next(numbers):0{digits}}.png")
                with open(name, "wb") as file:
                    file.write(encode_png(image))

        yield write


@contextlib.contextmanager
def _array_writer(
    path: str, count: int, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    written = 0
    with new_file(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, *shape))

        def write(images: np.ndarray) -> None:
            nonlocal written
            array[written : written + len(images)] = images
            written += len(images)

        yield write
        array.flush()
