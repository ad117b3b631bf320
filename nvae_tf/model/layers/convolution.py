"""Convolutions with symmetric padding: raw, weight-normalised and masked.

The paper's appendix A names the weight normalisation; docs/model.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.model.layers.context import current_call
from nvae_tf.model.layers.depthwise import depthwise_convolution, depthwise_in_xla
from nvae_tf.model.layers.kernels import kernel_norm, weight_norm
from nvae_tf.model.layers.masks import autoregressive_mask
from nvae_tf.model.stacks import StackFunction, stack_variables

_INITIAL_NORM_OFFSET = 1e-2  # in g = log(|v| + offset) at the start
_DATA_INIT_STDDEV = 0.2  # of the output of a convolution after data-dependent initialisation


def fan_in_uniform() -> keras.initializers.Initializer:
    """Returns U(-1/sqrt(fan_in), 1/sqrt(fan_in)), from which all kernels are drawn."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> keras.initializers.Initializer:
    """Returns U(-1/sqrt(fan_in), 1/sqrt(fan_in)), from which all biases are drawn."""
    limit = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-limit, limit)


@keras.saving.register_keras_serializable(package="nvae_tf")
class Convolution(keras.layers.Layer):
    """A 2-D convolution that pads (k-1)/2 pixels on each side, for stride 2 too.

    Input and output are NHWC, the kernel is HWIO: (k, k, in / groups, out). A depthwise
    convolution is one with as many groups as channels.

    Args:
      filters: The number of output channels.
      kernel_size: The side of the kernel, an odd number.
      strides: 1 or 2.
      dilation: The spacing of the kernel's taps.
      groups: The number of convolution groups, a divisor of input and output channels.
      use_bias: Whether to add a bias.

    Raises:
      ValueError: The kernel's side is even; or, by `build`, the groups do not divide the channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, received {kernel_size}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation = dilation
        self.groups = groups
        self.use_bias = use_bias

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        if channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"{self.name}: {self.groups} groups must divide the input channels and the "
                f"filters, received {channels} and {self.filters}."
            )
        fan_in = self.kernel_size**2 * (channels // self.groups)
        self.kernel = self._add_float32(
            "kernel",
            (self.kernel_size, self.kernel_size, channels // self.groups, self.filters),
            fan_in_uniform(),
        )
        if self.use_bias:
            self.bias = self._add_float32("bias", (self.filters,), uniform_bias(fan_in))
        self.built = True

    def _add_float32(self, name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
        # Norms and power iterations need float32, whatever the activations are computed in.
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False
        )

    def effective_kernel(self) -> tf.Tensor:
        """Returns the kernel that the convolution uses, HWIO, float32 unless it was cast before."""
        call = current_call(self)
        if call and self.kernel.path in call.kernels:
            return tf.convert_to_tensor(call.kernels[self.kernel.path])
        return self.compute_kernels([self], stack_variables)[0]

    def kernel_variables(self) -> list[keras.Variable]:
        """Returns the variables that the effective kernel is computed from, the kernel first."""
        return [self.kernel]

    @classmethod
    def compute_kernels(cls, layers: Sequence[Convolution], stack: StackFunction) -> tf.Tensor:
        """Computes the kernels (n, h, w, in, out) of n layers of this class and of one shape."""
        return stack([layer.kernel for layer in layers])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        call = current_call(self)
        if call and call.folded:
            kernel = call.folded.kernels[self.kernel.path]
            bias = call.folded.biases.get(self.kernel.path)
            y = self._convolve(x, tf.cast(kernel, x.dtype), differentiable=False)
        else:
            bias = self.bias if self.use_bias else None
            y = self._convolve(x, tf.cast(self.effective_kernel(), x.dtype))
        return y if bias is None else tf.nn.bias_add(y, tf.cast(bias, x.dtype))

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor, differentiable: bool = True) -> tf.Tensor:
        """Convolves x with an effective kernel.

        Args:
          x: (B, H, W, C).
          kernel: HWIO, of the type of x.
          differentiable: Whether to take the form with the faster gradient on CPUs; else the one
            that Grappler can join with a bias and an activation.
        """
        strides, dilation = self.strides, self.dilation
        if strides > 1 and (self.kernel_size == 1 or dilation % strides == 0):
            # Only every strides-th pixel is read. (The CPU has no strided dilated gradient.)
            x = x[:, ::strides, ::strides]
            strides, dilation = 1, max(dilation // strides, 1)
        padding = "SAME"
        if strides > 1:  # where SAME would pad one side more than the other
            border = dilation * (self.kernel_size - 1) // 2
            x = tf.pad(x, [[0, 0], [border, border], [border, border], [0, 0]])
            padding = "VALID"
        if differentiable and self.kernel_size == self.groups == 1:
            return _pointwise(x, kernel)
        if self.groups == x.shape[-1] == self.filters:
            kernel = tf.reshape(kernel, [self.kernel_size, self.kernel_size, self.filters, 1])
            if differentiable and strides == dilation == 1:
                call = current_call(self)
                form = depthwise_in_xla if call and call.in_xla else depthwise_convolution
                return form(x, kernel)
            return tf.nn.depthwise_conv2d(
                x, kernel, [1, strides, strides, 1], padding, dilations=[dilation, dilation]
            )
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilation)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation": self.dilation,
            "groups": self.groups,
            "use_bias": self.use_bias,
        }


def _pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution as the product of matrices, which is a fifth faster on CPUs."""
    channels, filters = kernel.shape[-2:]
    rows = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [channels, filters]))
    static = x.shape.is_fully_defined()
    shape = [*x.shape[:-1], filters] if static else tf.concat([tf.shape(x)[:-1], [filters]], 0)
    return tf.reshape(rows, shape)


@keras.saving.register_keras_serializable(package="nvae_tf")
class WeightNormConvolution(Convolution):
    """A convolution whose kernel is `exp(g) v / (|v| + 1e-5)`, with a norm per output channel.

    Args:
      data_init: Whether a `functional_call` with `initialize` sets scale and bias from what the
        convolution sees, so that its output has mean 0 and standard deviation 1/5 in every channel
        (`res_elu` cells).
      log_scale_shift: A number that is added to the initial g = log(|v| + 0.01).
      **kwargs: The arguments of `Convolution`.
    """

    def __init__(
        self, *args: Any, data_init: bool = False, log_scale_shift: float = 0.0, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.data_init = data_init
        self.log_scale_shift = log_scale_shift

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)

        # An initializer, because an assignment in build() is lost when Keras builds symbolically.
        def initial_log_scale(shape: tuple, dtype: str | None = None) -> tf.Tensor:
            del shape, dtype
            kernel = self._masked(tf.convert_to_tensor(self.kernel))
            return tf.math.log(kernel_norm(kernel) + _INITIAL_NORM_OFFSET) + self.log_scale_shift

        self.log_scale = self._add_float32("log_scale", (self.filters,), initial_log_scale)

    def _masked(self, kernel: tf.Tensor) -> tf.Tensor:
        return kernel

    def kernel_variables(self) -> list[keras.Variable]:
        return [self.kernel, self.log_scale]

    @classmethod
    def compute_kernels(cls, layers: Sequence[Convolution], stack: StackFunction) -> tf.Tensor:
        kernels = cls._masked_stack(layers, stack([layer.kernel for layer in layers]))
        return weight_norm(kernels, stack([layer.log_scale for layer in layers]))

    @classmethod
    def _masked_stack(cls, layers: Sequence[Convolution], kernels: tf.Tensor) -> tf.Tensor:
        return kernels

    def call(self, x: tf.Tensor) -> tf.Tensor:
        call = current_call(self)
        if self.data_init and call and call.initialize:
            self._initialize_from(x)
        return super().call(x)

    def _initialize_from(self, x: tf.Tensor) -> None:
        y = self._convolve(tf.cast(x, tf.float32), self.effective_kernel())
        mean, variance = tf.nn.moments(y, axes=[0, 1, 2])
        scale = _DATA_INIT_STDDEV / (tf.sqrt(variance) + 1e-8)
        self.log_scale.assign(self.log_scale + tf.math.log(scale))
        self.bias.assign(-mean * scale)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "data_init": self.data_init,
            "log_scale_shift": self.log_scale_shift,
        }


@keras.saving.register_keras_serializable(package="nvae_tf")
class MaskedConvolution(WeightNormConvolution):
    """A weight-normalised convolution that sees only what comes before, in raster order.

    At the kernel's centre the channels are ordered too; see `autoregressive_mask`.

    Args:
      strict: Whether a channel is hidden from itself.
      mirror: Whether the order of the pixels is reversed.
      **kwargs: The arguments of `WeightNormConvolution`.
    """

    def __init__(self, *args: Any, strict: bool, mirror: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.strict = strict
        self.mirror = mirror

    def build(self, input_shape: tuple) -> None:
        self.mask = autoregressive_mask(
            self.kernel_size, input_shape[-1], self.filters, self.groups, self.strict, self.mirror
        )
        super().build(input_shape)

    def _masked(self, kernel: tf.Tensor) -> tf.Tensor:
        return kernel * tf.constant(self.mask)

    @classmethod
    def _masked_stack(cls, layers: Sequence[Convolution], kernels: tf.Tensor) -> tf.Tensor:
        return kernels * tf.constant(np.stack([layer.mask for layer in layers]))

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor, differentiable: bool = True) -> tf.Tensor:
        if self.kernel_size == 1 or self.groups > 1:
            return super()._convolve(x, kernel, differentiable)
        # What comes later is hidden, so that is a third of a 3x3 kernel less to multiply with.
        border = self.kernel_size // 2
        kernel = kernel[border:] if self.mirror else kernel[: border + 1]
        rows = [0, border] if self.mirror else [border, 0]
        return tf.nn.conv2d(x, kernel, 1, [[0, 0], rows, [border, border], [0, 0]])

    def get_config(self) -> dict:
        return {**super().get_config(), "strict": self.strict, "mirror": self.mirror}
