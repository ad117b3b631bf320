"""The common form of all data sets: the images of one split, before cropping and resizing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import size_problem


class UnreadableError(ValueError):
    """An image that is damaged or has an unknown format."""


@dataclasses.dataclass
class Source:
    """The images of one split, in a fixed order.

    In place of an image that cannot be used, the dataset yields one without pixels, after noting it
    in `unreadable` or `unfit`.

    Attributes:
      images: A dataset of images (h, w, C) uint8.
      count: The number of images, including those that cannot be used.
      identity: A string that changes when the images change.
      files: The path of each image's own file, which is its name as well; None: it has none.
      unreadable: Of each damaged image that was met so far, by its name, what is wrong with it.
      unfit: Of each intact image that does not fit the model, by its name, why.
      name_damage: Called when the dataset has raised a DataLossError; raises a ValueError that
        names the damaged file, if it is known how to find it.
    """

    images: tf.data.Dataset
    count: int
    identity: str
    files: Sequence[str] | None = None
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    unfit: dict[str, str] = dataclasses.field(default_factory=dict)
    name_damage: Callable[[], None] = lambda: None


def decoded_source(
    elements: tf.data.Dataset,
    read: Callable[..., np.ndarray],
    name: Callable[..., str],
    count: int,
    identity: str,
    data: DataConfig,
    model: ModelConfig,
    files: Sequence[str] | None = None,
) -> Source:
    """Returns a source whose images a Python function reads, one from each element.

    Args:
      elements: A dataset of tensors or tuples of tensors.
      read: Maps an element's values to an image (h, w, C) uint8. It raises an `UnreadableError`
        for a damaged image, and another `ValueError` for one that does not fit the model.
      name: Maps the same values to a name by which the user knows the image.
      count: The number of elements.
      identity: A string that changes when the images change.
      data: Gives, together with `model`, the sizes that are accepted.
      model: The model for which the images are read.
      files: The path of each element's own file, if it has one: what `name` returns.
    """
    channels = model.image_shape[-1]
    source = Source(elements, count, identity, files)

    def attempt(*values: Any) -> np.ndarray:
        try:
            pixels = read(*values)
            problem = size_problem(data, model, *pixels.shape[:2])
            if problem:
                raise ValueError(problem)
            return pixels
        except UnreadableError as error:
            source.unreadable[name(*values)] = str(error)
        except ValueError as error:
            source.unfit[name(*values)] = str(error)
        return np.zeros((0, 0, channels), np.uint8)

    def image(*element: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(
            tf.numpy_function(attempt, element, tf.uint8), [None, None, channels]
        )

    source.images = elements.map(image, num_parallel_calls=tf.data.AUTOTUNE)
    return source


def data_directory(data: DataConfig) -> str:
    """Returns `data.data_dir` with `~` expanded, for data sets that are files of the user.

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
    """Returns a hash of the files' paths, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # a link that leads nowhere
            status = os.lstat(path)
        digest.update(
            f"{path}:{status.st_size}:{status.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()
