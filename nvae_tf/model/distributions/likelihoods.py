"""Distributions over images, from the output of the image head. See docs/model.md, Likelihoods."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions.logistic_mixture import (
    DiscretizedLogisticMixture,
    num_logistic_mixture_parameters,
)
from nvae_tf.model.distributions.residual_normal import ResidualNormal


def num_likelihood_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters per pixel, which the image head has as channels."""
    channels = config.image_shape[-1]
    if config.likelihood == "bernoulli":
        return channels
    if config.likelihood == "normal":
        return 2 * channels
    return num_logistic_mixture_parameters(channels, config.num_mixture_dec)


def pixel_distribution(config: ModelConfig, logits: tf.Tensor) -> tfd.Distribution:
    """Returns a distribution over the channels of every pixel.

    Args:
      config: Gives the likelihood, the channels and the number of bits.
      logits: The image head's output (B, H, W, P).

    Returns:
      A distribution with batch shape (B, H, W) and event shape (C,), over values in [0, 1].
    """
    logits = tf.cast(logits, tf.float32)
    if config.likelihood == "bernoulli":
        return tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float32), 1)
    if config.likelihood == "normal":
        loc, log_scale = tf.split(logits, 2, axis=-1)
        return tfd.Independent(PixelNormal(loc, log_scale), 1)
    return DiscretizedLogisticMixture(
        logits, config.image_shape[-1], config.num_mixture_dec, config.num_x_bits
    )


class PixelNormal(ResidualNormal):
    """A normal distribution of 2 x - 1 for each value x in [0, 1] of an image.

    `log_prob` is the density of 2 x - 1, not of x, as in the paper's released code; `loc` and
    `scale` are its parameters. Samples and the mean are clipped to [0, 1]; `stddev` and `variance`
    are those of x before that.
    """

    def __init__(self, loc_raw: tf.Tensor, log_scale_raw: tf.Tensor, name: str = "PixelNormal"):
        super().__init__(loc_raw, log_scale_raw, name=name)
        self._parameters = {"loc_raw": loc_raw, "log_scale_raw": log_scale_raw, "name": name}

    @classmethod
    def _parameter_properties(
        cls, dtype: tf.DType | None, num_classes: int | None = None
    ) -> dict[str, Any]:
        properties = super()._parameter_properties(dtype, num_classes)
        return {name: properties[name] for name in ("loc_raw", "log_scale_raw")}

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        return super()._log_prob(2.0 * x - 1.0)

    def _mean(self) -> tf.Tensor:
        return _to_unit_interval(super()._mean())

    def _stddev(self) -> tf.Tensor:
        return 0.5 * super()._stddev()

    def _sample_n(self, n: int | tf.Tensor, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        return _to_unit_interval(super()._sample_n(n, seed))


def _to_unit_interval(x: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(0.5 * (x + 1.0), 0.0, 1.0)


class ImageDistribution(tfd.Distribution):
    """A distribution over images in [0, 1] with independent pixels and an optional padded border.

    `log_prob` leaves out the border. Samples and means have the padded size.

    Args:
      pixels: A distribution with batch shape (B, H, W) and event shape (C,).
      padding: Width of the border, in pixels.
    """

    def __init__(
        self,
        pixels: tfd.Distribution,
        padding: int = 0,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "ImageDistribution",
    ):
        parameters = dict(locals())
        self._pixels = pixels
        self._padding = padding
        super(ImageDistribution, self).__init__(  # noqa: UP008 (super() would be in locals())
            dtype=pixels.dtype,
            reparameterization_type=pixels.reparameterization_type,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(
        cls, dtype: tf.DType | None, num_classes: int | None = None
    ) -> dict[str, Any]:
        return {"pixels": tfp.util.BatchedComponentProperties(event_ndims=2)}

    def _event_shape(self) -> tf.TensorShape:
        return self._pixels.batch_shape[-2:].concatenate(self._pixels.event_shape)

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.concat(
            [self._pixels.batch_shape_tensor()[-2:], self._pixels.event_shape_tensor()], axis=0
        )

    def log_prob_by_pixel(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the terms of `log_prob`: one for each pixel, with all of its channels.

        Args:
          images: (..., H, W, C), with the border.

        Returns:
          (..., h, w), without the border.
        """
        by_pixel = self._pixels.log_prob(images)
        height, width = tf.unstack(tf.shape(by_pixel)[-2:])
        border = self._padding
        return by_pixel[..., border : height - border, border : width - border]

    def _log_prob(self, images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(self.log_prob_by_pixel(images), axis=[-2, -1])

    def _sample_n(self, n: int | tf.Tensor, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        return self._pixels.sample(n, seed=seed)

    def _mean(self) -> tf.Tensor:
        return self._pixels.mean()


def image_distribution(config: ModelConfig, logits: tf.Tensor) -> ImageDistribution:
    """Returns a distribution over images (B, H, W, C) in [0, 1].

    Args:
      config: Gives the likelihood, the channels, the number of bits and the padding.
      logits: The image head's output (B, H, W, P).
    """
    return ImageDistribution(pixel_distribution(config, logits), config.padding)
