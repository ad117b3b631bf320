"""The volume-preserving inverse autoregressive flow of the posterior (paper, section 3.2)."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.model.layers.convolution import MaskedConvolution

_EXPANSION = 6


@keras.saving.register_keras_serializable(package="nvae_tf")
class AutoregressiveCell(keras.layers.Layer):
    """A layer that computes `z - mu(z)`; each value of mu depends on earlier values of z only.

    Values are ordered by pixel (rows from the top, then columns) and then by channel; `mirror`
    reverses the order of the pixels. The Jacobian is triangular with ones on its diagonal, so the
    log-determinant is 0. Input and output are (B, H, W, C) float32.

    Args:
      mirror: Whether the order of the pixels is reversed.
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
        """Computes mu(z), the shift of every value given those before it."""
        x = tf.nn.elu(self.expand(z))
        x = tf.nn.elu(tf.nn.elu(self.spatial(x)))
        return self.shift(x)

    def call(self, z: tf.Tensor) -> tf.Tensor:
        return z - self.mean(z)

    def get_config(self) -> dict:
        return {**super().get_config(), "mirror": self.mirror}


@keras.saving.register_keras_serializable(package="nvae_tf")
class AutoregressiveFlow(keras.layers.Layer):
    """A chain of pairs of autoregressive cells, the second of each pair with mirrored pixels.

    Args:
      num_pairs: Number of pairs; `num_nf` in the configuration.
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

    def get_config(self) -> dict:
        return {**super().get_config(), "num_pairs": self.num_pairs}
