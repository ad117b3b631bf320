"""Spectral and batch-norm regularisation (SPEC section 6; paper section 3.2, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.model.layers.convolution import KernelBank
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import StackFunction, stack_variables

_ITERATIONS = 4
_FIRST_ITERATIONS = 40
_MIN_NORM = 1e-12


class Regularizer(tf.Module):
    """The sum of the largest singular values of all kernels, and of the largest BN scales.

    A kernel counts as a matrix [everything else, C_out], after weight normalisation and masking.
    Its singular value comes from power iteration; the vectors live from step to step in variables,
    one per kernel shape, and belong in the checkpoint.

    Args:
      model: whose convolutions and batch normalisations count.
      seed: of the vectors' random start.
    """

    def __init__(self, model: NVAE, seed: int = 0):
        super().__init__(name="regularizer")
        self.kernels = KernelBank(model.convolutions())
        self._scales = _by_width([bn.gamma for bn in model.batch_normalizations()])
        random = np.random.default_rng(seed)
        self.vectors = [
            self._variable(random.normal(size=(len(layers), layers[0].filters)), f"vectors_{i}")
            for i, layers in enumerate(self.kernels.stacks)
        ]
        self.started = self._variable(0.0, "started")

    @staticmethod
    def _variable(value, name: str) -> tf.Variable:
        # All replicas compute the same value from the same weights.
        return tf.Variable(
            tf.cast(value, tf.float32),
            trainable=False,
            name=name,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def variable_groups(self) -> list[list[keras.Variable]]:
        """The variables that kernels and `batch_norm` need stacked."""
        return self.kernels.variable_groups() + self._scales

    @property
    def layers(self) -> list[str]:
        """Paths of the N convolutions, in the order of `singular_values`."""
        return [layer.path for layers in self.kernels.stacks for layer in layers]

    def singular_values(
        self, stacks: Sequence[tf.Tensor], iterate: bool | tf.Tensor = True
    ) -> tf.Tensor:
        """The largest singular value of every kernel (N,); their sum is what is penalised.

        Args:
          stacks: what `self.kernels.compute()` returned.
          iterate: whether to iterate (4 times; 40 on the first call) and keep the vectors; without,
            the values are those of the vectors as they are.
        """
        count = tf.where(self.started > 0, _ITERATIONS, _FIRST_ITERATIONS)
        count = tf.where(iterate, count, 0)
        values = []
        for variable, stack in zip(self.vectors, stacks):
            matrices = tf.reshape(stack, [stack.shape[0], -1, stack.shape[-1]])
            right = _power_iteration(matrices, tf.convert_to_tensor(variable), count)
            variable.assign(right)
            values.append(_singular_values(matrices, right))
        self.started.assign(1.0)
        return tf.concat(values, axis=0)

    def batch_norm(self, stack: StackFunction = stack_variables) -> tf.Tensor:
        """Sum over the batch normalisations of the largest |gamma| (scalar)."""
        return tf.add_n(
            [tf.reduce_sum(tf.reduce_max(tf.abs(stack(group)), axis=1)) for group in self._scales]
            or [tf.constant(0.0)]
        )


def _by_width(variables: Sequence[keras.Variable]) -> list[list[keras.Variable]]:
    groups: dict[int, list] = {}
    for variable in variables:
        groups.setdefault(int(variable.shape[0]), []).append(variable)
    return list(groups.values())


def _power_iteration(matrices: tf.Tensor, right: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Right singular vectors (n, b) of matrices (n, a, b), without gradient."""
    matrices = tf.stop_gradient(matrices)

    def step(i, right):
        left = _unit(tf.linalg.matvec(matrices, right))
        return i + 1, _unit(tf.linalg.matvec(matrices, left, transpose_a=True))

    return tf.stop_gradient(tf.while_loop(lambda i, _: i < count, step, (0, right))[1])


@tf.custom_gradient
def _singular_values(matrices: tf.Tensor, right: tf.Tensor):
    """|M v| (n,) of matrices (n, a, b) and their right singular vectors v (n, b), kept fixed."""
    product = tf.linalg.matvec(matrices, right)

    def gradient(d_values):
        left = _unit(product) * d_values[:, None]
        return left[:, :, None] * right[:, None, :], None

    return tf.norm(product, axis=1), gradient


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    return vectors / (tf.norm(vectors, axis=-1, keepdims=True) + _MIN_NORM)
