"""Standard-normal noise of which any rows can be drawn alone."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

_PHILOX = 1  # TensorFlow's number for the generator
_VALUES_PER_COUNT = 4


def normal_rows(
    rows: int | tf.Tensor, shape: Sequence[int], seed: tf.Tensor, first: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draws rows of the endless array that a seed stands for.

    `tf.random.stateless_normal([n, *shape], seed)` gives its first n rows on CPUs and GPUs. Philox
    is a function of a seed and a counter, which advances by one for every four values, so a replica
    draws its own rows of a batch without those before.

    Args:
      rows: How many.
      shape: The shape of a row.
      seed: Two integers.
      first: The number of the first row, from 0.

    Returns:
      (rows, *shape) float32.

    #### References

    Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011.
    """
    size = 1
    for length in shape:
        size *= length
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    before = tf.cast(first, tf.uint64) * size
    # The seed is in the counter's upper half; the lower one begins at 0 and counts.
    counter = tf.stack([counter[0] + before // _VALUES_PER_COUNT, counter[1]])

    def draw(shape: Sequence[int | tf.Tensor]) -> tf.Tensor:
        return tf.raw_ops.StatelessRandomNormalV2(
            shape=shape, key=key, counter=counter, alg=_PHILOX
        )

    if size % _VALUES_PER_COUNT == 0:
        return draw([rows, *shape])
    # The first row begins within the four values of a counter.
    start = tf.cast(before % _VALUES_PER_COUNT, tf.int32)
    values = draw([rows * size + _VALUES_PER_COUNT])
    return tf.reshape(values[start : start + rows * size], [rows, *shape])
