"""The normal distributions of the latent groups (paper, section 3.2 and equation 2)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

_CLAMP = 5.0
_SHARPNESS = math.log(2)  # of the softplus, so that 0 becomes 1
_SCALE_OFFSET = 0.01
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def soft_clamp(x: tf.Tensor) -> tf.Tensor:
    """Computes 5 tanh(x / 5), which is nearly x around 0 and stays between -5 and 5."""
    return _CLAMP * tf.tanh(x / _CLAMP)


def smooth_scale(x: tf.Tensor) -> tf.Tensor:
    """Computes softplus(x ln 2) / ln 2, which is 1 at 0 as exp(x) is.

    Its derivative, sigmoid(x ln 2), is below 1 everywhere, where that of exp(x) grows with the
    scale (Hazami, Mama and Thurairatnam, *Efficient-VDVAE: Less is more*, 2022).
    """
    return tf.nn.softplus(_SHARPNESS * x) / _SHARPNESS


class ResidualNormal(tfd.Distribution):
    """A normal distribution whose parameters are offsets from those of another one.

    With the soft clamp `c(a) = 5 tanh(a / 5)`, its mean and standard deviation are

    ```none
    loc   = c(loc_raw + delta_loc)
    scale = temperature (exp(c(log_scale_raw + delta_log_scale)) + 0.01)
    ```

    With `smooth`, `smooth_scale` takes the place of the exponential.

    Without deltas it is the prior of a group; with the deltas that the encoder predicts, it is the
    posterior. The paper has neither the clamp nor the floor of 0.01, and its KL divergence is
    `½ (Δμ²/σ² + Δσ² − log Δσ² − 1)`. Here the KL divergence is the general one of two normals.

    #### Examples

    ```python
    prior = ResidualNormal(loc_raw, log_scale_raw)
    posterior = ResidualNormal(loc_raw, log_scale_raw, delta_loc, delta_log_scale)
    kl = tfd.kl_divergence(posterior, prior)  # elementwise
    cold = ResidualNormal(loc_raw, log_scale_raw, temperature=0.7)
    ```
    """

    def __init__(
        self,
        loc_raw: tf.Tensor,
        log_scale_raw: tf.Tensor,
        delta_loc: tf.Tensor | None = None,
        delta_log_scale: tf.Tensor | None = None,
        temperature: float | tf.Tensor = 1.0,
        smooth: bool = False,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "ResidualNormal",
    ):
        """Builds the distribution.

        Args:
          loc_raw: The mean before the clamp, float32 of any shape.
          log_scale_raw: The logarithm of the scale before the clamp and the floor, same shape.
          delta_loc: The posterior's offset from `loc_raw`; None for 0.
          delta_log_scale: The posterior's offset from `log_scale_raw`; None for 0.
          temperature: Multiplies the scale, with broadcasting.
          smooth: Whether `smooth_scale` computes the scale, and not the exponential.
          validate_args: See `tfd.Distribution`.
          allow_nan_stats: See `tfd.Distribution`.
          name: See `tfd.Distribution`.
        """
        parameters = dict(locals())
        with tf.name_scope(name):
            loc = loc_raw if delta_loc is None else loc_raw + delta_loc
            log_scale = log_scale_raw
            if delta_log_scale is not None:
                log_scale = log_scale_raw + delta_log_scale
            self._loc = soft_clamp(loc)
            scale = (smooth_scale if smooth else tf.exp)(soft_clamp(log_scale))
            self._scale = temperature * (scale + _SCALE_OFFSET)
        super(ResidualNormal, self).__init__(  # noqa: UP008 (super() would put itself in locals())
            dtype=self._loc.dtype,
            reparameterization_type=tfd.FULLY_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(
        cls, dtype: tf.DType | None, num_classes: int | None = None
    ) -> dict[str, Any]:
        properties = tfp.util.ParameterProperties
        return {
            "loc_raw": properties(),
            "log_scale_raw": properties(),
            "delta_loc": properties(),
            "delta_log_scale": properties(),
            "temperature": properties(),
        }

    @property
    def loc(self) -> tf.Tensor:
        """The mean, after the clamp."""
        return self._loc

    @property
    def scale(self) -> tf.Tensor:
        """The standard deviation, multiplied by the temperature."""
        return self._scale

    def at(self, deviations: tf.Tensor) -> tf.Tensor:
        """Returns the mean plus so many standard deviations: a draw, if they are normal noise."""
        return self._loc + self._scale * deviations

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        standardized = (x - self._loc) / self._scale
        return -0.5 * tf.square(standardized) - tf.math.log(self._scale) - _HALF_LOG_TWO_PI

    def _sample_n(self, n: int | tf.Tensor, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        shape = tf.concat([[n], self.batch_shape_tensor()], axis=0)
        seed = tfp.random.sanitize_seed(seed)
        return self.at(tf.random.stateless_normal(shape, seed, dtype=self.dtype))

    def _mean(self) -> tf.Tensor:
        return tf.broadcast_to(self._loc, self.batch_shape_tensor())

    def _stddev(self) -> tf.Tensor:
        return tf.broadcast_to(self._scale, self.batch_shape_tensor())


@tfd.RegisterKL(ResidualNormal, ResidualNormal)
def _kl_residual_normal(a: ResidualNormal, b: ResidualNormal, name: str | None = None) -> tf.Tensor:
    """Computes KL(a || b) elementwise."""
    with tf.name_scope(name or "kl_residual_normal"):
        difference = (a.loc - b.loc) / b.scale
        ratio = a.scale / b.scale
        return 0.5 * (tf.square(difference) + tf.square(ratio) - 1) - tf.math.log(ratio)
