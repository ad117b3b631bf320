"""The two towers of NVAE, bottom-up and top-down, without what is random (paper, section 3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions.likelihoods import num_likelihood_parameters
from nvae_tf.model.group import LatentGroup
from nvae_tf.model.layers.cells import ResidualCell, cell_channels
from nvae_tf.model.layers.combiners import DecoderCombiner, EncoderCombiner, ParameterHead
from nvae_tf.model.layers.context import current_call
from nvae_tf.model.layers.convolution import Convolution, WeightNormConvolution
from nvae_tf.model.layers.flow import AutoregressiveFlow
from nvae_tf.model.layers.folding import Fold
from nvae_tf.model.layers.normalization import BatchNormalization, moving_averages

Shape: TypeAlias = tuple[None, int, int, int]
_COMPUTE_TYPES = ("float32", "float16", "bfloat16")
_ROUNDING = 1e-2  # how far a resized or half-precision image may be outside of [0, 1]
_Layer = TypeVar("_Layer", bound=keras.layers.Layer)


def _create_unnamed(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
    """Creates a variable whose name in TensorFlow says nothing; Keras still knows its path.

    TensorFlow keeps a kernel for every name that it has seen: 37 KB and 1 ms for each variable.
    """
    with tf.name_scope("nvae/"):
        return next_creator(**(kwargs | {"name": "variable"}))


class Towers(keras.Model):
    """All layers of the model, built on construction, and the two passes through them.

    Args:
      config: What to build.
      name: The model's name.
      **kwargs: The arguments of `keras.Model`.

    Attributes:
      config: The argument of that name.
      groups: The latent groups with their layers, top-down: group 0 has the lowest resolution.
      has_own_values: Whether the variables have values, and are not structure alone.

    Raises:
      TypeError: `config` is no `ModelConfig`.
      ValueError: The activations would have another type than float32, float16 or bfloat16.
    """

    def __init__(self, config: ModelConfig, name: str, **kwargs: Any):
        if not isinstance(config, ModelConfig):
            raise TypeError(
                f"A model is built from a ModelConfig, received {type(config).__name__}. An "
                "ExperimentConfig has one, as its `model`."
            )
        super().__init__(name=name, **kwargs)
        if self.compute_dtype not in _COMPUTE_TYPES:
            raise ValueError(
                f"Activations are {', '.join(_COMPUTE_TYPES)}; received {self.compute_dtype}."
            )
        self.config = config
        # Layers inside of a `LatentGroup` are invisible to Keras, so all of them stand here, too.
        self.parts: list[keras.layers.Layer] = []
        self.has_own_values = True
        with tf.variable_creator_scope(_create_unnamed):
            bottom_up, shapes = self._build_bottom_up()
            latent = self._build_latent_layers(shapes[::-1])
            top_down = self._build_top_down()
        self.groups = tuple(
            LatentGroup(number, config.group_scales[number], shape, **of_group)
            for number, (shape, of_group) in enumerate(
                zip(
                    config.latent_shapes,
                    (a | b | c for a, b, c in zip(bottom_up[::-1], latent, top_down)),
                )
            )
        )
        self.built = True

    # Construction, in the order of use. The methods that build what belongs to groups return a
    # dictionary of `LatentGroup`'s fields for each of them.

    def _build(self, layer: _Layer, shape: Any) -> _Layer:
        layer.build(shape)
        self.parts.append(layer)
        return layer

    def _cell(self, name: str, kind: str, operations: Sequence[str], shape: Shape) -> ResidualCell:
        cell = ResidualCell(
            operations, kind, self.config.use_se, dtype=self.dtype_policy, name=name
        )
        return self._build(cell, shape)

    def _cells(
        self, names: Sequence[tuple[str, str]], operations: Sequence[str], shape: Shape
    ) -> tuple[tuple[ResidualCell, ...], Shape]:
        """Builds cells in a row from (name, kind); returns them and the last one's shape."""
        cells = []
        for name, kind in names:
            cells.append(self._cell(name, kind, operations, shape))
            shape = _shape_after(kind, shape)
        return tuple(cells), shape

    def _convolution(
        self, name: str, filters: int, shape: Shape, kernel_size: int = 1
    ) -> WeightNormConvolution:
        return self._build(
            WeightNormConvolution(filters, kernel_size, dtype=self.dtype_policy, name=name), shape
        )

    def _build_bottom_up(self) -> tuple[list[dict[str, Any]], list[Shape]]:
        """Returns the fields and the shape of the kept features of each group, bottom-up."""
        config = self.config
        operations = ARCHITECTURES[config.arch_instance]
        height, width, channels = config.image_shape
        shape: Shape = (None, height, width, config.num_channels_enc)
        self.stem = self._convolution(
            "stem", config.num_channels_enc, (None, height, width, channels), kernel_size=3
        )
        last = config.num_preprocess_cells - 1
        names = [
            (f"preprocess_{block}_{i}", "down" if i == last else "normal")
            for block in range(config.num_preprocess_blocks)
            for i in range(config.num_preprocess_cells)
        ]
        self.preprocess_cells, shape = self._cells(names, operations.preprocess, shape)
        fields: list[dict[str, Any]] = []
        shapes = []
        cells_per_group = 0 if config.is_vanilla else config.num_cell_per_cond_enc
        for scale, groups in enumerate(config.groups_per_scale):
            for group in range(groups):
                names = [(f"encoder_{scale}_{group}_{i}", "normal") for i in range(cells_per_group)]
                cells, shape = self._cells(names, operations.encoder, shape)
                fields.append({"encoder_cells": cells, "down_cell": None})
                shapes.append(shape)
            if scale < config.num_latent_scales - 1:
                down = self._cell(f"encoder_{scale}_down", "down", operations.encoder, shape)
                fields[-1]["down_cell"] = down
                shape = _shape_after("down", shape)
        self.encoder_head = self._convolution("encoder_head", shape[-1], shape)
        return fields, shapes

    def _build_latent_layers(self, shapes: Sequence[Shape]) -> list[dict[str, Any]]:
        """Builds heads, encoder combiners and flows for bottom-up features of these shapes."""
        config = self.config
        channels, common = config.num_latent_per_group, {"dtype": self.dtype_policy}
        fields = []
        for group, latent_shape in enumerate(config.latent_shapes):
            of_group: dict[str, Any] = dict.fromkeys(("encoder_combiner", "prior_head", "flow"))
            head = ParameterHead(channels, 3, elu=False, name=f"posterior_{group}", **common)
            of_group["posterior_head"] = self._build(head, shapes[group])
            if config.num_nf:
                flow = AutoregressiveFlow(config.num_nf, name=f"flow_{group}", dtype="float32")
                of_group["flow"] = self._build(flow, (None, *latent_shape))
            if group > 0:
                top_down = self._top_down_shape(config.group_scales[group])
                combiner = EncoderCombiner(name=f"encoder_combiner_{group}", **common)
                of_group["encoder_combiner"] = self._build(combiner, [shapes[group], top_down])
                prior = ParameterHead(channels, 1, elu=True, name=f"prior_{group}", **common)
                of_group["prior_head"] = self._build(prior, top_down)
            fields.append(of_group)
        return fields

    def _top_down_shape(self, scale: int) -> Shape:
        factor = 2 ** (self.config.num_preprocess_blocks + scale)
        height, width, _ = self.config.image_shape
        return None, height // factor, width // factor, self.config.num_channels_dec * factor

    def _build_top_down(self) -> list[dict[str, Any]]:
        config = self.config
        operations = ARCHITECTURES[config.arch_instance]
        shape = self._top_down_shape(config.num_latent_scales - 1)
        fields: list[dict[str, Any]] = [
            {"decoder_cells": (), "decoder_combiner": None, "up_cell": None}
            for _ in config.group_scales
        ]
        if config.is_vanilla:
            latent_shape = (None, *config.latent_shapes[0])
            self.decoder_stem = self._convolution("decoder_stem", shape[-1], latent_shape)
        else:
            with keras.name_scope("nvae"):  # its path, like all others, without the model's name
                self.constant = keras.Variable(
                    keras.initializers.RandomUniform(0.0, 1.0),
                    shape=shape[1:],
                    dtype="float32",
                    autocast=False,
                    name="constant",
                )
            shape = self._build_decoder(fields)
        names = [
            (f"postprocess_{block}_{i}", "up" if i == 0 else "normal")
            for block in range(config.num_postprocess_blocks)
            for i in range(config.num_postprocess_cells)
        ]
        self.postprocess_cells, shape = self._cells(names, operations.postprocess, shape)
        self.image_head = self._convolution(
            "image_head", num_likelihood_parameters(config), shape, kernel_size=3
        )
        return fields

    def _build_decoder(self, fields: list[dict[str, Any]]) -> Shape:
        """Builds the top-down layers of all groups; returns the shape of their features."""
        config = self.config
        operations = ARCHITECTURES[config.arch_instance].decoder
        for group, scale in enumerate(config.group_scales):
            shape = self._top_down_shape(scale)
            cells = range(config.num_cell_per_cond_dec if group > 0 else 0)
            names = [(f"decoder_{group}_{i}", "normal") for i in cells]
            fields[group]["decoder_cells"], _ = self._cells(names, operations, shape)
            combiner = DecoderCombiner(name=f"decoder_combiner_{group}", dtype=self.dtype_policy)
            latent_shape = (None, *config.latent_shapes[group])
            fields[group]["decoder_combiner"] = self._build(combiner, [shape, latent_shape])
        for scale in reversed(range(1, config.num_latent_scales)):
            last = len(config.group_scales) - 1 - config.group_scales[::-1].index(scale)
            up = self._cell(f"decoder_{scale}_up", "up", operations, self._top_down_shape(scale))
            fields[last]["up_cell"] = up
        return self._top_down_shape(0)

    # The two passes.

    def bottom_up(self, images: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Computes the features of images for the posteriors.

        They do not depend on the latent variables, so many samples of z can share them.

        Args:
          images: (B, H, W, C), in [0, 1].
          training: Whether batch normalisation uses the batch's statistics.

        Returns:
          L tensors (B, H_l, W_l, C_l), top-down.

        Raises:
          ValueError: The images have another shape than `config.image_shape`, or are integers; or,
            outside of a `tf.function`, they have other values.
          RuntimeError: The model is a `structure`, and there are no values for it.
        """
        self._require_values()
        images = tf.convert_to_tensor(images)
        if tuple(images.shape[1:]) != self.config.image_shape:
            raise ValueError(
                f"Expected images of shape (batch, {', '.join(map(str, self.config.image_shape))})"
                f" (ModelConfig.image_shape), received {tuple(images.shape)}."
            )
        if not images.dtype.is_floating:
            raise ValueError(
                f"Expected images of floats in [0, 1], received {images.dtype.name}: "
                "nvae_tf.data.preprocess makes them of stored images."
            )
        if tf.executing_eagerly():
            least, most = (float(f(images)) for f in (tf.reduce_min, tf.reduce_max))
            if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):
                raise ValueError(
                    f"Expected images of floats in [0, 1], received values from {least:g} to "
                    f"{most:g}: nvae_tf.data.preprocess makes them of stored images."
                )
        x = self.stem(tf.cast(2 * images - 1, self.compute_dtype))
        x = _through(self.preprocess_cells, x, training)
        features = []
        for group in reversed(self.groups):
            x = _through(group.encoder_cells, x, training)
            features.append(x)
            if group.down_cell:
                x = group.down_cell(x, training=training)
        features[-1] = tf.nn.elu(self.encoder_head(tf.nn.elu(x)))
        return features[::-1]

    def top_down(
        self,
        num_samples: int | tf.Tensor,
        draw: Callable[[int, tf.Tensor | None], tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """Computes the likelihood's parameters in the generative pass.

        Args:
          num_samples: B.
          draw: A function of a group's number and its features (B, H_l, W_l, D_l), which are None
            for group 0. It returns the latent variable (B, H_l, W_l, C_z), and is called for every
            group in their order.
          training: Whether batch normalisation uses the batch's statistics.

        Returns:
          Parameters of the likelihood (B, H, W, P), float32.

        Raises:
          RuntimeError: The model is a `structure`, and there are no values for it.
        """
        self._require_values()
        if self.config.is_vanilla:
            x = self.decoder_stem(tf.cast(draw(0, None), self.compute_dtype))
        else:
            constant = tf.cast(tf.convert_to_tensor(self.constant), self.compute_dtype)
            x = tf.tile(constant[None], [num_samples, 1, 1, 1])
            for group in self.groups:
                x = _through(group.decoder_cells, x, training)
                assert group.decoder_combiner  # all groups have one where there are towers
                x = group.decoder_combiner([x, draw(group.number, x if group.number else None)])
                if group.up_cell:
                    x = group.up_cell(x, training=training)
        x = _through(self.postprocess_cells, x, training)
        return tf.cast(self.image_head(tf.nn.elu(x)), tf.float32)

    def _require_values(self) -> None:
        call = current_call(self)
        if not self.has_own_values and not (call and call.has_values):
            raise RuntimeError(
                "This model is structure alone: its values are elsewhere, in the state of a "
                "training run. Call it inside of functional_call, or by way of an InferenceModel."
            )

    def save(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Does what `keras.Model.save` does.

        Raises:
          RuntimeError: The model is a `structure`, which has no values to save.
        """
        self._require_own_values()
        super().save(filepath, *args, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Does what `keras.Model.save_weights` does.

        Raises:
          RuntimeError: The model is a `structure`, which has no values to save.
        """
        self._require_own_values()
        super().save_weights(filepath, *args, **kwargs)

    def _require_own_values(self) -> None:
        if not self.has_own_values:
            raise RuntimeError(
                "This model is structure alone: its values are elsewhere, so it cannot save them. "
                "`TrainedModel.of_run(workdir).load()` gives a model with the values of a run."
            )

    def convolutions(self) -> list[Convolution]:
        """Returns all convolutions, in the order of construction."""
        return [layer for layer in self._flatten_layers() if isinstance(layer, Convolution)]

    def batch_normalizations(self) -> list[BatchNormalization]:
        """Returns all batch normalisations, in the order of construction."""
        return [layer for layer in self._flatten_layers() if isinstance(layer, BatchNormalization)]

    def moving_averages(self) -> list[keras.Variable]:
        """Returns mean and variance of each batch normalisation, in the order of construction."""
        return moving_averages(self._flatten_layers())

    def learned_variables(self) -> list[keras.Variable]:
        """Returns all variables but the moving averages, whether `trainable` is set or not."""
        averages = {variable.path for variable in self.moving_averages()}
        return [variable for variable in self.variables if variable.path not in averages]

    def folds(self) -> list[Fold]:
        """Returns the normalisations that a convolution can take over without training."""
        cells = (layer for layer in self._flatten_layers() if isinstance(layer, ResidualCell))
        return [fold for cell in cells for fold in cell.folds()]

    @property
    def num_trainable_parameters(self) -> int:
        """The number of values that are learned, whether `trainable` is set now or not."""
        return sum(int(np.prod(variable.shape)) for variable in self.learned_variables())


def _shape_after(kind: str, shape: Shape) -> Shape:
    """Returns the shape that a cell of that kind makes of (None, H, W, C)."""
    _, height, width, channels = shape
    if kind == "down":
        height, width = height // 2, width // 2
    elif kind == "up":
        height, width = 2 * height, 2 * width
    return None, height, width, cell_channels(kind, channels)


def _through(cells: Sequence[ResidualCell], x: tf.Tensor, training: bool) -> tf.Tensor:
    for cell in cells:
        x = cell(x, training=training)
    return x
