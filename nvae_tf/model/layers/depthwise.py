"""A depthwise convolution with a fast filter gradient on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

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
