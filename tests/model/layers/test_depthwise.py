"""The fast filter gradient against TensorFlow's."""

import hypothesis
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from nvae_tf.model.layers.depthwise import depthwise_convolution


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
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
    for ours, theirs in zip(compute(depthwise_convolution), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


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
