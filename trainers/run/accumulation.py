"""The sum over the parts of a batch that does not fit into memory at once."""

from __future__ import annotations

import tensorflow as tf

from trainers.run.step import Share


class Accumulator(tf.Module):
    """Means over the parts of a batch, in variables that keep them from one part to the next.

    Args:
      strategy: Where the variables live.
      parts: How many parts a batch has.
    """

    def __init__(self, strategy: tf.distribute.Strategy, parts: int):
        super().__init__(name="accumulator")
        self._strategy = strategy
        self._parts = parts
        self._sums: Share | None = None

    def add(self, share: Share) -> None:
        """Adds a part's share; outside of replicas."""
        if self._sums is None:  # its shapes are known when the first part has been traced
            with tf.init_scope(), self._strategy.scope():
                self._sums = tf.nest.map_structure(self._zero, share)

        def add(total: tf.Variable, value: tf.Tensor) -> None:
            total.assign_add(tf.cast(value, tf.float32) / self._parts)

        for total, value in zip(tf.nest.flatten(self._sums), tf.nest.flatten(share)):
            self._strategy.extended.update(total, add, args=(value,))

    def _zero(self, value: tf.Tensor) -> tf.Variable:
        local = self._strategy.experimental_local_results(value)[0]
        return tf.Variable(tf.zeros(local.shape), trainable=False)

    def read(self) -> Share:
        """Returns the means over the parts that were added."""
        return tf.nest.map_structure(tf.convert_to_tensor, self._sums)

    def reset(self) -> None:
        """Starts again from zero."""
        for total in tf.nest.flatten(self._sums):
            total.assign(tf.zeros_like(total))
