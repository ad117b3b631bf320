"""AdaMax as the paper's models were trained with, and the learning-rate schedule (SPEC section 6).

It differs from `keras.optimizers.Adamax` in where epsilon stands (inside the maximum) and in the
weight decay (L2, in the gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from nvae_tf.config import OptimizerConfig


class AdaMax(tf.Module):
    """AdaMax (Kingma and Ba 2015, section 7.1) with L2 weight decay.

    ```none
    g ← g + weight_decay w
    m ← β₁ m + (1 − β₁) g
    u ← max(β₂ u, |g| + ε)
    w ← w − learning_rate / (1 − β₁ᵗ) · m / u
    ```

    TensorFlow's kernel, which needs no temporary tensors, has ε outside of the maximum. It is given
    u − ε instead: max(β₂ (u − c − ε), |g|) + ε is the u above for c = ε (1 − β₂) / β₂.

    Create it under the strategy's scope; call `apply` outside of replicas, with gradients that are
    already summed over them.

    Args:
      variables: to be updated, in the order in which `apply` gets their gradients.
      config: betas, epsilon and weight decay.
    """

    def __init__(self, variables: Sequence[tf.Variable], config: OptimizerConfig):
        super().__init__(name="adamax")
        self._config = config
        self._variables = list(variables)
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        self.momentum = [self._slot(variable) for variable in self._variables]
        self.infinity_norm = [self._slot(variable) for variable in self._variables]  # less ε

    @staticmethod
    def _slot(variable: tf.Variable) -> tf.Variable:
        return tf.Variable(tf.zeros(variable.shape), trainable=False, name="slot")

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: float | tf.Tensor,
        multiplier: tf.Tensor | None = None,
    ) -> None:
        """One step.

        Args:
          gradients: one per variable, of its shape; under a strategy, one for every replica.
          learning_rate: scalar.
          multiplier: of the gradients, scalar; None for 1.

        Raises:
          ValueError: if there are too few gradients or too many.
        """
        if len(gradients) != len(self._variables):
            raise ValueError(
                f"Expected {len(self._variables)} gradients, received {len(gradients)}."
            )
        config = self._config
        decay = tf.pow(config.beta_1, tf.cast(self.iterations.assign_add(1), tf.float32))
        shift = config.epsilon * (1 - config.beta_2) / config.beta_2

        def update(variable, momentum, norm, gradient):
            if multiplier is not None:
                gradient *= multiplier
            norm.assign(norm - shift)
            tf.raw_ops.ResourceApplyAdaMax(
                var=variable.handle,
                m=momentum.handle,
                v=norm.handle,
                beta1_power=decay,
                lr=tf.cast(learning_rate, tf.float32),
                beta1=config.beta_1,
                beta2=config.beta_2,
                epsilon=config.epsilon,
                grad=gradient + config.weight_decay * variable,
            )

        extended = tf.distribute.get_strategy().extended
        slots = zip(self._variables, self.momentum, self.infinity_norm, gradients)
        for variable, momentum, norm, gradient in slots:
            extended.update(variable, update, args=(momentum, norm, gradient))


def learning_rate_at(
    step: int | tf.Tensor, config: OptimizerConfig, warmup_steps: int, total_steps: int
) -> tf.Tensor:
    """Linear from 0 over the warm-up, then cosine down to the minimum (scalar)."""
    step = tf.cast(step, tf.float32)
    warmup = config.learning_rate * step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
    decayed = config.learning_rate_min + cosine * (config.learning_rate - config.learning_rate_min)
    return tf.where(step < warmup_steps, warmup, decayed)
