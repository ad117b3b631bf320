"""Effective kernels: what convolutions use after weight normalisation and masking.

A network has hundreds of kernels in a few shapes, so `KernelBank` computes all kernels of one shape
in one batched operation. That keeps the graph small, and gives the spectral regularisation the
stacks that it iterates on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from nvae_tf.model.stacks import StackFunction, StackLayout, stack_variables

if TYPE_CHECKING:  # convolutions compute their own kernels with what stands here
    from nvae_tf.model.layers.convolution import Convolution

_NORM_OFFSET = 1e-5  # in w = exp(g) v / (|v| + offset)


class KernelBank:
    """The effective kernels of many convolutions, those of one class, shape and type in one stack.

    Args:
      layers: Built convolutions; the order of the stacks follows theirs.

    Attributes:
      stacks: The layers of each stack.
      layout: The place of every kernel, by the path of its variable.
    """

    def __init__(self, layers: Iterable[Convolution]):
        stacks: dict[tuple, list[Convolution]] = {}
        for layer in layers:
            key = (type(layer), tuple(layer.kernel.shape), layer.compute_dtype)
            stacks.setdefault(key, []).append(layer)
        self.stacks = list(stacks.values())
        self.layout = StackLayout([], [[layer.kernel for layer in s] for s in self.stacks])

    def variable_groups(self) -> list[list[keras.Variable]]:
        """Returns the groups of variables that `compute` needs stacked."""
        groups = [
            list(group)
            for layers in self.stacks
            for group in zip(*(layer.kernel_variables() for layer in layers))
        ]
        # Kernels first, then scales.
        return sorted(groups, key=lambda group: len(group[0].shape) == 1)

    def compute(self, stack: StackFunction = stack_variables) -> list[tf.Tensor]:
        """Computes all effective kernels: one tensor (n, h, w, in, out) per stack, float32.

        Args:
          stack: A function that gives the stacks of `variable_groups`.
        """
        return [type(layers[0]).compute_kernels(layers, stack) for layers in self.stacks]

    def cast(self, stacks: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Casts what `compute` gave to the type that the layers of each stack compute in."""
        types = [layers[0].compute_dtype for layers in self.stacks]
        return [tf.cast(stack, dtype) for stack, dtype in zip(stacks, types)]

    def split(self, stacks: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what `compute` or `cast` gave by the path of the kernel's variable."""
        return self.layout.split(stacks)


def weight_norm(v: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """Returns `exp(g) v / (|v| + 1e-5)` for kernels (n, h, w, in, out) and g (n, out).

    Its gradient is written out: it reads and writes the weights about half as often.
    """

    @tf.custom_gradient
    def normalize(v: tf.Tensor, log_scale: tf.Tensor) -> tuple:
        norm = kernel_norm(v)
        scale = tf.exp(log_scale) / (norm + _NORM_OFFSET)

        def gradient(dw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            d_scale = tf.reduce_sum(dw * v, axis=[1, 2, 3])
            d_log_scale = d_scale * scale
            # d|v| / dv = v / |v|, and 0 where the norm is 0
            radial = tf.math.divide_no_nan(-d_log_scale, (norm + _NORM_OFFSET) * norm)
            return dw * _per_filter(scale) + v * _per_filter(radial), d_log_scale

        return v * _per_filter(scale), gradient

    return normalize(v, log_scale)


def _per_filter(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None, :]


def kernel_norm(kernels: tf.Tensor) -> tf.Tensor:
    """Returns the norms per output channel of kernels (..., h, w, in, out)."""
    return tf.sqrt(tf.reduce_sum(tf.square(kernels), axis=[-4, -3, -2]))
