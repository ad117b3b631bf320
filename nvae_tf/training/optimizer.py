"""AdaMax as the paper's models were trained with, and the learning-rate schedule.

It differs from `keras.optimizers.Adamax` in where epsilon stands (inside the maximum) and in the
weight decay (L2, in the gradient). The paper's appendix A has the settings, docs/model.md the
equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from nvae_tf.config import OptimizerConfig


class AdaMax:
    """AdaMax (Kingma and Ba 2015, section 7.1) with L2 weight decay.

    ```none
    g ← g + weight_decay w
    m ← β₁ m + (1 − β₁) g
    u ← max(β₂ u, |g| + ε)
    w ← w − learning_rate / (1 − β₁ᵗ) · m / u
    ```

    TensorFlow's kernel, which needs no temporary tensors, has ε outside of the maximum. It is given
    u − ε instead: max(β₂ (u − c − ε), |g|) + ε is the u above for c = ε (1 − β₂) / β₂.

    It owns nothing: weights and slots are arguments, all of them variables.

    Args:
      config: Betas, epsilon and weight decay.
    """

    def __init__(self, config: OptimizerConfig):
        self._config = config

    def apply(
        self,
        weights: Sequence[tf.Variable],
        momentum: Sequence[tf.Variable],
        infinity_norm: Sequence[tf.Variable],
        iterations: tf.Variable,
        gradients: Sequence[tf.Tensor],
        learning_rate: float | tf.Tensor,
        multiplier: tf.Tensor | None = None,
    ) -> None:
        """Takes one step; under a strategy, outside of replicas, with summed gradients.

        Args:
          weights: The variables to be updated.
          momentum: m of each of them, zero at the start.
          infinity_norm: u − ε of each of them, zero at the start.
          iterations: The number of steps taken, int64.
          gradients: One for each variable, of its shape; under a strategy, one for every replica.
          learning_rate: A scalar.
          multiplier: A scalar factor of the gradients; None for 1.

        Raises:
          ValueError: There are too few gradients or too many.
        """
        if len(gradients) != len(weights):
            raise ValueError(f"Expected {len(weights)} gradients, received {len(gradients)}.")
        config = self._config
        decay = tf.pow(config.beta_1, tf.cast(iterations.assign_add(1), tf.float32))
        shift = config.epsilon * (1 - config.beta_2) / config.beta_2

        def update(
            weight: tf.Variable, m: tf.Variable, norm: tf.Variable, gradient: tf.Tensor
        ) -> None:
            if multiplier is not None:
                gradient *= multiplier
            norm.assign(norm - shift)
            tf.raw_ops.ResourceApplyAdaMax(
                var=weight.handle,
                m=m.handle,
                v=norm.handle,
                beta1_power=decay,
                lr=tf.cast(learning_rate, tf.float32),
                beta1=config.beta_1,
                beta2=config.beta_2,
                epsilon=config.epsilon,
                grad=gradient + config.weight_decay * weight,
            )

        extended = tf.distribute.get_strategy().extended
        for weight, m, norm, gradient in zip(weights, momentum, infinity_norm, gradients):
            extended.update(weight, update, args=(m, norm, gradient))


def learning_rate_at(
    step: int | tf.Tensor, config: OptimizerConfig, warmup_steps: int, total_steps: int
) -> tf.Tensor:
    """Returns the learning rate: linear from 0 over the warm-up, then cosine to the minimum."""
    step = tf.cast(step, tf.float32)
    warmup = config.learning_rate * step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
    decayed = config.learning_rate_min + cosine * (config.learning_rate - config.learning_rate_min)
    return tf.where(step < warmup_steps, warmup, decayed)
