"""The exponential moving average of the weights, which evaluates better than the weights do.

As in VDVAE (Child 2021, arXiv 2011.10650); an option, off for the paper's presets.
"""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.model.stacks import VariableStacks


class WeightAverage(tf.Module):
    """`average ← decay · average + (1 − decay) · weights` after every step; starts as the weights.

    Create it under the strategy's scope.

    Args:
      weights: what is averaged.
      decay: in (0, 1).
    """

    def __init__(self, weights: VariableStacks, decay: float):
        super().__init__(name="weight_average")
        self._weights = weights
        self._decay = decay
        self.averages = [
            tf.Variable(stack, trainable=False, name="average")
            for stack in weights.variables_by_stack
        ]

    def update(self) -> None:
        """To be called after a step, outside of replicas."""

        def move(average, stack):
            average.assign_add((1 - self._decay) * (stack - average))

        extended = tf.distribute.get_strategy().extended
        for average, stack in zip(self.averages, self._weights.variables_by_stack):
            extended.update(average, move, args=(stack,))

    def load(self) -> None:
        """Starts again from the weights."""
        for average, stack in zip(self.averages, self._weights.variables_by_stack):
            average.assign(stack)

    def store(self) -> None:
        """Copies the average into the model's variables."""
        values = [tf.convert_to_tensor(average) for average in self.averages]
        for variable, value in self._weights.state_mapping(values):
            variable.assign(value)
