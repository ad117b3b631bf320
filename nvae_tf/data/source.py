"""What every kind of data set gives: the images of one split, not cropped or resized yet."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import size_problem


class UnreadableError(ValueError):
    """An image is damaged, or of a format that is not known."""


@dataclasses.dataclass
class Source:
    """Images of one split, in a fixed order.

    Where there is something wrong with an image, the dataset holds one of no pixels, and one of the
    lists has got a line that names it by then.
    """

    images: tf.data.Dataset  # of (h, w, C) uint8
    count: int  # those with something wrong included
    identity: str  # other images have another one
    unreadable: list[str] = dataclasses.field(default_factory=list)
    unfit: list[str] = dataclasses.field(default_factory=list)  # whole, but not for this model


def decoded(
    elements: tf.data.Dataset,
    read: Callable[..., np.ndarray],
    name: Callable[..., str],
    data: DataConfig,
    model: ModelConfig,
) -> Source:
    """A source of what a Python function makes of the elements; count and identity are to be set.

    Args:
      elements: of tensors.
      read: from an element's values to an image (h, w, C) uint8; may raise `UnreadableError`, or
        a `ValueError` for what does not suit the model.
      name: from the same values to what a user calls that image.
      data: with `model`, decides which sizes are wanted.
      model: see `data`.
    """
    channels = model.image_shape[-1]
    source = Source(elements, 0, "")

    def attempt(*values: Any) -> np.ndarray:
        try:
            pixels = read(*values)
            problem = size_problem(data, model, *pixels.shape[:2])
            if problem:
                raise ValueError(problem)
            return pixels
        except UnreadableError as error:
            source.unreadable.append(f"{name(*values)}: {error}")
        except ValueError as error:
            source.unfit.append(f"{name(*values)}: {error}")
        return np.zeros((0, 0, channels), np.uint8)

    def image(*element: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(
            tf.numpy_function(attempt, element, tf.uint8), [None, None, channels]
        )

    source.images = elements.map(image, num_parallel_calls=tf.data.AUTOTUNE)
    return source


def directory_of(data: DataConfig) -> str:
    """`data.data_dir`, for data sets that are files of the user.

    Raises:
      ValueError: if it is empty or not a directory.
    """
    if not data.data_dir:
        raise ValueError(
            f"data.data_dir must say where the files of the data set {data.name!r} are."
        )
    root = os.path.expanduser(data.data_dir)
    if not os.path.isdir(root):
        raise ValueError(f"data.data_dir: there is no directory {root!r}.")
    return root


def files_identity(paths: list[str]) -> str:
    """Changes when one of the files does, as far as its size and time tell."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()
