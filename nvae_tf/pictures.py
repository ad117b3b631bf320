"""Images as 8-bit pictures, side by side on sheets, as PNG."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf


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
    if picture.shape[-1] not in (1, 3, 4):
        raise ValueError(f"A PNG has 1, 3 or 4 channels, the images have {picture.shape[-1]}.")
    return tf.io.encode_png(picture).numpy()
