"""Random numbers of which any rows can be drawn alone.

A seed stands for an endless array. What belongs to image i, or to row i of a batch, is its row i,
whoever draws it: a replica draws its own rows of a batch, and an evaluation gives the same numbers
in batches of any size.

#### References

Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011, for Philox, which is a
function of a seed and a counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

_PHILOX = 1  # TensorFlow's number for the generator
_VALUES_PER_COUNT = 4


def normal_rows(
    rows: int | tf.Tensor, shape: Sequence[int], seed: tf.Tensor, first: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draws standard-normal rows of the endless array that a seed stands for.

    `tf.random.stateless_normal([n, *shape], seed)` gives its first n rows on CPUs and GPUs.

    Args:
      rows: How many.
      shape: The shape of a row.
      seed: Two integers.
      first: The number of the first row, from 0.

    Returns:
      (rows, *shape) float32.
    """
    return _rows(tf.raw_ops.StatelessRandomNormalV2, rows, shape, seed, first)


def uniform_rows(
    rows: int | tf.Tensor, shape: Sequence[int], seed: tf.Tensor, first: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draws rows in [0, 1), as `normal_rows` does; see `tf.random.stateless_uniform`."""
    return _rows(tf.raw_ops.StatelessRandomUniformV2, rows, shape, seed, first)


def _rows(
    operation: Callable[..., tf.Tensor],
    rows: int | tf.Tensor,
    shape: Sequence[int],
    seed: tf.Tensor,
    first: int | tf.Tensor,
) -> tf.Tensor:
    size = math.prod(shape)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    before = tf.cast(first, tf.uint64) * size
    # The seed is in the counter's upper half; the lower one begins at 0 and counts.
    counter = tf.stack([counter[0] + before // _VALUES_PER_COUNT, counter[1]])

    def draw(shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
        return operation(shape=shape, key=key, counter=counter, alg=_PHILOX)

    if size % _VALUES_PER_COUNT == 0:
        return draw([rows, *shape])
    # The first row begins within the four values of a counter.
    start = tf.cast(before % _VALUES_PER_COUNT, tf.int32)
    values = draw([rows * size + _VALUES_PER_COUNT])
    return tf.reshape(values[start : start + rows * size], [rows, *shape])
