"""Batch normalisation: values, gradients and averages against plain TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.normalization import BatchNormalization
from nvae_tf.replicas import Replicas

ACTIVATIONS = {"swish": tf.nn.silu, "elu": tf.nn.elu, None: tf.identity}


def random_layer(activation):
    """A layer with random gamma and beta, an input for it, and weights for a sum of its output."""
    layer = BatchNormalization(activation)
    x = 2 + 3 * tf.random.stateless_normal([4, 5, 6, 7], (0, 0))
    layer.build(x.shape)
    layer.gamma.assign(tf.random.stateless_normal([7], (0, 1)))
    layer.beta.assign(tf.random.stateless_normal([7], (0, 2)))
    return layer, x, tf.random.stateless_normal(x.shape, (0, 3))


@pytest.mark.parametrize("jit_compile", ["none", "islands"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_equals_the_plain_composition(activation, jit_compile):
    layer, x, weights = random_layer(activation)
    gamma, beta = tf.constant(layer.gamma.numpy()), tf.constant(layer.beta.numpy())
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        normalized = (x - mean) * tf.math.rsqrt(variance + 1e-5)
        expected = ACTIVATIONS[activation](normalized * gamma + beta)
        loss = tf.reduce_sum(expected * weights)
    expected_gradients = tape.gradient(loss, [x, gamma, beta])
    with tf.GradientTape() as tape:
        tape.watch(x)
        with functional_call(layer, jit_compile=jit_compile) as call:
            y = layer(x, training=True)
        loss = tf.reduce_sum(y * weights)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for got, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(call.statistics[layer.moving_mean.path], mean, rtol=1e-5)
    unbiased = variance * 120 / 119
    np.testing.assert_allclose(call.statistics[layer.moving_variance.path], unbiased, rtol=1e-4)


def test_known_statistics_take_the_place_of_the_batchs_own():
    layer = BatchNormalization("swish")
    x = 2 + 3 * tf.random.stateless_normal([2, 3, 3, 4], (0, 0))
    layer.build(x.shape)
    known = {
        layer.moving_mean.path: tf.fill([4], 1.0),
        layer.moving_variance.path: tf.fill([4], 9.0),
    }
    with functional_call(layer, jit_compile="islands", known=known) as call:
        y = layer(x, training=True)
    expected = tf.nn.silu((x - 1) / np.sqrt(9 * 17 / 18 + 1e-5))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for path, statistic in known.items():
        np.testing.assert_allclose(call.statistics[path], statistic, rtol=1e-6)


def test_moving_averages_take_the_unbiased_variance():
    layer = BatchNormalization()
    x = 5 + 2 * tf.random.stateless_normal([2, 3, 3, 4], (0, 0))
    layer(x, training=True)
    values = x.numpy().reshape(-1, 4)
    np.testing.assert_allclose(layer.moving_mean, 0.05 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance, 0.95 + 0.05 * values.var(0, ddof=1), rtol=1e-5
    )


def test_repeated_values_count_as_often_as_they_repeat():
    x = tf.random.stateless_normal([2, 3, 3, 4], (0, 0))
    small, large = BatchNormalization(repeats=4), BatchNormalization()
    small(x, training=True)
    large(tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2), training=True)
    np.testing.assert_allclose(small.moving_variance, large.moving_variance, rtol=1e-6)


def test_inference_uses_the_averages():
    layer = BatchNormalization("swish")
    layer.build((None, 2, 2, 3))
    layer.moving_mean.assign([1.0, 2.0, 3.0])
    layer.moving_variance.assign([4.0, 1.0, 0.25])
    x = tf.ones([1, 2, 2, 3])
    normalized = (1 - np.array([1.0, 2, 3])) / np.sqrt(np.array([4, 1, 0.25]) + 1e-5)
    np.testing.assert_allclose(layer(x)[0, 0, 0], tf.nn.silu(normalized), rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, [1, 2, 3])  # and leaves them as they are


@pytest.mark.parametrize("jit_compile", ["none", "islands"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_frozen_training_equals_inference(activation, jit_compile):
    layer, x, weights = random_layer(activation)
    layer.moving_mean.assign(1 + tf.random.stateless_normal([7], (0, 4)))
    layer.moving_variance.assign(4 + tf.random.stateless_uniform([7], (0, 5)))
    averages = [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
    results = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            with functional_call(layer, jit_compile=jit_compile, frozen=training) as call:
                y = layer(x, training=training)
            loss = tf.reduce_sum(y * weights)
        sources = [x, layer.gamma.value, layer.beta.value]
        results.append([y, *tape.gradient(loss, sources)])
    for got, wanted in zip(results[1], results[0]):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert not call.statistics
    np.testing.assert_array_equal(averages, [layer.moving_mean, layer.moving_variance])


class TwoReplicas(Replicas):
    """The first of two replicas; the second has the values of the first plus 1/2."""

    size = 2

    def sum(self, tensors):
        (moments,) = tensors
        mean, square = tf.unstack(moments)
        return [moments + tf.stack([mean + 0.5, square + mean + 0.25])]


@pytest.mark.parametrize("replicas, variance", [(Replicas(), 1), (TwoReplicas(), 1 + 1 / 16)])
@pytest.mark.parametrize("jit_compile", ["none", "islands"])
def test_a_large_mean_does_not_cancel_the_variance(jit_compile, replicas, variance):
    # float32 has 7 digits: E[x²] - E[x]² alone would lose a variance of 1 beside a mean of 1e3.
    layer = BatchNormalization()
    noise = tf.random.stateless_normal([8, 8, 8, 2], (0, 0))
    noise = (noise - tf.reduce_mean(noise, [0, 1, 2])) / tf.math.reduce_std(noise, [0, 1, 2])
    layer.build(noise.shape)
    with functional_call(layer, jit_compile=jit_compile, replicas=replicas) as call:
        layer(1e3 + noise, training=True)
    count = replicas.size * 512
    np.testing.assert_allclose(
        call.statistics[layer.moving_variance.path], [variance * count / (count - 1)] * 2, rtol=1e-3
    )


def test_a_layer_that_is_not_trainable_normalises_by_its_averages():
    layer = BatchNormalization("swish")
    x = 5 + tf.random.stateless_normal([2, 3, 3, 4], (0, 0))
    layer.build(x.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), layer(x), rtol=1e-6)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))


def test_unknown_activation():
    with pytest.raises(ValueError, match="'relu'"):
        BatchNormalization("relu")
