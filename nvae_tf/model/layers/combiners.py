"""Layers in which the two towers and the latent variables meet (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.model.layers.convolution import WeightNormConvolution


@keras.saving.register_keras_serializable(package="nvae_tf")
class EncoderCombiner(keras.layers.Layer):
    """Adds a 1x1 convolution of top-down features (B, H, W, D) to bottom-up ones (B, H, W, C).

    The sum goes into a posterior. `build` and `call` take a pair, bottom-up first.
    """

    def build(self, input_shape: Sequence[tuple]) -> None:
        bottom_up, top_down = input_shape
        self.convolution = WeightNormConvolution(
            bottom_up[-1], dtype=self.dtype_policy, name="convolution"
        )
        self.convolution.build(top_down)
        self.built = True

    def call(self, features: Sequence[tf.Tensor]) -> tf.Tensor:
        bottom_up, top_down = features
        return bottom_up + self.convolution(top_down)


@keras.saving.register_keras_serializable(package="nvae_tf")
class DecoderCombiner(keras.layers.Layer):
    """Puts a latent variable into top-down features: a 1x1 convolution of their concatenation.

    `build` and `call` take a pair, features (B, H, W, C) first; the output has their shape.
    """

    def build(self, input_shape: Sequence[tuple]) -> None:
        features, latent = input_shape
        self.convolution = WeightNormConvolution(
            features[-1], dtype=self.dtype_policy, name="convolution"
        )
        self.convolution.build((*features[:-1], features[-1] + latent[-1]))
        self.built = True

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        features, latent = inputs
        return self.convolution(tf.concat([features, tf.cast(latent, features.dtype)], axis=-1))


@keras.saving.register_keras_serializable(package="nvae_tf")
class ParameterHead(keras.layers.Layer):
    """Computes means and log-scales of a group's distribution from features (B, H, W, C).

    The output is two float32 tensors (B, H, W, num_latents).

    Args:
      num_latents: The number of channels of the latent variable.
      kernel_size: 3 for the posterior, 1 for the prior.
      elu: Whether the features go through an ELU first, as the prior's do.
    """

    def __init__(self, num_latents: int, kernel_size: int, elu: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_latents = num_latents
        self.kernel_size = kernel_size
        self.elu = elu

    def build(self, input_shape: tuple) -> None:
        self.convolution = WeightNormConvolution(
            2 * self.num_latents, self.kernel_size, dtype=self.dtype_policy, name="convolution"
        )
        self.convolution.build(input_shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parameters = self.convolution(tf.nn.elu(x) if self.elu else x)
        loc, log_scale = tf.split(tf.cast(parameters, tf.float32), 2, axis=-1)
        return loc, log_scale

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_latents": self.num_latents,
            "kernel_size": self.kernel_size,
            "elu": self.elu,
        }
