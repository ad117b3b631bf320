"""AdaMax as the paper's models were trained with, and the learning-rate schedule (SPEC section 6).

It differs from `keras.optimizers.Adamax` in where epsilon stands (inside the maximum) and in the
weight decay (L2, in the gradient). It also treats all variables of one shape in one operation:
a deep NVAE has over a thousand variables in a few dozen shapes, and one update each makes up most
of the time that tracing takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
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

    Create it under the strategy's scope; call `apply` outside of replicas, with gradients that are
    already summed over them.

    Args:
      variables: to be updated, in the order in which `apply` gets their gradients.
      config: betas, epsilon and weight decay.
    """

    def __init__(self, variables: Sequence[keras.Variable], config: OptimizerConfig):
        super().__init__(name="adamax")
        self._config = config
        self._variables = list(variables)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, variable in enumerate(self._variables):
            groups.setdefault(tuple(variable.shape), []).append(index)
        self._groups = list(groups.values())
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        slots = [
            [
                tf.Variable(tf.zeros([len(indices), *shape]), trainable=False, name=slot)
                for shape, indices in groups.items()
            ]
            for slot in ("momentum", "infinity_norm")
        ]
        self.momentum, self.infinity_norm = slots

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: float | tf.Tensor) -> None:
        """One step.

        Args:
          gradients: one per variable, of its shape.
          learning_rate: scalar.

        Raises:
          ValueError: if a gradient is None, or there are too few or too many.
        """
        if len(gradients) != len(self._variables):
            raise ValueError(
                f"Expected {len(self._variables)} gradients, received {len(gradients)}."
            )
        for variable, gradient in zip(self._variables, gradients):
            if gradient is None:
                raise ValueError(f"The loss does not depend on {variable.path!r}: no gradient.")
        config = self._config
        step = tf.cast(self.iterations.assign_add(1), tf.float32)
        rate = learning_rate / (1 - tf.pow(config.beta_1, step))
        for indices, momentum, norm in zip(self._groups, self.momentum, self.infinity_norm):
            weights = tf.stack([tf.convert_to_tensor(self._variables[i]) for i in indices])
            gradient = tf.stack([gradients[i] for i in indices]) + config.weight_decay * weights
            m = momentum.assign(config.beta_1 * momentum + (1 - config.beta_1) * gradient)
            u = norm.assign(tf.maximum(config.beta_2 * norm, tf.abs(gradient) + config.epsilon))
            updated = weights - rate * tf.convert_to_tensor(m) / tf.convert_to_tensor(u)
            for index, value in zip(indices, tf.unstack(updated)):
                self._variables[index].assign(value)


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
