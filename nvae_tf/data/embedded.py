"""The test images of Fashion-MNIST inside this package, and a reader of their file format."""

from __future__ import annotations

import gzip
import importlib.resources

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import size_problem
from nvae_tf.data.source import Source

_TRAINING_IMAGES = 9_000


def open_embedded(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens Fashion-MNIST's 10,000 test images: 9,000 for training, 1,000 as the test split.

    Raises:
      ValueError: if the split is neither train nor test, or the images do not fit the model.
    """
    images = read_idx_images(
        importlib.resources.files("nvae_tf.data")
        .joinpath("embedded/t10k-images-idx3-ubyte.gz")
        .read_bytes()
    )
    splits = {"train": images[:_TRAINING_IMAGES], "test": images[_TRAINING_IMAGES:]}
    if split not in splits:
        raise ValueError(f"{data.name!r} has the splits train and test, received {split!r}.")
    if model.image_shape[-1] != 1:
        raise ValueError(
            f"The images of {data.name!r} have 1 channels, but the model's image_shape "
            f"{model.image_shape} expects {model.image_shape[-1]}."
        )
    problem = size_problem(data, model, *images.shape[1:3])
    if problem:
        raise ValueError(f"The images of {data.name!r}: {problem}")
    dataset = tf.data.Dataset.from_tensor_slices(splits[split])
    return Source(dataset, len(splits[split]), f"{data.name}/{split}")


def read_idx_images(compressed: bytes) -> np.ndarray:
    """Reads a gzipped idx3 file, the format of MNIST and Fashion-MNIST.

    Returns:
      Images (N, H, W, 1) uint8.

    Raises:
      ValueError: if the bytes are not an idx3 file.
    """
    content = gzip.decompress(compressed)
    magic, count, height, width = np.frombuffer(content, ">i4", count=4)
    if magic != 2051 or len(content) != 16 + count * height * width:
        raise ValueError(
            f"Not an idx3 file of {count} images of {height}x{width}: magic number {magic} "
            f"(expected 2051), {len(content)} bytes."
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width, 1)
