"""Pictures with holes: where pixels are missing is said by transparency, a mask or a rectangle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import crop_and_average, crop_and_resize, size_problem
from nvae_tf.data.pictures import decode_picture, with_channels
from nvae_tf.files import read_bytes

_OPAQUE = 255
_ROUNDING = 1e-5  # a share of a pixel that only looks as if it lay in the hole


def load_with_holes(
    paths: Sequence[str], data: DataConfig, model: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Loads pictures whose holes are their pixels that are not opaque.

    Pictures are cropped and resized as a data set's are. A pixel to which any of a hole
    contributes lies in the hole. What the file has as colour in a hole is dropped.

    Args:
      paths: Picture files.
      data: How they are cropped and resized.
      model: Gives the shape of the images, `content_shape`.

    Returns:
      Images (N, h, w, C) uint8, 0 in the holes, and the holes (N, h, w) bool.

    Raises:
      ValueError: A picture cannot be read or does not fit the model; the message names it.
      OSError: A file cannot be opened.
    """
    loaded = [_load(path, data, model) for path in paths]
    return np.stack([image for image, _ in loaded]), np.stack([hole for _, hole in loaded])


def _load(path: str, data: DataConfig, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    channels = model.image_shape[-1]
    # A model whose images have an alpha channel themselves takes transparency as content.
    has_holes = channels in (1, 3)
    content = read_bytes(path)
    try:
        pixels = decode_picture(content, 4 if has_holes else channels)
        if has_holes:
            opaque = pixels[:, :, 3:] == _OPAQUE
            pixels = with_channels(np.where(opaque, pixels[:, :, :3], 0), channels)
        if problem := size_problem(data, model, *pixels.shape[:2]):
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not has_holes:
        return crop_and_resize(pixels, data, model).numpy(), np.zeros(model.content_shape[:2], bool)
    missing = (~opaque).astype(np.uint8)
    gray = dataclasses.replace(model, image_shape=(*model.image_shape[:2], 1))
    image = crop_and_resize(tf.constant(pixels), data, model).numpy()
    share = crop_and_average(tf.constant(missing), data, gray).numpy()[:, :, 0]
    hole = share > _ROUNDING
    return np.where(hole[:, :, None], 0, image).astype(np.uint8), hole


def load_mask(path: str, model: ModelConfig) -> np.ndarray:
    """Loads a mask, a gray picture of the images' size that is black where pixels are seen.

    Returns:
      (h, w) bool, true in the hole.

    Raises:
      ValueError: It cannot be read, has colours or has another size.
      OSError: It cannot be opened.
    """
    content = read_bytes(path)
    try:
        pixels = decode_picture(content, 4)
        if np.any(pixels[:, :, :3] != pixels[:, :, :1]) or np.any(pixels[:, :, 3] != _OPAQUE):
            raise ValueError("a mask is gray and opaque, and this picture is not")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    height, width, _ = model.content_shape
    if pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{path}: a mask has the size of the model's images, {height}x{width} pixels, received "
            f"{pixels.shape[0]}x{pixels.shape[1]}."
        )
    return pixels[:, :, 0] > 0


def rectangle(sides: Sequence[int], model: ModelConfig) -> np.ndarray:
    """Returns a hole (h, w) bool that is a rectangle.

    Args:
      sides: Top, left, height and width, in pixels of the model's images without padding.
      model: Gives the size of the images.

    Raises:
      ValueError: There are not four numbers, or the rectangle is empty or not inside of the images.
    """
    height, width, _ = model.content_shape
    if len(sides) == 4:
        top, left, rows, columns = sides
        inside = 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
        if inside:
            hole = np.zeros((height, width), bool)
            hole[top : top + rows, left : left + columns] = True
            return hole
    raise ValueError(
        "A hole is top,left,height,width in pixels, inside of the model's images of "
        f"{height}x{width} pixels and not empty; received {','.join(map(str, sides))}."
    )
