"""Output of images: conversion to 8 bits, sheets, animations, PNG files and arrays."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.files import (
    check_new_directory,
    check_output,
    new_directory,
    new_file,
    write_atomically,
)

SHEET_LIMIT = 4096  # images; larger sheets are of no use to people, and may exceed the memory
PNG_CHANNELS = (1, 3, 4)  # gray, RGB and RGBA
ANIMATIONS = {".gif": 65_535, ".webp": 16_383}  # and the longest side of a frame, in pixels
_MAX_VALUES = 2**31 - 1  # of an image that TensorFlow encodes
_MAX_SIDE = 1_000_000  # pixels, libpng's limit
_MARGIN = 2  # pixels between and around the images of a sheet
_SQUARE = 4  # pixels, the width of a square in a hole's chequerboard
_MILLISECONDS = 100  # that an animation shows a frame


def to_uint8(images: np.ndarray | tf.Tensor) -> np.ndarray:
    """Scales values from [0, 1] to 0 to 255, clipped and rounded, as uint8.

    Raises:
      ValueError: A value is not finite, so the model's weights or the temperature are of no use.
    """
    values = np.asarray(images)
    if not np.isfinite(values).all():
        raise ValueError(
            "The model has drawn pixels that are not finite: its weights are damaged, its "
            "training has diverged, or a number that was asked for, such as the temperature, is "
            "far too high."
        )
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def sheet(images: np.ndarray, columns: int | None = None, margin: int = _MARGIN) -> np.ndarray:
    """Arranges images in rows on a sheet, which is one large image.

    Args:
      images: (N, H, W, C) uint8.
      columns: Number of images in a row; by default the number that makes the grid about square.
      margin: Width of the white margin between and around the images, in pixels.

    Returns:
      (H', W', C) uint8.
    """
    count, height, width, channels = images.shape
    columns = columns or _square(count)
    rows = math.ceil(count / columns)
    shape = sheet_side(rows, height, margin), sheet_side(columns, width, margin), channels
    result = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top = sheet_side(index // columns, height, margin)
        left = sheet_side(index % columns, width, margin)
        result[top : top + height, left : left + width] = image
    return result


def _square(count: int) -> int:
    """Returns the number of columns that makes a grid of so many images about square."""
    return math.ceil(math.sqrt(count))


def sheet_side(count: int, size: int, margin: int = _MARGIN) -> int:
    """Returns a sheet's width or height in pixels, of so many images of a width or height."""
    return count * (size + margin) + margin


def show_holes(images: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Fills holes with a chequerboard of two grays, as image editors show transparency.

    Args:
      images: (N, h, w, C) uint8.
      holes: (N, h, w) bool.
    """
    rows, columns = np.indices(images.shape[1:3]) // _SQUARE
    board = np.where((rows + columns) % 2, 150, 105).astype(np.uint8)[:, :, None]
    channels = images.shape[-1]
    if channels in (2, 4):  # with alpha
        opaque = np.full_like(board, 255)
        board = np.concatenate([*[board] * (channels - 1), opaque], axis=2)
    return np.where(holes[..., None], board, images)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image (H, W, C) uint8 as a PNG file.

    Raises:
      ValueError: if the image is too large, or has not 1 (gray), 3 (RGB) or 4 (RGBA) channels.
    """
    check_channels(".png", image.shape[-1])
    _check_size(*image.shape)
    return tf.io.encode_png(image).numpy()


def check_channels(extension: str, channels: int) -> None:
    """Raises a ValueError if files of this extension cannot have so many channels."""
    if extension == ".png" and channels not in PNG_CHANNELS:
        raise ValueError(f"A PNG has 1, 3 or 4 channels, the images have {channels}.")
    if extension in ANIMATIONS and channels not in (1, 3):
        raise ValueError(f"An animation has 1 or 3 channels, the images have {channels}.")


def check_grid(rows: int, columns: int, shape: tuple[int, int, int], extension: str) -> None:
    """Raises a ValueError if a grid of so many images (h, w, C) is too large for `encode_grid`."""
    height, width, channels = shape
    if extension == ".png":
        _check_size(sheet_side(rows, height), sheet_side(columns, width), channels)
    else:  # a frame is a sheet of one column's images
        across = _square(rows)
        _check_frame(
            extension, sheet_side(math.ceil(rows / across), height), sheet_side(across, width)
        )


def _check_size(height: int, width: int, channels: int) -> None:
    if height * width * channels > _MAX_VALUES or max(height, width) > _MAX_SIDE:
        raise ValueError(
            f"A sheet of {height:,}x{width:,} pixels is too large for a PNG: show fewer images."
        )


def _check_frame(extension: str, height: int, width: int) -> None:
    """Raises a ValueError if frames of an animation in this format cannot be so large."""
    limit = ANIMATIONS[extension]
    if max(height, width) > limit:
        raise ValueError(
            f"A frame of a {extension} file has up to {limit:,} pixels on each side, these would "
            f"have {height:,}x{width:,}: show fewer images, or let the output end in .png."
        )


def encode_animation(frames: np.ndarray, extension: str) -> bytes:
    """Encodes frames as an animation that repeats without end.

    WebP is lossless. GIF has 256 colours per frame, so RGB frames are approximated.

    Args:
      frames: (F, H, W, C) uint8, gray or RGB.
      extension: `".gif"` or `".webp"`.

    Raises:
      ValueError: if the extension is another, the frames do not have 1 or 3 channels, or they are
        too large.
    """
    from PIL import Image  # imported here because only animations need it

    if extension not in ANIMATIONS:
        raise ValueError(
            f"An animation must be one of {', '.join(ANIMATIONS)}; received {extension!r}."
        )
    check_channels(extension, frames.shape[-1])
    _check_frame(extension, *frames.shape[1:3])
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    content = io.BytesIO()
    images[0].save(
        content,
        extension[1:],
        save_all=True,
        append_images=images[1:],
        duration=_MILLISECONDS,
        loop=0,
        **({"lossless": True} if extension == ".webp" else {}),
    )
    return content.getvalue()


def encode_grid(grid: np.ndarray, extension: str) -> bytes:
    """Encodes a grid of images as a sheet or as an animation.

    Args:
      grid: (rows, columns, H, W, C) uint8.
      extension: `".png"` for a sheet. `".gif"` or `".webp"` for an animation that shows the columns
        one after the other and then in reverse.
    """
    rows, columns = grid.shape[:2]
    if extension == ".png":
        return encode_png(sheet(grid.reshape(rows * columns, *grid.shape[2:]), columns))
    order = [*range(columns), *range(columns - 2, 0, -1)]
    return encode_animation(np.stack([sheet(grid[:, column]) for column in order]), extension)


def check_grid_output(path: str, channels: int) -> None:
    """Checks that `encode_grid` supports the path's extension, and that its directory exists.

    Raises:
      ValueError: if the extension is not supported, or the format cannot have that many channels.
      FileNotFoundError: if the directory does not exist.
    """
    extension = os.path.splitext(path)[1]
    if extension not in (".png", *ANIMATIONS):
        raise ValueError(
            f"The output must end in .png, {' or '.join(ANIMATIONS)}; received {path!r}."
        )
    check_channels(extension, channels)
    check_output(path)


@contextlib.contextmanager
def image_writer(
    path: str, count: int, shape: tuple[int, int, int], columns: int | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens an output to which batches of images are written; it appears complete at the end.

    The end of the path selects the format: `x.png` is a sheet, `x.npy` a uint8 array
    (count, h, w, C), and `x/` a new directory of `00000.png`, `00001.png`, …. Only a sheet is
    held in memory.

    Args:
      path: The path of the file or directory.
      count: The total number of images.
      shape: The shape (h, w, C) of each image.
      columns: Of a sheet: number of images in a row, as `sheet` takes it.

    Yields:
      A function that writes a batch (B, h, w, C) uint8.

    Raises:
      ValueError: if `check_image_output` raises one, a PNG cannot have that many channels or
        pixels, or the directory exists and is not empty. It is raised when the scope begins.
      FileNotFoundError: if the directory that would hold the file does not exist.
    """
    output_format = check_image_output(path, count)
    if output_format == ".npy":
        writer = _array_writer(path, count, shape)
    else:
        check_channels(".png", shape[-1])
        if output_format == ".png":
            in_a_row = columns or _square(count)
            check_grid(math.ceil(count / in_a_row), in_a_row, shape, ".png")
            writer = _sheet_writer(path, in_a_row)
        else:
            writer = _directory_writer(path, count)
    with writer as write:
        yield write


def check_image_output(path: str, count: int) -> str:
    """Checks the path and the number of images for `image_writer`.

    Returns:
      The end of the path, which is `".png"`, `".npy"` or `"/"`.

    Raises:
      ValueError: if the path ends in something else, a sheet would have more than `SHEET_LIMIT`
        images, or a directory exists and is not empty.
      FileNotFoundError: if the directory that would hold the file does not exist.
    """
    if path.endswith("/"):
        check_new_directory(path)
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
    check_output(path)
    return extension


@contextlib.contextmanager
def _sheet_writer(path: str, columns: int) -> Iterator[Callable[[np.ndarray], None]]:
    batches: list[np.ndarray] = []
    yield batches.append
    write_atomically(path, encode_png(sheet(np.concatenate(batches), columns)))


@contextlib.contextmanager
def _directory_writer(path: str, count: int) -> Iterator[Callable[[np.ndarray], None]]:
    digits = max(5, len(str(count - 1)))
    names = (f"{number:0{digits}}.png" for number in itertools.count())
    with new_directory(path) as temporary:
        yield lambda images: write_pngs(temporary, images, names)


def write_pngs(directory: str, images: np.ndarray, names: Iterator[str]) -> None:
    """Writes images (B, h, w, C) uint8 as PNG files of a directory, with the next B names."""
    for image, name in zip(images, names):  # in this order, for the end must not take a name
        with open(os.path.join(directory, name), "wb") as file:
            file.write(encode_png(image))


@contextlib.contextmanager
def _array_writer(
    path: str, count: int, shape: tuple[int, int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    written = 0
    with new_file(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, *shape))
        # A disk without room must be an error now; for a mapped file it is a signal later.
        if hasattr(os, "posix_fallocate"):  # macOS has none
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))

        def write(images: np.ndarray) -> None:
            nonlocal written
            array[written : written + len(images)] = images
            written += len(images)

        yield write
        if written != count:
            raise ValueError(f"{path!r} was to have {count} images, received {written}.")
        array.flush()
