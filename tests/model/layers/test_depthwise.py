"""The fast forms against TensorFlow's."""

import hypothesis
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from nvae_tf.model.compilation import compiled
from nvae_tf.model.layers.depthwise import depthwise_convolution, depthwise_in_xla


@hypothesis.settings(max_examples=15, derandomize=True)
@hypothesis.given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from([3, 5]),
)
def test_gradients(batch, height, width, channels, size):
    shape = (batch, height, width, channels)
    x, weights = (tf.random.stateless_normal(shape, (0, i)) for i in range(2))
    kernel = tf.random.stateless_normal([size, size, channels, 1], (0, 2))

    def compute(convolve):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel)
        return y, *tape.gradient(y, [x, kernel], weights)

    expected = compute(lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, 1, 1, 1], "SAME"))
    in_xla = compiled(lambda: compute(depthwise_in_xla))
    for received in (compute(depthwise_convolution), in_xla()):
        for ours, theirs in zip(received, expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sums_in_xla_are_in_float32():
    x, dy = (tf.random.stateless_normal((2, 9, 9, 3), (0, i)) for i in range(2))
    kernel = tf.random.stateless_normal([5, 5, 3, 1], (0, 2))
    rounded = [tf.cast(tensor, tf.bfloat16) for tensor in (x, kernel, dy)]

    @compiled
    def compute(x, kernel, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = depthwise_in_xla(x, kernel)
        return y, *tape.gradient(y, [x, kernel], dy)

    exact = compute(*(tf.cast(tensor, tf.float32) for tensor in rounded))
    for ours, theirs in zip(compute(*rounded), exact):
        assert ours.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(ours, tf.float32), theirs, rtol=2**-8)


def test_large_images_are_treated_one_by_one():
    shape = (2, 16, 16, 300)
    x, dy = (tf.random.stateless_normal(shape, (0, i)) for i in range(2))
    kernel = tf.zeros([5, 5, 300, 1])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = depthwise_convolution(x, kernel)
    expected = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x, filter_sizes=kernel.shape, out_backprop=dy, strides=[1] * 4, padding="SAME"
    )
    np.testing.assert_allclose(tape.gradient(y, kernel, dy), expected, rtol=1e-3, atol=1e-3)
