"""Batches that do not depend on each other, computed on all devices at once.

Evaluation and sampling draw an image's noise from its number, so their results do not depend on
which device computes which batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 2  # items for each device that are computed or wait to be, enough to keep it busy


def all_devices() -> list[str]:
    """Returns the names of the devices that compute batches side by side: all GPUs, or the CPU.

    A CPU counts once, for a batch uses all of its cores.
    """
    gpus = tf.config.list_logical_devices("GPU")
    return [device.name for device in gpus or tf.config.list_logical_devices("CPU")[:1]]


def on_devices(
    function: Callable[[Item], Result], items: Iterable[Item], devices: Sequence[str] | None = None
) -> Iterator[Result]:
    """Applies a function to items, each on the first device that is free.

    Args:
      function: A function that may be called in several threads, each in its device's scope. It
        returns when its result is there (NumPy arrays, say), else it keeps no device busy.
      items: The arguments; they are taken as devices become free.
      devices: The names of the devices; None: `all_devices()`.

    Yields:
      The results, in the order of the items.
    """
    devices = all_devices() if devices is None else devices
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in devices:
        free.put(name)

    def run(item: Item) -> Result:
        name = free.get()
        try:
            with tf.device(name):
                return function(item)
        finally:
            free.put(name)

    if len(devices) == 1:  # without threads, so that an interrupt arrives at once
        yield from map(run, items)
        return
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(run, item))
                if len(waiting) >= _WAITING * len(devices):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches_on_devices(
    function: Callable[[int, tf.Tensor], tuple[np.ndarray, ...]],
    batches: Iterable[tf.Tensor],
    devices: Sequence[str] | None = None,
    after_batch: Callable[[int], None] | None = None,
    first: int = 0,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Computes arrays of images, batch by batch, as `on_devices` does.

    A batch that is smaller than the first one is filled up with its last image, whose further rows
    are dropped again: for another size, a model would be traced, and perhaps compiled, once more.

    Args:
      function: Maps the number of a batch's first image, and the batch, to arrays with a row for
        each image.
      batches: Images (B, H, W, C).
      devices: The names of the devices; None: `all_devices()`.
      after_batch: A function that is called after each batch with its size, for progress.
      first: The number of the first image of the first batch.

    Yields:
      The arrays of each batch.
    """

    def compute(item: tuple[int, tf.Tensor, int]) -> tuple[np.ndarray, ...]:
        number, images, missing = item
        if not missing:
            return function(number, images)
        filled = tf.concat([images, tf.repeat(images[-1:], missing, axis=0)], axis=0)
        return tuple(array[: len(images)] for array in function(number, filled))

    for arrays in on_devices(compute, _with_missing(batches, first), devices):
        yield arrays
        if after_batch:
            after_batch(len(arrays[0]))


def filled_rows(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Divides rows into batches of one size, for a model that is traced for that size.

    Args:
      count: The number of rows.
      size: The number of rows in a batch.

    Yields:
      The numbers of a batch's rows, of which the last batch repeats its last one until it is full,
      and how many of them are no repetitions.
    """
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1), min(size, count - first)


def _with_missing(
    batches: Iterable[tf.Tensor], number: int
) -> Iterator[tuple[int, tf.Tensor, int]]:
    """Yields the number of a batch's first image, the batch, and how many images it lacks.

    Images are counted over all batches, from `number` on. A batch lacks those by which the first
    one was larger.
    """
    size = 0
    for batch in batches:
        size = size or len(batch)
        yield number, batch, max(size - len(batch), 0)
        number += len(batch)
