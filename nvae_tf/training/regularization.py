"""Spectral and batch-norm regularisation (paper, section 3.2 and appendix A)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.model.compilation import graph_node
from nvae_tf.model.layers.kernels import KernelBank
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import StackFunction, by_shape, stack_variables

ITERATIONS = 4  # of the power iteration, in every step
FIRST_ITERATIONS = 40  # in the first step, whose vectors are random
_MIN_NORM = 1e-12


class Regularizer:
    """The sum of the largest singular values of all kernels, and of the largest BN scales.

    A kernel counts as a matrix [everything else, C_out], after weight normalisation and masking.
    Its singular value comes from power iteration with a vector that lives from step to step; the
    vectors belong to whoever trains, and are arguments and results here.

    Args:
      model: The model whose convolutions and batch normalisations count.

    Attributes:
      kernels: The effective kernels of all convolutions.
    """

    def __init__(self, model: NVAE):
        self.kernels = KernelBank(model.convolutions())
        scales = [layer.gamma for layer in model.batch_normalizations()]
        self._scales = by_shape((v, v.shape) for v in scales)

    def variable_groups(self) -> list[list[keras.Variable]]:
        """Returns the groups of variables that kernels and `batch_norm` need stacked."""
        return self.kernels.variable_groups() + self._scales

    def initial_vectors(self, seed: int) -> list[tf.Tensor]:
        """Draws a start of the power iteration: one tensor (n, C_out) for each stack of kernels."""
        random = np.random.default_rng(seed)
        return [
            tf.cast(random.normal(size=(len(layers), layers[0].filters)), tf.float32)
            for layers in self.kernels.stacks
        ]

    @property
    def layers(self) -> list[str]:
        """The paths of the N convolutions, in the order of `singular_values`."""
        return [layer.path for layers in self.kernels.stacks for layer in layers]

    def singular_values(
        self,
        kernels: Sequence[tf.Tensor],
        vectors: Sequence[tf.Tensor],
        iterations: int | tf.Tensor = ITERATIONS,
        in_xla: bool = False,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Computes the largest singular value of every kernel, whose sum is penalised.

        Args:
          kernels: The stacks (n, h, w, in, C_out) that `self.kernels.compute()` returned.
          vectors: The right singular vectors (n, C_out) of the step before.
          iterations: How often to iterate; with 0 the values are those of the vectors as they are.
          in_xla: Whether XLA compiles it, in the form that is fast on accelerators.

        Returns:
          The singular values (N,), and the vectors after the iterations.
        """
        stacks = [tf.reshape(stack, [stack.shape[0], -1, stack.shape[-1]]) for stack in kernels]
        fixed = [tf.stop_gradient(stack) for stack in stacks]
        if in_xla:
            moved = _iterate_all(fixed, vectors, iterations)
        else:
            moved = [_power_iteration(*pair, iterations) for pair in zip(fixed, vectors)]
        moved = [tf.ensure_shape(new, old.shape) for new, old in zip(moved, vectors)]
        values = [_singular_values(*pair) for pair in zip(stacks, moved)]
        return tf.concat(values, axis=0), moved

    def batch_norm(self, stack: StackFunction = stack_variables) -> tf.Tensor:
        """Computes the sum over the batch normalisations of the largest |gamma| (scalar).

        Args:
          stack: A function that gives the stacks of `variable_groups`.
        """
        return tf.add_n(
            [tf.reduce_sum(tf.reduce_max(tf.abs(stack(group)), axis=1)) for group in self._scales]
            or [tf.constant(0.0)]
        )


# The signature makes it one function for stacks of all shapes.
@functools.partial(
    graph_node,
    input_signature=[
        tf.TensorSpec([None, None, None]),
        tf.TensorSpec([None, None]),
        tf.TensorSpec([], tf.int32),
    ],
)
def _power_iteration(matrices: tf.Tensor, right: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns right singular vectors (n, b) of matrices (n, a, b) after so many iterations.

    It takes one matrix after the other: a matrix fits into the cache, where all iterations but the
    first find it. A whole stack would be read from memory twice in each of them.
    """

    def iterate(number: tf.Tensor) -> tf.Tensor:
        matrix = matrices[number]  # without a copy, unlike the elements of a map

        def step(i: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            left = _unit(tf.matmul(matrix, right))
            return i + 1, _unit(tf.matmul(matrix, left, transpose_a=True))

        return tf.while_loop(lambda i, _: i < count, step, (0, right[number][:, None]))[1][:, 0]

    numbers = tf.range(tf.shape(matrices)[0])
    return tf.map_fn(iterate, numbers, fn_output_signature=tf.TensorSpec([None]))


def _iterate_all(
    stacks: Sequence[tf.Tensor], vectors: Sequence[tf.Tensor], count: int | tf.Tensor
) -> list[tf.Tensor]:
    """Does what `_power_iteration` does with whole stacks, and with all of them in one loop.

    A GPU waits for the host at every turn of a loop, so few loops with large turns are better.
    """

    def step(i: tf.Tensor, rights: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        lefts = [_unit(tf.matmul(stack, right)) for stack, right in zip(stacks, rights)]
        moved = [tf.matmul(s, left, transpose_a=True) for s, left in zip(stacks, lefts)]
        return i + 1, [_unit(right) for right in moved]

    rights = [vector[..., None] for vector in vectors]
    _, moved = tf.while_loop(lambda i, _: i < count, step, (tf.constant(0), rights))
    return [right[..., 0] for right in moved]


@tf.custom_gradient
def _singular_values(matrices: tf.Tensor, right: tf.Tensor) -> tuple:
    """Returns |M v| (n,) of matrices (n, a, b) and vectors v (n, b), which are kept fixed."""
    product = tf.linalg.matvec(matrices, right)

    def gradient(d_values: tf.Tensor) -> tuple[tf.Tensor, None]:
        left = _unit(product, axis=-1) * d_values[:, None]
        return left[:, :, None] * right[:, None, :], None

    return tf.norm(product, axis=1), gradient


def _unit(vectors: tf.Tensor, axis: int = -2) -> tf.Tensor:
    return vectors / (tf.norm(vectors, axis=axis, keepdims=True) + _MIN_NORM)
