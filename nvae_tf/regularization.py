"""Spectral and batch-norm regularisation (SPEC section 6; paper section 3.2, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.layers.convolution import KernelBank
from nvae_tf.model import NVAE

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

    def spectral(self, stacks: Sequence[tf.Tensor], update: bool = True) -> tf.Tensor:
        """Sum of the largest singular values (scalar).

        Args:
          stacks: what `self.kernels.use()` yields.
          update: whether to iterate (4 times; 40 on the first call) and keep the vectors; without,
            the value is that of the vectors as they are.
        """
        count = tf.where(self.started > 0, _ITERATIONS, _FIRST_ITERATIONS) if update else 0
        total = tf.constant(0.0)
        for variable, stack in zip(self.vectors, stacks):
            matrices = tf.reshape(stack, [stack.shape[0], -1, stack.shape[-1]])
            left, right = _power_iteration(tf.stop_gradient(matrices), variable, count)
            if update:
                variable.assign(right)
            total += tf.reduce_sum(left * tf.linalg.matvec(matrices, right))
        if update:
            self.started.assign(1.0)
        return total

    def batch_norm(self) -> tf.Tensor:
        """Sum over the batch normalisations of the largest |gamma| (scalar)."""
        return tf.add_n(
            [
                tf.reduce_sum(
                    tf.reduce_max(tf.abs(tf.stack([tf.convert_to_tensor(g) for g in group])), 1)
                )
                for group in self._scales
            ]
            or [tf.constant(0.0)]
        )


def _by_width(variables: Sequence) -> list[list]:
    groups: dict[int, list] = {}
    for variable in variables:
        groups.setdefault(int(variable.shape[0]), []).append(variable)
    return list(groups.values())


def _power_iteration(
    matrices: tf.Tensor, right: tf.Tensor, count: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Singular vectors of (n, a, b) matrices: left (n, a) and right (n, b), without gradient."""

    def to_left(right):
        return _unit(tf.linalg.matvec(matrices, right))

    def step(i, right):
        return i + 1, _unit(tf.linalg.matvec(matrices, to_left(right), transpose_a=True))

    right = tf.convert_to_tensor(right)
    _, right = tf.while_loop(lambda i, _: i < count, step, (0, right))
    return tf.stop_gradient(to_left(right)), tf.stop_gradient(right)


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    return vectors / (tf.norm(vectors, axis=-1, keepdims=True) + _MIN_NORM)
