"""Storage of a split's images as one array, in memory or in a mapped file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from nvae_tf.config import DataConfig
from nvae_tf.files import locked, make_cache, new_file, read_bytes, to_json, write_atomically

_BLOCK = 2**22  # values of images that are looked at together
_HASHED = 1024
_IN_MEMORY = 256e6  # bytes of images that are decoded at every start


class Stored(NamedTuple):
    """The images of a split, and which are not among them.

    Attributes:
      images: (N, H, W, C) uint8; a read-only `np.memmap` if they are in a file.
      left_out: Of each image that was left out, by its name, what is wrong with it.
    """

    images: np.ndarray
    left_out: dict[str, str]


def store(
    read: Callable[[], Iterable[np.ndarray]],
    count: int,
    shape: tuple[int, int, int],
    directory: str,
    name: str,
    left_out: Callable[[], dict[str, str]] = dict,
) -> Stored:
    """Collects batches of images into one array.

    Many images are decoded once into a file, which is mapped, and used again by the next call with
    the same name, as long as it is whole. Reading it is as fast as reading memory, and takes none
    that others need. Of several processes one decodes, and the others wait for it.

    Args:
      read: Returns the batches (B, H, W, C) uint8. It is not called if the file exists.
      count: The number of images, those that are left out among them.
      shape: (H, W, C).
      directory: Directory of the file. It is created if necessary.
      name: Name of the file, which must differ for different images.
      left_out: Returns which images are missing in the batches, and why. It is called after the
        last batch, and a file keeps what it returns.

    Raises:
      ValueError: The file is not whole although it has just been written.
    """
    if count * math.prod(shape) <= _IN_MEMORY:
        images = np.empty((count, *shape), np.uint8)
        filled = 0
        for batch in read():
            images[filled : filled + len(batch)] = batch
            filled += len(batch)
        return Stored(images[:filled], left_out())
    path = os.path.join(directory, f"{name}.uint8")
    stored = _read(path, count, shape)
    if stored is None:
        make_cache(directory)
        with _alone(path):
            stored = _read(path, count, shape)  # who was here before may have written it
            if stored is None:
                _write(read(), left_out, path)
                stored = _read(path, count, shape)
    if stored is None:
        raise ValueError(f"{path!r} has changed after it was written: name another cache_dir.")
    return stored


def image_blocks(images: np.ndarray) -> Iterator[slice]:
    """Yields slices that take images (N, H, W, C) in turn, about four million values at a time."""
    size = max(1, _BLOCK // math.prod(images.shape[1:]))
    for first in range(0, len(images), size):
        yield slice(first, first + size)


def describe(images: np.ndarray) -> dict[str, int | str]:
    """Returns the number of images (N, H, W, C) and a hash that tells them from others.

    Of many images, the hash covers 1,024 that are spread evenly.
    """
    some = images[np.unique(np.linspace(0, len(images) - 1, _HASHED, dtype=np.int64))]
    digest = hashlib.sha256(repr(images.shape).encode() + some.tobytes())
    return {"images": len(images), "sha256": digest.hexdigest()[:16]}


def cache_directory(data: DataConfig) -> str:
    """Returns the directory for files that can be computed again from a data set.

    It is `data.cache_dir`, or by default `~/.cache/nvae_tf`.
    """
    if data.cache_dir:
        return os.path.expanduser(data.cache_dir)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "nvae_tf")


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """A scope in which no other process writes a file; without locks, work may be done twice."""
    directory, name = os.path.split(path)
    lock = os.path.join(directory, f".{name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, f"decodes the same images into {path}"))
        except OSError as error:
            logging.warning("Other processes may decode the same images: %s.", error)
        try:
            yield
        finally:
            # Who waits for it finds the images when it is let in, and who comes later, before.
            with contextlib.suppress(OSError):
                os.remove(lock)


def _read(path: str, count: int, shape: tuple[int, int, int]) -> Stored | None:
    """Returns what `_write` wrote of `count` images; None if it is not there, or not whole."""
    if not os.path.exists(path):
        return None
    notes = _notes(path)
    try:
        missing = json.loads(read_bytes(notes)) if os.path.exists(notes) else {}
    except ValueError as error:
        logging.warning("Images are decoded again, for %s is damaged: %s", notes, error)
        return None
    remaining = count - len(missing)
    if os.path.getsize(path) != remaining * math.prod(shape):
        logging.warning("Images are decoded again, for %s does not hold all of them.", path)
        return None
    if not remaining:  # an empty file cannot be mapped
        return Stored(np.empty((0, *shape), np.uint8), missing)
    return Stored(np.memmap(path, np.uint8, mode="r", shape=(remaining, *shape)), missing)


def _notes(path: str) -> str:
    """Returns the path of the file that says which images are missing at `path`, if any are."""
    return f"{path}.json"


def _write(
    batches: Iterable[np.ndarray], left_out: Callable[[], dict[str, str]], path: str
) -> None:
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for batch in batches:
            file.write(batch.tobytes())
        if missing := left_out():
            write_atomically(_notes(path), to_json(missing))
        elif os.path.exists(_notes(path)):
            os.remove(_notes(path))
