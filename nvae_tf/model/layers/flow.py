"""The volume-preserving inverse-autoregressive flow of the posterior (SPEC section 5)."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.model.layers.convolution import MaskedConvolution

_EXPANSION = 6


@keras.saving.register_keras_serializable(package="nvae_tf")
class AutoregressiveCell(keras.layers.Layer):
    """`z - mu(z)`, where each value of mu depends only on values of z before it.

    The order is that of pixels (rows from the top, then columns), then channels; `mirror` reverses
    the pixels. The Jacobian is triangular with ones on its diagonal, so the log-determinant is 0.
    Shapes are (B, H, W, C), float32.
    """

    def __init__(self, mirror: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.mirror = mirror

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        hidden = _EXPANSION * channels
        common = {"mirror": self.mirror, "dtype": self.dtype_policy}
        self.expand = MaskedConvolution(
            hidden, 3, strict=True, use_bias=False, name="expand", **common
        )
        self.spatial = MaskedConvolution(
            hidden, 5, groups=hidden, strict=False, use_bias=False, name="spatial", **common
        )
        self.shift = MaskedConvolution(
            channels, 1, strict=False, log_scale_shift=-math.log(10), name="shift", **common
        )
        self.expand.build(input_shape)
        self.spatial.build((*input_shape[:-1], hidden))
        self.shift.build((*input_shape[:-1], hidden))
        self.built = True

    def mean(self, z: tf.Tensor) -> tf.Tensor:
        """mu(z), the shift of every value given those before it."""
        x = tf.nn.elu(self.expand(z))
        x = tf.nn.elu(tf.nn.elu(self.spatial(x)))
        return self.shift(x)

    def call(self, z: tf.Tensor) -> tf.Tensor:
        return z - self.mean(z)

    def inverse(self, z: tf.Tensor, tolerance: float = 1e-6) -> tf.Tensor:
        """The input whose image under the cell is z.

        Iterates x = z + mu(x). Each pass makes at least one more value of the order exact, so it
        ends; in practice the values converge long before the order is through.
        """
        limit = tf.reduce_prod(tf.shape(z)[1:])

        def unfinished(i: tf.Tensor, x: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
            del x
            return tf.logical_and(i < limit, change > tolerance)

        def step(
            i: tf.Tensor, x: tf.Tensor, change: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            del change
            new = z + self.mean(x)
            return i + 1, new, tf.reduce_max(tf.abs(new - x))

        return tf.while_loop(unfinished, step, (0, z, tf.constant(float("inf"))))[1]

    def get_config(self) -> dict:
        return {**super().get_config(), "mirror": self.mirror}


@keras.saving.register_keras_serializable(package="nvae_tf")
class AutoregressiveFlow(keras.layers.Layer):
    """Pairs of autoregressive cells, the second of each pair with the pixels in reverse order.

    Args:
      num_pairs: `num_nf` of the paper's options.
    """

    def __init__(self, num_pairs: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_pairs = num_pairs

    def build(self, input_shape: tuple) -> None:
        self.cells = [
            AutoregressiveCell(mirror, dtype=self.dtype_policy, name=f"pair_{i}_{order}")
            for i in range(self.num_pairs)
            for mirror, order in ((False, "forward"), (True, "mirrored"))
        ]
        for cell in self.cells:
            cell.build(input_shape)
        self.built = True

    def call(self, z: tf.Tensor) -> tf.Tensor:
        for cell in self.cells:
            z = cell(z)
        return z

    def inverse(self, z: tf.Tensor, tolerance: float = 1e-6) -> tf.Tensor:
        """The posterior's own sample, from what the flow made of it."""
        for cell in reversed(self.cells):
            z = cell.inverse(z, tolerance)
        return z

    def get_config(self) -> dict:
        return {**super().get_config(), "num_pairs": self.num_pairs}
