"""Images as one array: in memory, or, where they are too many, in a file that is mapped."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable

import numpy as np
import psutil

from nvae_tf.config import DataConfig
from nvae_tf.files import new_file

_SHARE = 0.5  # of the memory that is available, which images may take


def store(
    read: Callable[[], Iterable[np.ndarray]],
    count: int,
    shape: tuple[int, int, int],
    directory: str,
    name: str,
) -> np.ndarray:
    """All images of some batches.

    Args:
      read: returns the batches (B, H, W, C) uint8; not called if the file is there already.
      count: images in all of them together, or more.
      shape: (H, W, C).
      directory: of the file; made if need be.
      name: of the file; other images must have another one.

    Returns:
      (N, H, W, C) uint8; an `np.memmap`, read-only, if they are in the file.
    """
    if count * math.prod(shape) <= _SHARE * psutil.virtual_memory().available:
        images = np.empty((count, *shape), np.uint8)
        filled = 0
        for batch in read():
            images[filled : filled + len(batch)] = batch
            filled += len(batch)
        return images[:filled]
    path = os.path.join(directory, f"{name}.uint8")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        _write(read(), path)
    filled = os.path.getsize(path) // math.prod(shape)
    if not filled:  # nothing cannot be mapped
        return np.empty((0, *shape), np.uint8)
    return np.memmap(path, np.uint8, mode="r", shape=(filled, *shape))


def cache_directory(data: DataConfig) -> str:
    """Where what can be computed again from a data set is kept: `data.cache_dir`, or ~/.cache."""
    if data.cache_dir:
        return os.path.expanduser(data.cache_dir)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "nvae_tf")


def _write(batches: Iterable[np.ndarray], path: str) -> None:
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for batch in batches:
            file.write(batch.tobytes())
