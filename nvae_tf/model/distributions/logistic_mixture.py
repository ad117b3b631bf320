"""The mixture of discretised logistics over a pixel's channels. See docs/model.md, Likelihoods."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

_MIN_LOG_SCALE = -7.0
_MIN_MASS = 1e-5  # of a bin; below it, the mass is approximated by density times width
_UNIFORM_MARGIN = 1e-5


def num_coefficients(num_channels: int) -> int:
    """Returns the number of coefficients that are stored for each channel.

    For every channel to depend on all before it, C channels need C (C - 1) / 2 coefficients. They
    are spread evenly over the channels; with an even C some stay unused.
    """
    return num_channels // 2


def num_logistic_mixture_parameters(num_channels: int, num_mixtures: int) -> int:
    """Returns the number of parameters per pixel: 3 M for one channel, 10 M for three."""
    return num_mixtures * (1 + num_channels * (2 + num_coefficients(num_channels)))


class DiscretizedLogisticMixture(tfd.Distribution):
    """A mixture of discretised logistics over a pixel's C channels, with values in [0, 1].

    Within a mixture component the channels are autoregressive: on values scaled to [-1, 1],

    ```none
    mean_c(x) = m_c + Σ_{d<c} tanh(k_cd) x_d
    log P(x)  = logsumexp_i [ log π_i + Σ_c log P_i(x_c | x_<c) ]
    P_i(x_c)  = F((x_c + w - mean_c) / s_c) - F((x_c - w - mean_c) / s_c),  w = 1 / (2^bits - 1)
    ```

    with F the logistic function. The lowest bin reaches to -∞, and bins whose centre exceeds 0.99
    reach to +∞. With 8 bits these are the two highest, 254 and 255, as in the paper's released
    code. The mass of 255 then counts twice, and the probabilities of all values sum to
    1 + P(255). With 7 bits or fewer they sum to 1.

    A mass of 1e-5 or less is taken to be the density at the bin's centre times its width, as in
    PixelCNN++. Where s_c is much smaller than the bin, that is less than the mass.

    The last axis of `params` holds M mixture logits and then, for each channel, M means, M
    log-scales and ⌊C/2⌋ blocks of M coefficients. Read channel by channel, the blocks hold k_10,
    k_20, k_21, k_30, … in this order. A single channel has no coefficients.

    #### References

    Salimans et al., *PixelCNN++*, ICLR 2017.
    """

    def __init__(
        self,
        params: tf.Tensor,
        num_channels: int,
        num_mixtures: int,
        num_bits: int = 8,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "DiscretizedLogisticMixture",
    ):
        """Builds the distribution.

        Args:
          params: (..., P) float32, with P = `num_logistic_mixture_parameters(C, M)`.
          num_channels: C, the size of an event.
          num_mixtures: M, the number of mixture components.
          num_bits: The values are k / (2^num_bits - 1).
          validate_args: See `tfd.Distribution`.
          allow_nan_stats: See `tfd.Distribution`.
          name: See `tfd.Distribution`.

        Raises:
          ValueError: if the size of the last axis of `params` is not P.
        """
        parameters = dict(locals())
        expected = num_logistic_mixture_parameters(num_channels, num_mixtures)
        if params.shape[-1] != expected:
            raise ValueError(
                f"{num_mixtures} mixtures over {num_channels} channels take {expected} parameters "
                f"per pixel, received {params.shape[-1]}."
            )
        with tf.name_scope(name):
            self._params = tf.convert_to_tensor(params)
            self._num_channels = num_channels
            self._num_mixtures = num_mixtures
            self._num_bits = num_bits
            # One split, for the gradient of every slice would be as large as all parameters.
            pieces = tf.split(self._params, expected // num_mixtures, axis=-1)  # [..., M] each
            self._logits, by_channel = pieces[0], pieces[1:]
            size = 2 + num_coefficients(num_channels)
            self._means = by_channel[0::size]  # by channel
            self._log_scales = [tf.maximum(piece, _MIN_LOG_SCALE) for piece in by_channel[1::size]]
            # Channels slowest: k_10, k_20, k_21, ...
            self._coefficients = [
                tf.tanh(piece) for number, piece in enumerate(by_channel) if number % size >= 2
            ]
        super(DiscretizedLogisticMixture, self).__init__(  # noqa: UP008 (it would be in locals())
            dtype=self._params.dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(
        cls, dtype: tf.DType | None, num_classes: int | None = None
    ) -> dict[str, Any]:
        return {"params": tfp.util.ParameterProperties(event_ndims=1)}

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._num_channels])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._num_channels], tf.int32)

    def _conditional_mean(
        self, channel: int, means: list, coefficients: list, previous: list
    ) -> tf.Tensor:
        """Returns the mean of a channel given the previous channels' values in [-1, 1]."""
        first = channel * (channel - 1) // 2
        mean = means[channel]
        for index, value in enumerate(previous):
            mean += coefficients[first + index] * value
        return mean

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        x = 2.0 * x - 1.0
        values = [x[..., c, None] for c in range(self._num_channels)]
        log_prob = tf.nn.log_softmax(self._logits)
        for c, value in enumerate(values):
            mean = self._conditional_mean(c, self._means, self._coefficients, values[:c])
            log_prob += self._bin_log_prob(value, mean, self._log_scales[c])
        return tf.reduce_logsumexp(log_prob, axis=-1)

    def _bin_log_prob(self, x: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
        bins = tf.constant(2.0**self._num_bits - 1, self.dtype)
        centred = x - mean
        inverse_scale = tf.exp(-log_scale)
        upper = inverse_scale * (centred + 1 / bins)
        lower = inverse_scale * (centred - 1 / bins)
        centre = inverse_scale * centred
        mass = _logistic(upper) - _logistic(lower)
        log_density = centre - log_scale - 2 * tf.nn.softplus(centre)
        # tf.where passes gradients to both branches, so neither may be infinite anywhere.
        log_mass = tf.where(
            mass > _MIN_MASS,
            tf.math.log(tf.maximum(mass, 1e-10)),
            log_density - tf.math.log(bins / 2),
        )
        log_from_top = -tf.nn.softplus(lower)
        log_to_bottom = upper - tf.nn.softplus(upper)
        return tf.where(x < -0.999, log_to_bottom, tf.where(x > 0.99, log_from_top, log_mass))

    def _sample_n(self, n: int | tf.Tensor, seed: int | tf.Tensor | None = None) -> tf.Tensor:
        component_seed, value_seed = tfp.random.split_seed(seed, n=2)
        shape = tf.concat([[n], tf.shape(self._logits)], axis=0)
        gumbel = -tf.math.log(-tf.math.log(self._uniform(shape, component_seed)))
        chosen = tf.one_hot(
            tf.argmax(self._logits + gumbel, axis=-1), self._num_mixtures, dtype=self.dtype
        )  # [n, ..., M]

        def choose(parameter: tf.Tensor) -> tf.Tensor:  # [..., M] to [n, ...]
            return tf.reduce_sum(parameter * chosen, axis=-1)

        means = [choose(mean)[..., None] for mean in self._means]
        log_scales = tf.stack([choose(log_scale) for log_scale in self._log_scales], axis=-1)
        coefficients = [choose(k)[..., None] for k in self._coefficients]
        uniform = self._uniform(tf.shape(log_scales), value_seed)
        noise = tf.exp(log_scales) * (tf.math.log(uniform) - tf.math.log1p(-uniform))
        return self._chain(means, coefficients, tf.split(noise, self._num_channels, axis=-1))

    def _mean(self) -> tf.Tensor:
        weights = tf.nn.softmax(self._logits)

        def expect(parameter: tf.Tensor) -> tf.Tensor:  # [..., M] to [..., 1]
            return tf.reduce_sum(parameter * weights, axis=-1, keepdims=True)

        means = [expect(mean) for mean in self._means]
        coefficients = [expect(k) for k in self._coefficients]
        return self._chain(means, coefficients, [0.0] * self._num_channels)

    def _chain(self, means: list, coefficients: list, noise: list) -> tf.Tensor:
        """Computes the channels' values in [0, 1] one after the other, each from those before."""
        values: list[tf.Tensor] = []
        for c in range(self._num_channels):
            mean = self._conditional_mean(c, means, coefficients, values)
            values.append(tf.clip_by_value(mean + noise[c], -1.0, 1.0))
        return 0.5 * (tf.concat(values, axis=-1) + 1.0)

    def _uniform(self, shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform(
            shape, seed, _UNIFORM_MARGIN, 1 - _UNIFORM_MARGIN, self.dtype
        )


def _logistic(x: tf.Tensor) -> tf.Tensor:
    """Computes the logistic function to full float32 precision.

    `tf.sigmoid` is an approximation, and the difference of two close values magnifies its error.
    The function is flat in float32 beyond the bounds of the clipping; without clipping the
    gradient would be inf / inf there.
    """
    return 1 / (1 + tf.exp(-tf.clip_by_value(x, -80.0, 80.0)))
