"""Residual cells: `skip(x) + 0.1 SE(branch(x))` (paper, section 3.1 and figure 3)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.architectures import Operation, parse_operation
from nvae_tf.model.compilation import graph_function
from nvae_tf.model.layers.context import current_call
from nvae_tf.model.layers.convolution import (
    Convolution,
    WeightNormConvolution,
    fan_in_uniform,
    uniform_bias,
)
from nvae_tf.model.layers.folding import Fold
from nvae_tf.model.layers.normalization import BatchNormalization
from nvae_tf.model.layers.recomputation import recompute

_BRANCH_SCALE = 0.1
KINDS = ("normal", "down", "up")


def cell_channels(kind: str, channels: int) -> int:
    """Returns a cell's output channels: doubled on the way down, halved on the way up."""
    return {"normal": channels, "down": 2 * channels, "up": channels // 2}[kind]


def upsample_nearest(x: tf.Tensor) -> tf.Tensor:
    """Repeats each pixel of (B, H, W, C) in both directions: (B, 2H, 2W, C)."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)


def _build_chain(layers: Sequence[keras.layers.Layer], shape: tuple) -> tuple:
    """Builds layers that are applied one after the other; returns the last output shape.

    Only channels matter to the layers here, so that is all the shape that is followed.
    """
    for layer in layers:
        layer.build(shape)
        shape = (*shape[:-1], getattr(layer, "filters", shape[-1]))
    return shape


@keras.saving.register_keras_serializable(package="nvae_tf")
class SqueezeExcitation(keras.layers.Layer):
    """Squeeze and excitation: scales channels by a gate computed from their means over H and W.

    It has max(C // 16, 4) hidden units.

    Args:
      scale: A factor of the gate.
    """

    def __init__(self, scale: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        hidden = max(channels // 16, 4)
        self.squeeze = keras.layers.Dense(
            hidden,
            "relu",
            kernel_initializer=fan_in_uniform(),
            bias_initializer=uniform_bias(channels),
            dtype=self.dtype_policy,
            name="squeeze",
        )
        self.excite = keras.layers.Dense(
            channels,
            "sigmoid",
            kernel_initializer=fan_in_uniform(),
            bias_initializer=uniform_bias(hidden),
            dtype=self.dtype_policy,
            name="excite",
        )
        self.squeeze.build((None, channels))
        self.excite.build((None, hidden))
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        weights = [self.squeeze.kernel, self.squeeze.bias, self.excite.kernel, self.excite.bias]
        call = current_call(self)
        # Grappler joins operations inside of one function only.
        compute = _squeeze_and_excite if call and call.folded else _squeeze_and_excite_function
        return compute(x, self.scale, *[tf.cast(weight, x.dtype) for weight in weights])

    def get_config(self) -> dict:
        return {**super().get_config(), "scale": self.scale}


def _squeeze_and_excite(
    x: tf.Tensor,
    scale: float,
    squeeze_kernel: tf.Tensor,
    squeeze_bias: tf.Tensor,
    excite_kernel: tf.Tensor,
    excite_bias: tf.Tensor,
) -> tf.Tensor:
    # TensorFlow's sums of float16 have float16 totals, on which hundreds of pixels lose their bits.
    wide = tf.cast(x, tf.float32)
    mean = tf.cast(tf.reduce_mean(wide, axis=[1, 2]), x.dtype)
    hidden = tf.nn.relu(mean @ squeeze_kernel + squeeze_bias)
    gate = scale * tf.sigmoid(hidden @ excite_kernel + excite_bias)
    # The product in float32, too: the gradient of the gate is a sum over the pixels.
    return tf.cast(wide * tf.cast(gate, tf.float32)[:, None, None, :], x.dtype)


_squeeze_and_excite_function = graph_function(_squeeze_and_excite)


@keras.saving.register_keras_serializable(package="nvae_tf")
class DownSkip(keras.layers.Layer):
    """The skip of a cell that halves the resolution: swish, then four 1x1 convolutions.

    Each convolution sees one pixel of every 2x2 square.

    The four outputs share the channels: each has filters // 4, the last one the remainder.
    """

    # (row, column) offsets, in the order in which the outputs are concatenated.
    OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape: tuple) -> None:
        quarter = self.filters // 4
        self.convolutions = [
            WeightNormConvolution(
                quarter if i < 3 else self.filters - 3 * quarter,
                dtype=self.dtype_policy,
                name=f"offset_{row}{column}",
            )
            for i, (row, column) in enumerate(self.OFFSETS)
        ]
        for convolution in self.convolutions:
            convolution.build(input_shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # The pixels of each 2x2 square, one after the other along the channels, row by row.
        squares = tf.split(tf.nn.space_to_depth(tf.nn.silu(x), 2), 4, axis=-1)
        return tf.concat(
            [
                convolution(squares[2 * row + column])
                for convolution, (row, column) in zip(self.convolutions, self.OFFSETS)
            ],
            axis=-1,
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="nvae_tf")
class UpSkip(keras.layers.Layer):
    """The skip of a cell that doubles the resolution: a 1x1 convolution, then interpolation.

    The interpolation is bilinear with aligned corners; the convolution has no bias.

    The two commute; the convolution comes first, on a quarter of the pixels.
    """

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape: tuple) -> None:
        self.convolution = WeightNormConvolution(
            self.filters, use_bias=False, dtype=self.dtype_policy, name="convolution"
        )
        self.convolution.build(input_shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.convolution(x)
        call = current_call(self)
        if call and call.in_xla:
            return _interpolate_in_xla(x)
        size = 2 * tf.shape(x)[1:3]
        return tf.cast(tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True), x.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "filters": self.filters}


def _interpolate_in_xla(x: tf.Tensor) -> tf.Tensor:
    """Does what `UpSkip` does after its convolution, by products with a matrix for each axis.

    XLA's own form is a depthwise convolution with a kernel of twice the image's size.
    """
    rows, columns = (_interpolation_matrix(side) for side in x.shape[1:3])
    wide = tf.einsum("ph,bhwc,qw->bpqc", rows, tf.cast(x, tf.float32), columns)
    return tf.cast(wide, x.dtype)


def _interpolation_matrix(side: int) -> tf.Tensor:
    """Returns the weights (2 side, side) of the pixels of a row in those of one twice as long."""
    places = np.linspace(0, side - 1, 2 * side)
    distances = np.abs(places[:, None] - np.arange(side))
    return tf.constant(np.maximum(1 - distances, 0), tf.float32)


@keras.saving.register_keras_serializable(package="nvae_tf")
class ConvolutionBranch(keras.layers.Layer):
    """A `res_*` operation: normalisation and activation, then a 3x3 convolution.

    Args:
      operation: The operation's name, such as `res_bnswish`.
      filters: The number of output channels.
      kind: `normal`, `down` (stride 2) or `up` (nearest-neighbour up-sampling before the
        convolution).
    """

    def __init__(self, operation: str, filters: int, kind: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.operation = operation
        self.filters = filters
        self.kind = kind

    def build(self, input_shape: tuple) -> None:
        operation = parse_operation(self.operation)
        common = {"dtype": self.dtype_policy}
        activation = {"bnswish": "swish", "bnelu": "elu"}.get(operation.family)
        self.normalization = (
            BatchNormalization(activation, name="normalization", **common) if activation else None
        )
        self.convolution = WeightNormConvolution(
            self.filters,
            kernel_size=3,
            strides=2 if self.kind == "down" else 1,
            dilation=operation.dilation,
            data_init=operation.family == "elu",
            name="convolution",
            **common,
        )
        if self.normalization:
            self.normalization.build(input_shape)
        self.convolution.build(input_shape)
        self.built = True

    def chain(self) -> list[keras.layers.Layer]:
        """Returns normalisations and convolutions in the order of computation."""
        return [layer for layer in (self.normalization, self.convolution) if layer]

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.normalization(x, training=training) if self.normalization else tf.nn.elu(x)
        if self.kind == "up":
            x = upsample_nearest(x)
        return self.convolution(x)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "operation": self.operation,
            "filters": self.filters,
            "kind": self.kind,
        }


@keras.saving.register_keras_serializable(package="nvae_tf")
class InvertedBottleneck(keras.layers.Layer):
    """The operation `mconv_e{E}k{K}g{G}`, an inverted bottleneck.

    Its layers are BN, 1x1 to E·C, BN + swish, KxK depthwise, BN + swish, 1x1, BN.

    `up` doubles the resolution first, by repetition of pixels. All before the KxK convolution acts
    on single pixels, so it is computed once per repeated pixel, and the repetition comes after it.

    Args:
      operation: The operation's name, such as `mconv_e6k5g0`; g0 is depthwise, g8 has 8 groups.
      filters: The number of output channels.
      kind: `normal`, `down` or `up`.
    """

    def __init__(self, operation: str, filters: int, kind: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.operation = operation
        self.filters = filters
        self.kind = kind

    def build(self, input_shape: tuple) -> None:
        operation: Operation = parse_operation(self.operation)
        hidden = operation.expansion * input_shape[-1]
        common = {"dtype": self.dtype_policy}
        repeats = 4 if self.kind == "up" else 1
        self.pointwise: list[Any] = [
            BatchNormalization(repeats=repeats, name="normalization_0", **common),
            Convolution(hidden, use_bias=False, name="expand", **common),
            BatchNormalization("swish", repeats=repeats, name="normalization_1", **common),
        ]
        self.spatial: list[Any] = [
            Convolution(
                hidden,
                operation.kernel_size,
                strides=2 if self.kind == "down" else 1,
                groups=operation.groups or hidden,
                use_bias=False,
                name="spatial",
                **common,
            ),
            BatchNormalization("swish", name="normalization_2", **common),
            Convolution(self.filters, use_bias=False, name="project", **common),
            BatchNormalization(name="normalization_3", **common),
        ]
        _build_chain(self.pointwise + self.spatial, tuple(input_shape))
        self.built = True

    def chain(self) -> list[keras.layers.Layer]:
        """Returns normalisations and convolutions in the order of computation."""
        return self.pointwise + self.spatial

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        def through(layers: list[Any], x: tf.Tensor) -> tf.Tensor:
            for layer in layers:
                is_norm = isinstance(layer, BatchNormalization)
                x = layer(x, training=training) if is_norm else layer(x)
            return x

        x = through(self.pointwise, x)
        if self.kind == "up":
            x = upsample_nearest(x)
        return through(self.spatial, x)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "operation": self.operation,
            "filters": self.filters,
            "kind": self.kind,
        }


@keras.saving.register_keras_serializable(package="nvae_tf")
class ResidualCell(keras.layers.Layer):
    """A residual cell: `skip(x) + 0.1 SE(branch(x))` on (B, H, W, C).

    Args:
      operations: The names of the branch's operations; the first carries stride and channel change.
      kind: `normal` (same shape), `down` ((B, H/2, W/2, 2C)) or `up` ((B, 2H, 2W, C/2)).
      use_se: Whether the branch ends with squeeze and excitation.

    Raises:
      ValueError: The kind or an operation is unknown.
    """

    def __init__(self, operations: Sequence[str], kind: str, use_se: bool, **kwargs: Any):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; received {kind!r}.")
        self.operations = tuple(operations)
        self.kind = kind
        self.use_se = use_se

    def build(self, input_shape: tuple) -> None:
        filters = cell_channels(self.kind, input_shape[-1])
        common = {"dtype": self.dtype_policy}
        self.skip = None
        if self.kind == "down":
            self.skip = DownSkip(filters, name="skip", **common)
        elif self.kind == "up":
            self.skip = UpSkip(filters, name="skip", **common)
        self.branch = []
        for i, name in enumerate(self.operations):
            is_mconv = parse_operation(name).family == "mconv"
            layer_class = InvertedBottleneck if is_mconv else ConvolutionBranch
            kind = self.kind if i == 0 else "normal"
            self.branch.append(layer_class(name, filters, kind, name=f"operation_{i}", **common))
        self.gate = None
        if self.use_se:  # the gate has fewer values to scale than the branch
            self.gate = SqueezeExcitation(_BRANCH_SCALE, name="squeeze_excitation", **common)

        if self.skip:
            self.skip.build(input_shape)
        shape = _build_chain(self.branch, tuple(input_shape))
        if self.gate:
            self.gate.build(shape)
        self.built = True

    def folds(self) -> list[Fold]:
        """Returns the normalisations that convolutions can take over, in their order."""
        chain = [layer for operation in self.branch for layer in operation.chain()]
        folds = []
        for before, layer, after in zip([None, *chain], chain, [*chain[1:], None]):
            if not isinstance(layer, BatchNormalization):
                continue
            if isinstance(before, Convolution):
                folds.append(Fold(layer, before, follows=True))
            elif (
                layer.activation is None
                and isinstance(after, Convolution)
                and after.kernel_size == 1
            ):
                folds.append(Fold(layer, after, follows=False))
        return folds

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        call = current_call(self)
        if call and call.recompute:
            compute = functools.partial(self._compute, training=training)
            return recompute(self, compute, x, call)
        return self._compute(x, training)

    def _compute(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        branch = x
        for operation in self.branch:
            branch = operation(branch, training=training)
        branch = self.gate(branch) if self.gate else tf.cast(_BRANCH_SCALE, x.dtype) * branch
        return (self.skip(x) if self.skip else x) + branch

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "operations": list(self.operations),
            "kind": self.kind,
            "use_se": self.use_se,
        }
