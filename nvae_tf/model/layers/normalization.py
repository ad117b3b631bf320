"""Batch normalisation, synchronised over replicas, fused with the activation that follows it.

The paper's section 3.2 recomputes activations to save memory; docs/model.md has the details.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.model.compilation import compiled, graph_function, not_before
from nvae_tf.model.layers.context import current_call
from nvae_tf.model.stacks import Values, read_values
from nvae_tf.replicas import Replicas, replicas_of_context

MOMENTUM = 0.95  # of the moving averages
_AXES = [0, 1, 2]


def move_average(average: tf.Tensor, statistic: tf.Tensor) -> tf.Tensor:
    """Returns a moving average (C,) after a step whose batch had this statistic (C,)."""
    return MOMENTUM * average + (1 - MOMENTUM) * statistic


def moving_averages(layers: Iterable[keras.layers.Layer]) -> list[keras.Variable]:
    """Returns mean and variance of each batch normalisation among some layers, in their order."""
    return [
        average
        for layer in layers
        if isinstance(layer, BatchNormalization)
        for average in (layer.moving_mean, layer.moving_variance)
    ]


@keras.saving.register_keras_serializable(package="nvae_tf")
class BatchNormalization(keras.layers.Layer):
    """Batch normalisation: `activation(gamma (x - mean) / sqrt(variance + 1e-5) + beta)`, NHWC.

    In training, mean and (biased) variance are those of all replicas' images (with accumulation, of
    one part of the batch), in float32. The layer then moves its averages, which keep 0.95 of their
    value, towards the mean and the unbiased variance; inside a `functional_call` it leaves both
    there instead. A `functional_call`, or without one `trainable = False`, may freeze it: then it
    trains with its averages in their place, as it answers. For the backward pass it keeps the input
    only and computes the rest again.

    Args:
      activation: `"swish"`, `"elu"` or None.
      repeats: How often each value of the input counts in the unbiased variance. A tensor that is
        about to be up-sampled by repetition has the moments of the up-sampled one, but not its
        number of values.

    Raises:
      ValueError: The activation is none of these.
    """

    def __init__(self, activation: str | None = None, repeats: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        if activation not in (None, "swish", "elu"):
            raise ValueError(f"activation must be swish, elu or None, received {activation!r}.")
        self.activation = activation
        self.repeats = repeats
        self.epsilon = 1e-5

    def build(self, input_shape: tuple) -> None:
        def add(name: str, initializer: str, trainable: bool) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=initializer,
                trainable=trainable,
                dtype="float32",
                autocast=False,
            )

        self.gamma = add("gamma", "ones", True)
        self.beta = add("beta", "zeros", True)
        self.moving_mean = add("moving_mean", "zeros", False)
        self.moving_variance = add("moving_variance", "ones", False)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        call = current_call(self)
        if training:
            if call and call.folded:
                raise ValueError(f"{self.path} has no statistics of its own: it is folded.")
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
            if call.frozen if call else not self.trainable:
                y = self._normalize_frozen(x, gamma, beta, call.jit_compile if call else "none")
            else:
                y = self._normalize_batch(x, gamma, beta)
        else:
            y = tf.cast(x, tf.float32)
            if not (call and call.folded):
                scale, shift = self.affine(read_values(self.variables))
                y = y * scale + shift
            elif self.gamma.path in call.folded.scales:
                path = self.gamma.path
                y = y * call.folded.scales[path] + call.folded.shifts[path]
            if self.activation == "swish":
                y = y * tf.sigmoid(y)  # which, unlike tf.nn.silu, becomes part of a convolution
            y = tf.cast(y, x.dtype)
        return tf.nn.elu(y) if self.activation == "elu" else y

    def affine(self, values: Values) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the scale and shift (C,) that the moving averages make of this layer.

        Args:
          values: The values of its variables, by path.
        """
        deviation = tf.math.rsqrt(values[self.moving_variance.path] + self.epsilon)
        scale = values[self.gamma.path] * deviation
        return scale, values[self.beta.path] - values[self.moving_mean.path] * scale

    def _normalize_frozen(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, jit_compile: str
    ) -> tf.Tensor:
        swish = self.activation == "swish"
        averages = [
            tf.convert_to_tensor(self.moving_mean),
            tf.convert_to_tensor(self.moving_variance),
        ]
        if jit_compile == "none":
            return _normalize_fused(x, gamma, beta, self.epsilon, swish, averages)[0]
        return _normalize_compiled(
            x, gamma, beta, self.epsilon, swish, Replicas(), averages, frozen=True
        )[0]

    def _normalize_batch(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        swish = self.activation == "swish"
        call = current_call(self)
        replicas = call.replicas if call else replicas_of_context()
        count = self.repeats * replicas.size * _values_per_channel(x)
        unbiased_by_biased = count / _at_least_1(count - 1)
        if replicas.size == 1 and (call is None or call.jit_compile == "none"):
            y, mean, variance = _normalize_fused(x, gamma, beta, self.epsilon, swish)
        else:
            known = []
            if call and self.moving_mean.path in call.known:
                known = [
                    call.known[self.moving_mean.path],
                    call.known[self.moving_variance.path] / unbiased_by_biased,
                ]
            y, mean, variance = _normalize_compiled(
                x, gamma, beta, self.epsilon, swish, replicas, known
            )
        averages = self.moving_mean, self.moving_variance
        for average, statistic in zip(averages, (mean, variance * unbiased_by_biased)):
            if call is None:
                average.assign(move_average(average, statistic))
            else:
                call.statistics[average.path] = statistic
                call.counts[average.path] = count
        return y

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "activation": self.activation,
            "repeats": self.repeats,
        }


# The next two functions compute the same: y, mean and biased variance, of which y has a gradient.
# Of the activations they keep x only, and compute the rest again in the backward pass, once dy is
# there: without that dependency the executor may recompute early, and keep both. With frozen
# averages, mean and variance are those, and constants.


def _normalize_fused(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    swish: bool,
    averages: Sequence[tf.Tensor] = (),
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises on one replica, with TensorFlow's own kernels instead of elementwise ones.

    `averages` holds the mean and the variance to use instead of the batch's, or nothing.
    """
    moments: list[tf.Tensor] = []

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *averages: tf.Tensor) -> tuple:
        y, *saved = _fused_forward(x, gamma, beta, averages, epsilon, swish)
        moments.extend(saved[:2])

        def gradient(dy: tf.Tensor) -> list[tf.Tensor]:
            (again,) = not_before(dy, [x], in_xla=False)
            frozen = bool(averages)
            gradients = _fused_backward(again, dy, gamma, beta, saved, epsilon, swish, frozen)
            return [*gradients, *[None for _ in averages]]

        return y, gradient

    y = normalize(x, gamma, beta, *averages)
    return y, *moments


@graph_function
def _fused_forward(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    averages: Sequence[tf.Tensor],
    epsilon: float,
    swish: bool,
) -> tuple[tf.Tensor, ...]:
    """Returns y, mean, biased variance, and what the gradient's kernel wants."""
    average, average_variance = averages or [tf.zeros([0])] * 2
    y, mean, unbiased, *reserved = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=average,
        variance=average_variance,
        epsilon=epsilon,
        is_training=not averages,
    )
    if averages:
        return (_swish(y) if swish else y), *averages, *averages, reserved[-1]
    count = _values_per_channel(x)
    variance = unbiased * ((count - 1) / count)
    return (_swish(y) if swish else y), mean, variance, *reserved


@graph_function
def _fused_backward(
    x: tf.Tensor,
    dy: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    saved: list[tf.Tensor],
    epsilon: float,
    swish: bool,
    frozen: bool,
) -> list[tf.Tensor]:
    """Returns the gradients of x, gamma and beta."""
    mean, variance, *reserved = saved
    if swish:
        dy = _swish_gradient(x, dy, gamma, beta, mean, variance, epsilon)
    return tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=dy,
        x=x,
        scale=gamma,
        reserve_space_1=reserved[0],
        reserve_space_2=reserved[1],
        reserve_space_3=reserved[2],
        epsilon=epsilon,
        is_training=not frozen,
    )[:3]


def _normalize_compiled(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    swish: bool,
    replicas: Replicas,
    known: Sequence[tf.Tensor],
    frozen: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises on any number of replicas, with four compiled functions and the sums between them.

    `known` holds mean and variance if an earlier pass has computed them or they are frozen, and
    nothing else.
    """

    # All that the gradient needs is an argument: custom_gradient walks the graph from its results
    # back to them, and whatever it captured otherwise would lengthen that walk.
    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *known: tf.Tensor) -> tuple:
        if known:
            mean, variance = known
        else:
            mean, square = tf.unstack(replicas.mean(_moments(x)))
            variance = tf.cast(tf.maximum(square - mean * mean, 0.0), tf.float32)
            mean = tf.cast(mean, tf.float32)
        inverse = tf.math.rsqrt(variance + epsilon)
        y = _affine(x, inverse * gamma, beta - mean * inverse * gamma, swish)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            (again,) = not_before(dy, [x], in_xla=False)
            inputs = _Backward(again, dy, gamma, beta, mean, inverse)
            local = _gradient_sums(inputs, swish)
            # Frozen statistics do not depend on x, so nothing of its gradient goes through them.
            sums = tf.zeros_like(local) if frozen else replicas.mean(local)
            dx = _input_gradient(inputs, sums, swish)
            d_gamma, d_beta = tf.unstack(local * _values_per_channel(x))
            return dx, d_gamma, d_beta, *[None for _ in known]

        return (y, mean, variance), gradient

    return normalize(x, gamma, beta, *known)


@compiled
def _moments(x: tf.Tensor) -> tf.Tensor:
    """Returns the means of x and of its square, (2, C) float64.

    Beside a large mean, E[x²] - E[x]² loses the variance in float32. So the sums are those of the
    distances from the first image's mean, and only their results become float64: (E[x] - offset)²
    is at most B - 1 times the variance.
    """
    values = tf.cast(x, tf.float32)
    offset = tf.reduce_mean(values[:1], _AXES)
    distances = values - offset
    mean = tf.cast(tf.reduce_mean(distances, _AXES), tf.float64)
    square = tf.cast(tf.reduce_mean(tf.square(distances), _AXES), tf.float64)
    wide = tf.cast(offset, tf.float64)
    return tf.stack([wide + mean, square + wide * (2 * mean + wide)])


@compiled
def _affine(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, swish: bool) -> tf.Tensor:
    y = tf.cast(x, tf.float32) * scale + shift
    return tf.cast(y * tf.sigmoid(y) if swish else y, x.dtype)


class _Backward(NamedTuple):
    """What the backward pass of a normalisation starts from; `inverse` is 1 / deviation."""

    x: tf.Tensor
    dy: tf.Tensor
    gamma: tf.Tensor
    beta: tf.Tensor
    mean: tf.Tensor
    inverse: tf.Tensor

    def normalized_gradient(self, swish: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the normalised x, and the gradient of the activation's input, in float32."""
        normalized = (tf.cast(self.x, tf.float32) - self.mean) * self.inverse
        dz = tf.cast(self.dy, tf.float32)
        if swish:
            dz = _through_swish(dz, normalized * self.gamma + self.beta)
        return normalized, dz


@compiled
def _gradient_sums(inputs: _Backward, swish: bool) -> tf.Tensor:
    """Returns the means over this replica's values that make the gradients of gamma and beta."""
    normalized, dz = inputs.normalized_gradient(swish)
    return tf.stack([tf.reduce_mean(dz * normalized, _AXES), tf.reduce_mean(dz, _AXES)])


@compiled
def _input_gradient(inputs: _Backward, sums: tf.Tensor, swish: bool) -> tf.Tensor:
    """Returns the gradient of x, from the means of `_gradient_sums` over all replicas."""
    normalized, dz = inputs.normalized_gradient(swish)
    dx = inputs.gamma * inputs.inverse * (dz - sums[1] - normalized * sums[0])
    return tf.cast(dx, inputs.x.dtype)


@compiled
def _swish(y: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(y, tf.float32)
    return tf.cast(wide * tf.sigmoid(wide), y.dtype)


@compiled
def _swish_gradient(
    x: tf.Tensor,
    dy: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """Returns the gradient with respect to z of swish(z), where z is the normalised x."""
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    z = tf.cast(x, tf.float32) * scale + (beta - mean * scale)
    return tf.cast(_through_swish(tf.cast(dy, tf.float32), z), x.dtype)


def _through_swish(dy: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of z from that of swish(z)."""
    sigmoid = tf.sigmoid(z)
    return dy * sigmoid * (1 + z * (1 - sigmoid))


def _values_per_channel(x: tf.Tensor) -> float | tf.Tensor:
    if x.shape.is_fully_defined():
        return float(x.shape.num_elements() // x.shape[-1])
    return tf.cast(tf.size(x) // x.shape[-1], tf.float32)


def _at_least_1(count: float | tf.Tensor) -> float | tf.Tensor:
    return max(count, 1.0) if isinstance(count, float) else tf.maximum(count, 1.0)
