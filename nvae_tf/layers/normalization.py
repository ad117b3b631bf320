"""Batch normalisation, synchronised over replicas, fused with the swish that follows it.

SPEC section 2; paper section 3.2 (memory).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

_AXES = [0, 1, 2]


def _mean_over_replicas(x: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce("mean", x)


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


@keras.saving.register_keras_serializable(package="nvae_tf")
class BatchNormalization(keras.layers.Layer):
    """`activation(gamma (x - mean) / sqrt(variance + 1e-5) + beta)`, NHWC, statistics in float32.

    In training, mean and (biased) variance are those of the global batch, and the moving averages
    keep 0.95 of their value; the moving variance takes the unbiased one. For the backward pass only
    the input is kept, the rest is computed again.

    Args:
      activation: `"swish"`, `"elu"` or None.
      repeats: how often each value of the input counts in the unbiased variance. A tensor that is
        about to be up-sampled by repetition has the moments of the up-sampled one, but not its
        number of values.
    """

    def __init__(self, activation: str | None = None, repeats: int = 1, **kwargs):
        super().__init__(**kwargs)
        if activation not in (None, "swish", "elu"):
            raise ValueError(f"activation must be swish, elu or None, received {activation!r}.")
        self.activation = activation
        self.repeats = repeats
        self.momentum = 0.95
        self.epsilon = 1e-5

    def build(self, input_shape: Sequence[int | None]) -> None:
        def add(name, initializer, trainable):
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
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if training:
            y = self._normalize_batch(x, gamma, beta)
        else:
            scale = gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            shift = beta - self.moving_mean * scale
            y = tf.cast(x, tf.float32) * scale + shift
            if self.activation == "swish":
                y = tf.nn.silu(y)
            y = tf.cast(y, x.dtype)
        return tf.nn.elu(y) if self.activation == "elu" else y

    def _normalize_batch(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        mean, variance = self._batch_moments(tf.stop_gradient(x))
        inverse = tf.math.rsqrt(variance + self.epsilon)
        swish = self.activation == "swish"

        # All that the gradient needs is an argument: custom_gradient walks the graph from its
        # results back to them, and whatever it captured otherwise would lengthen that walk.
        @tf.custom_gradient
        def normalize(x, gamma, beta, mean, inverse):
            y = (tf.cast(x, tf.float32) - mean) * (inverse * gamma) + beta
            y = tf.cast(tf.nn.silu(y) if swish else y, x.dtype)

            def gradient(dy):
                # Without this dependency the executor may recompute early, and keep both.
                with tf.control_dependencies([dy]):
                    normalized = (tf.cast(tf.identity(x), tf.float32) - mean) * inverse
                dz = tf.cast(dy, tf.float32)
                if swish:
                    z = normalized * gamma + beta
                    sigmoid = tf.sigmoid(z)
                    dz *= sigmoid * (1 + z * (1 - sigmoid))
                local = tf.stack(
                    [tf.reduce_mean(dz, _AXES), tf.reduce_mean(dz * normalized, _AXES)]
                )
                d_beta, d_gamma = tf.unstack(_mean_over_replicas(local))
                dx = gamma * inverse * (dz - d_beta - normalized * d_gamma)
                count = tf.cast(tf.size(x) // tf.size(gamma), tf.float32)
                # dx holds the way through the statistics, so they get no gradient of their own.
                return tf.cast(dx, x.dtype), local[1] * count, local[0] * count, None, None

            return y, gradient

        return normalize(x, gamma, beta, mean, inverse)

    def _batch_moments(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and biased variance of the global batch; updates the moving averages."""
        values = tf.cast(x, tf.float32)
        # Second moments about the moving mean: the difference of squares below cancels less.
        offset = tf.convert_to_tensor(self.moving_mean)
        squares = tf.math.squared_difference(values, offset)
        moments = tf.stack([tf.reduce_mean(values, _AXES), tf.reduce_mean(squares, _AXES)])
        mean, square = tf.unstack(_mean_over_replicas(moments))
        variance = tf.maximum(square - tf.math.squared_difference(mean, offset), 0.0)
        count = tf.cast(tf.size(x) // tf.shape(x)[-1] * self.repeats * _replicas(), tf.float32)
        unbiased = variance * count / tf.maximum(count - 1, 1)
        for average, new in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            average.assign(self.momentum * average + (1 - self.momentum) * new)
        return mean, variance

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "activation": self.activation,
            "repeats": self.repeats,
        }
