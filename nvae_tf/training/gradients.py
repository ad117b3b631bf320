"""Gradients that pass through shared kernels in two stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

_A = TypeVar("_A")
_B = TypeVar("_B")


def two_stage_gradients(
    weights: list[tf.Tensor],
    prepare: Callable[[list[tf.Tensor]], tuple[list[tf.Tensor], tf.Tensor, _A]],
    compute: Callable[[list[tf.Tensor], list[tf.Tensor]], tuple[tf.Tensor, _B]],
    penalty_factor: tf.Tensor,
) -> tuple[list[tf.Tensor], _A, _B]:
    """Computes the gradients of `loss + penalty_factor · penalty` with respect to weights.

    With one tape, TensorFlow would go back through normalisation and penalty of the kernels as soon
    as it can, which is while the activations of the data's way fill the memory. So a first tape
    covers what depends on the weights alone, a second one the rest, and the first is gone back
    through after the second.

    Args:
      weights: What to differentiate by.
      prepare: Computes kernels, penalty (scalar) and anything else from the weights.
      compute: Computes the loss (scalar) and anything else from weights and kernels.
      penalty_factor: A scalar.

    Returns:
      The gradients, one for each weight; what else `prepare` returned; what else `compute` did.
    """
    with tf.GradientTape(watch_accessed_variables=False) as weight_tape:
        weight_tape.watch(weights)
        kernels, penalty, prepared = prepare(weights)
    with tf.GradientTape(watch_accessed_variables=False) as data_tape:
        data_tape.watch([weights, kernels])
        loss, computed = compute(weights, kernels)
    from_loss, of_kernels = data_tape.gradient(loss, [weights, kernels])
    with tf.control_dependencies(of_kernels):
        through_kernels = weight_tape.gradient(
            [*kernels, penalty], weights, [*of_kernels, penalty_factor]
        )
    gradients = [
        tf.add_n([gradient for gradient in pair if gradient is not None])
        for pair in zip(from_loss, through_kernels)
    ]
    return gradients, prepared, computed
