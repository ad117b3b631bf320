"""The exponential moving average of the weights, which evaluates better than the weights do.

As in VDVAE (Child 2021, arXiv 2011.10650); an option, off for the paper's presets.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def move_weight_average(
    averages: Sequence[tf.Variable], weights: Sequence[tf.Variable], decay: float
) -> None:
    """Computes `average ← decay · average + (1 − decay) · weight`; outside of replicas.

    Args:
      averages: The variables to be updated.
      weights: The variable that each of them follows.
      decay: A number in (0, 1).
    """

    def move(average: tf.Variable, weight: tf.Tensor) -> None:
        average.assign_add((1 - decay) * (weight - average))

    extended = tf.distribute.get_strategy().extended
    for average, weight in zip(averages, weights):
        extended.update(average, move, args=(weight,))
