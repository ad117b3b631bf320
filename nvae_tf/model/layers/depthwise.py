"""A depthwise convolution with a fast filter gradient on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Number of image values per operation of the filter gradient, few enough for the CPU's cache.
_BLOCK = 65536
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
            dx = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=x.shape,
                filter=kernel,
                out_backprop=dy,
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
            return dx, _filter_gradient(x, dy, kernel.shape[0])

        return _native(x, kernel), gradient

    return convolve(x, kernel)


def _native(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")


# As a function of the graph, its hundred operations are not repeated for every layer.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})
def _filter_gradient(x: tf.Tensor, dy: tf.Tensor, size: int) -> tf.Tensor:
    """Computes the kernel's gradient (k, k, C, 1) from x and dy, both (B, H, W, C)."""
    batch, height, width, channels = x.shape
    largest = max(_BLOCK // (height * width * channels), 1)
    block = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= largest)
    border = [size // 2, size // 2]
    x = tf.pad(x, [[0, 0], border, border, [0, 0]])
    blocks = zip(tf.split(x, batch // block), tf.split(dy, batch // block))
    sums = [
        tf.nn.depthwise_conv2d(
            _images_as_channels(images)[None],
            _images_as_channels(gradients)[..., None],
            [1, 1, 1, 1],
            "VALID",
        )
        for images, gradients in blocks
    ]
    per_image = tf.reshape(tf.add_n(sums), [size, size, block, channels])
    return tf.reduce_sum(per_image, axis=2)[..., None]


def _images_as_channels(x: tf.Tensor) -> tf.Tensor:
    """Moves the batch axis of (b, H, W, C) into the channels: (H, W, b C)."""
    batch, height, width, channels = x.shape
    return tf.reshape(tf.transpose(x, [1, 2, 0, 3]), [height, width, batch * channels])
