"""Data sets that are idx files: MNIST, Fashion-MNIST, KMNIST, EMNIST and whatever looks like them.

The format is that of LeCun's MNIST page: two zero bytes, a type, the number of axes, their lengths
as big-endian integers, then the values in C order.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import check_shape
from nvae_tf.data.source import Source, data_directory, files_identity
from nvae_tf.files import read_bytes

_UNSIGNED_BYTES = 0x08
_GZIP = b"\x1f\x8b"
_BEGINNINGS = {"test": ("test", "t10k")}  # MNIST calls its test images t10k


def open_idx(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens the images in a split's idx file, such as `train-images-idx3-ubyte.gz`.

    Raises:
      ValueError: There is no such file or more than one, it is damaged, or its images do not fit
        the model.
    """
    path = _file(data, split, "images", "34")
    images = _read_file(path, read_idx_images)
    check_shape(repr(path), images.shape[1:], data, model)
    return Source(tf.data.Dataset.from_tensor_slices(images), len(images), files_identity([path]))


def load_idx_labels(data: DataConfig, split: str) -> np.ndarray:
    """Loads the labels of a split's images, from a file such as `train-labels-idx1-ubyte.gz`.

    Returns:
      (N,) uint8, in the order of the images.

    Raises:
      ValueError: There is no such file or more than one, or it is damaged.
    """
    return _read_file(_file(data, split, "labels", "1"), read_idx_labels)


def load_idx_images(data: DataConfig, split: str) -> np.ndarray:
    """Loads the images of a split as they are in its file.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      ValueError: There is no such file or more than one, or it is damaged.
    """
    return _read_file(_file(data, split, "images", "34"), read_idx_images)


def _read_file(path: str, read: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return read(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error


def _file(data: DataConfig, split: str, kind: str, axes: str) -> str:
    root = data_directory(data)
    pattern = re.compile(rf"(.+)-{kind}[-.]idx[{axes}]-ubyte(\.gz)?")
    names = {name: match[1] for name in os.listdir(root) if (match := pattern.fullmatch(name))}
    found = [name for name in sorted(names) if names[name] in _BEGINNINGS.get(split, (split,))]
    if len(found) != 1:
        present = ", ".join(sorted(found or names or os.listdir(root))[:10]) or "nothing"
        wanted = f"{split}-{kind}-idx{axes[0]}-ubyte"
        raise ValueError(
            f"data.data_dir {root!r} must hold one file {wanted} (or .gz) for the "
            f"split {split!r}{', which may be called t10k' if split == 'test' else ''}. "
            f"Present: {present}."
        )
    return os.path.join(root, found[0])


def read_idx_images(content: bytes) -> np.ndarray:
    """Reads the images of an idx file, which may be gzipped.

    Args:
      content: The bytes of the file.

    Returns:
      (N, H, W, C) uint8; C is 1 if the file has three axes.

    Raises:
      ValueError: It is not an idx file of images, or it is damaged.
    """
    images = _read(content, "images", (3, 4))
    return images[..., None] if images.ndim == 3 else images


def read_idx_labels(content: bytes) -> np.ndarray:
    """Reads the labels (N,) uint8 of an idx file, which may be gzipped.

    Raises:
      ValueError: It is not an idx file of labels, or it is damaged.
    """
    return _read(content, "labels", (1,))


def _read(content: bytes, kind: str, allowed: tuple[int, ...]) -> np.ndarray:
    """Reads the unsigned bytes of an idx file with one of these numbers of axes."""
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"damaged gzip data ({error}).") from error
    beginning = content[:4]
    if len(beginning) < 4 or beginning[:2] != b"\0\0" or beginning[3] not in allowed:
        raise ValueError(
            f"not an idx file of {kind}: it begins with {beginning.hex(' ') or 'nothing'}, not "
            f"with {' or '.join(f'00 00 08 {axes:02}' for axes in allowed)}."
        )
    if beginning[2] != _UNSIGNED_BYTES:
        raise ValueError(f"{kind} must be unsigned bytes (type 08), received {beginning[2]:02x}.")
    axes = beginning[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"an idx file that ends after {len(content)} bytes, in its header.")
    shape = tuple(map(int, np.frombuffer(content, ">u4", axes, offset=4)))
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"an idx file of shape {shape} must have {start + math.prod(shape)} bytes, received "
            f"{len(content)}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
