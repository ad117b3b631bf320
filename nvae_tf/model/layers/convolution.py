"""Convolutions with symmetric padding: raw, weight-normalised and masked (SPEC sections 2 and 5).

The weights in effect (after weight normalisation and masking) are called effective kernels. A
network has hundreds of them in a few shapes, so `KernelBank` computes all kernels of one shape in
one batched operation; inside `KernelBank.use` the layers take theirs from there. That keeps the
graph small, and gives the spectral regularisation the stacks that it iterates on.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.model.layers.depthwise import depthwise_convolution
from nvae_tf.model.stacks import StackFunction, stack_variables

_NORM_OFFSET = 1e-5  # in w = exp(g) v / (|v| + offset)
_INITIAL_NORM_OFFSET = 1e-2  # in g = log(|v| + offset) at the start
_DATA_INIT_STDDEV = 0.2  # of the output of a convolution after data-dependent initialisation

# Thread-local, because MirroredStrategy traces every replica in a thread of its own.
_tracing = threading.local()


def fan_in_uniform() -> keras.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): how all kernels start."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> keras.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): how all biases start."""
    limit = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-limit, limit)


@contextlib.contextmanager
def data_dependent_initialization() -> Iterator[None]:
    """In this scope, an eager call of a convolution built with `data_init` sets its scale and bias.

    After it, that convolution's output on the same input has mean 0 and standard deviation 1/5 in
    every channel (SPEC section 2, `res_elu`).
    """
    _tracing.data_init = True
    try:
        yield
    finally:
        _tracing.data_init = False


@keras.saving.register_keras_serializable(package="nvae_tf")
class Convolution(keras.layers.Layer):
    """A 2-D convolution with symmetric padding of (k-1)/2, for stride 2 too.

    Input and output are NHWC, the kernel is HWIO: (k, k, in / groups, out). A depthwise
    convolution is one with as many groups as channels.

    Args:
      filters: output channels.
      kernel_size: odd side of the kernel.
      strides: 1 or 2.
      dilation: spacing of the kernel's taps; with strides, a multiple of them.
      groups: convolution groups, a divisor of input and output channels.
      use_bias: whether to add a bias.

    Raises:
      ValueError: in `build`, if the groups do not divide the channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
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

    def _add_float32(self, name: str, shape: tuple[int, ...], initializer) -> keras.Variable:
        # Norms and power iterations need float32, whatever the activations are computed in.
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False
        )

    def effective_kernel(self) -> tf.Tensor:
        """The kernel that the convolution uses, HWIO, float32."""
        shared = getattr(_tracing, "kernels", None)
        if shared is not None and id(self) in shared:
            return shared[id(self)]
        return self._compute_kernels([self], stack_variables)[0]

    @classmethod
    def _compute_kernels(cls, layers: Sequence[Convolution], stack: StackFunction) -> tf.Tensor:
        """Effective kernels (n, h, w, in, out) of n layers of this class and of one shape."""
        return stack([layer.kernel for layer in layers])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = self._convolve(x, tf.cast(self.effective_kernel(), x.dtype))
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.cast(self.bias, x.dtype))
        return y

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
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
        if self.kernel_size == self.groups == 1:
            return _pointwise(x, kernel)
        if self.groups == x.shape[-1] == self.filters:
            kernel = tf.reshape(kernel, [self.kernel_size, self.kernel_size, self.filters, 1])
            if strides == dilation == 1:
                return depthwise_convolution(x, kernel)
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
    """A convolution with `w = exp(g) v / (|v| + 1e-5)`, the norm per output channel.

    Args:
      data_init: whether scale and bias are set from the first batch (see
        `data_dependent_initialization`).
      log_scale_shift: added to the initial g = log(|v| + 0.01).
      **kwargs: those of `Convolution`.
    """

    def __init__(self, *args, data_init: bool = False, log_scale_shift: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_init = data_init
        self.log_scale_shift = log_scale_shift

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)

        # An initializer, because an assignment in build() is lost when Keras builds symbolically.
        def initial_log_scale(shape, dtype=None):
            del shape, dtype
            kernel = self._masked(tf.convert_to_tensor(self.kernel))
            return tf.math.log(_norm(kernel) + _INITIAL_NORM_OFFSET) + self.log_scale_shift

        self.log_scale = self._add_float32("log_scale", (self.filters,), initial_log_scale)

    def _masked(self, kernel: tf.Tensor) -> tf.Tensor:
        return kernel

    @classmethod
    def _compute_kernels(cls, layers: Sequence[Convolution], stack: StackFunction) -> tf.Tensor:
        kernels = stack([layer.kernel for layer in layers])
        return _weight_norm(kernels, stack([layer.log_scale for layer in layers]))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if self.data_init and getattr(_tracing, "data_init", False):
            self._initialize_from(x)
        return super().call(x)

    def _initialize_from(self, x: tf.Tensor) -> None:
        y = self._convolve(x, self.effective_kernel())
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
      strict: whether a channel is hidden from itself.
      mirror: whether the order of the pixels is reversed.
      **kwargs: those of `WeightNormConvolution`.
    """

    def __init__(self, *args, strict: bool, mirror: bool, **kwargs):
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
    def _compute_kernels(cls, layers: Sequence[Convolution], stack: StackFunction) -> tf.Tensor:
        kernels = stack([layer.kernel for layer in layers])
        masks = tf.constant(np.stack([layer.mask for layer in layers]))
        return _weight_norm(kernels * masks, stack([layer.log_scale for layer in layers]))

    def get_config(self) -> dict:
        return {**super().get_config(), "strict": self.strict, "mirror": self.mirror}


def autoregressive_mask(
    kernel_size: int, channels: int, filters: int, groups: int, strict: bool, mirror: bool
) -> np.ndarray:
    """Zeros and ones (k, k, channels / groups, filters) of a masked kernel (SPEC section 5).

    Rows above the centre are open, and in the centre row the positions left of the centre. At the
    centre, output block i sees the input blocks up to i (before i, if strict), where a block is one
    channel on the side that has fewer. `mirror` flips both spatial axes.

    Raises:
      ValueError: if neither number of channels is a multiple of the other.
    """
    if max(channels, filters) % min(channels, filters):
        raise ValueError(
            f"A masked convolution needs channels and filters of which one divides the other, "
            f"received {channels} and {filters}."
        )
    centre = (kernel_size - 1) // 2
    mask = np.zeros((kernel_size, kernel_size, channels // groups, filters), np.float32)
    mask[:centre] = 1
    mask[centre, :centre] = 1
    blocks = min(channels, filters)
    block_in = np.arange(channels) // (channels // blocks)
    block_out = np.arange(filters) // (filters // blocks)
    sees = np.less if strict else np.less_equal
    if groups == 1:
        mask[centre, centre] = sees(block_in[:, None], block_out[None, :])
    else:  # depthwise: a channel meets only itself
        mask[centre, centre] = 0 if strict else 1
    return mask[::-1, ::-1].copy() if mirror else mask


class KernelBank:
    """The effective kernels of many convolutions, those of one class and shape in one stack.

    Args:
      layers: built convolutions; the stacks' order follows theirs.
    """

    def __init__(self, layers: Iterable[Convolution]):
        stacks: dict[tuple, list[Convolution]] = {}
        for layer in layers:
            key = (type(layer), tuple(layer.kernel.shape))
            stacks.setdefault(key, []).append(layer)
        self.stacks = list(stacks.values())

    def variable_groups(self) -> list[list[keras.Variable]]:
        """The variables that `compute` needs stacked."""
        groups = [[layer.kernel for layer in layers] for layers in self.stacks]
        return groups + [
            [layer.log_scale for layer in layers]
            for layers in self.stacks
            if isinstance(layers[0], WeightNormConvolution)
        ]

    def compute(self, stack: StackFunction = stack_variables) -> list[tf.Tensor]:
        """All effective kernels: one tensor (n, h, w, in, out) per stack, float32.

        Args:
          stack: where the stacks of `variable_groups` come from.
        """
        return [type(layers[0])._compute_kernels(layers, stack) for layers in self.stacks]

    @contextlib.contextmanager
    def use(self, stacks: Sequence[tf.Tensor]) -> Iterator[None]:
        """In this scope the layers use these kernels, which `compute` returned."""
        kernels = {
            id(layer): kernel
            for layers, stack in zip(self.stacks, stacks)
            for layer, kernel in zip(layers, tf.unstack(stack))
        }
        with given_kernels(kernels):
            yield


def effective_kernels(layers: Iterable[Convolution]) -> dict[int, tf.Tensor]:
    """The layers' effective kernels of the moment, for `given_kernels`.

    What runs a model many times with the same weights need not normalise them every time.
    """
    return {id(layer): layer.effective_kernel() for layer in layers}


@contextlib.contextmanager
def given_kernels(kernels: dict[int, tf.Tensor]) -> Iterator[None]:
    """In this scope, layers take their effective kernels from there, by their id."""
    outer = getattr(_tracing, "kernels", None)
    _tracing.kernels = kernels
    try:
        yield
    finally:
        _tracing.kernels = outer


def _weight_norm(v: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """`exp(g) v / (|v| + 1e-5)` for kernels (n, h, w, in, out) and g (n, out).

    Its gradient is written out: it reads and writes the weights about half as often.
    """

    @tf.custom_gradient
    def normalize(v, log_scale):
        norm = _norm(v)
        scale = tf.exp(log_scale) / (norm + _NORM_OFFSET)

        def gradient(dw):
            d_scale = tf.reduce_sum(dw * v, axis=[1, 2, 3])
            d_log_scale = d_scale * scale
            # d|v| / dv = v / |v|, and 0 where the norm is 0
            radial = tf.math.divide_no_nan(-d_log_scale, (norm + _NORM_OFFSET) * norm)
            return dw * _per_filter(scale) + v * _per_filter(radial), d_log_scale

        return v * _per_filter(scale), gradient

    return normalize(v, log_scale)


def _per_filter(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None, :]


def _norm(kernels: tf.Tensor) -> tf.Tensor:
    """Norm per output channel, of kernels (..., h, w, in, out)."""
    return tf.sqrt(tf.reduce_sum(tf.square(kernels), axis=[-4, -3, -2]))
