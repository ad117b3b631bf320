"""A depthwise convolution with a fast filter gradient on CPUs, and one for XLA."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from nvae_tf.model.compilation import graph_function

# In TensorFlow 2.16 the forward pass hangs for kernels as large as an image; 2.21 is tested.
_LARGE_KERNELS_WORK = tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 21)


def depthwise_convolution(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves each channel with a kernel of its own, with zero padding.

    TensorFlow's filter gradient for CPUs is several times slower than its forward pass
    (`benchmarks/depthwise.py`). The filter gradient is itself a forward pass over the images with
    the output's gradients as kernels, so on CPUs it is computed as one.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C, 1).

    Returns:
      (B, H, W, C).
    """
    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    if on_gpu or not _LARGE_KERNELS_WORK or not x.shape.is_fully_defined():
        return _native(x, kernel)

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # The forward pass with a turned kernel, which is faster than TensorFlow's own gradient.
            dx = _native(dy, tf.reverse(kernel, [0, 1]))
            return dx, _filter_gradient(x, dy, kernel.shape[0])

        return _native(x, kernel), gradient

    return convolve(x, kernel)


def depthwise_in_xla(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Does what `depthwise_convolution` does, in the form that is fast where XLA compiles it.

    XLA's own depthwise convolutions are slow. A sum of moved images, each times its place in the
    kernel, is elementwise, so XLA makes one pass over the memory of it. The sums are in float32,
    whatever the type of x.
    """

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dx = _weighted_sum(dy, tf.reverse(kernel, [0, 1]))
            wide = tf.cast(dy, tf.float32)
            products = tf.stack([moved * wide for moved in _moved(x, kernel.shape[0])])
            sums = tf.reduce_sum(products, axis=[1, 2, 3])
            return dx, tf.cast(tf.reshape(sums, kernel.shape), kernel.dtype)

        return _weighted_sum(x, kernel), gradient

    return convolve(x, kernel)


def _moved(x: tf.Tensor, size: int) -> list[tf.Tensor]:
    """Returns images (B, H, W, C) as float32, moved to each place of a kernel, row by row."""
    height, width = x.shape[1:3]
    border = [(size - 1) // 2, size // 2]
    # Behind a barrier, XLA pads once; else it asks at each place whether that is in the border.
    padded = xla.optimization_barrier(tf.pad(x, [[0, 0], border, border, [0, 0]]))[0]
    places = [(i, j) for i in range(size) for j in range(size)]
    return [tf.cast(padded[:, i : i + height, j : j + width], tf.float32) for i, j in places]


def _weighted_sum(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    size = kernel.shape[0]
    weights = tf.unstack(tf.cast(tf.reshape(kernel, [size * size, -1]), tf.float32))
    total = tf.add_n([m * weight for m, weight in zip(_moved(x, size), weights)])
    return tf.cast(total, x.dtype)


def _native(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")


@graph_function
def _filter_gradient(x: tf.Tensor, dy: tf.Tensor, size: int) -> tf.Tensor:
    """Computes the kernel's gradient (k, k, C, 1) from x and dy, both (B, H, W, C).

    It takes one image after the other, for then neither is ever copied into another order.
    """
    border = [size // 2, size // 2]
    padding = [[0, 0], border, border, [0, 0]]
    sums = [
        tf.nn.depthwise_conv2d(image, gradient[..., None], [1, 1, 1, 1], padding)
        for image, gradient in zip(tf.split(x, x.shape[0]), tf.unstack(dy))
    ]
    return tf.reshape(tf.add_n(sums), [size, size, x.shape[-1], 1])
