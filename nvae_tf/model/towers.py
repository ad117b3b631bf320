"""The two towers of NVAE: bottom-up and top-down, without what is random (paper, section 3).

SPEC section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions.likelihoods import num_likelihood_parameters
from nvae_tf.model.layers.cells import ResidualCell
from nvae_tf.model.layers.combiners import DecoderCombiner, EncoderCombiner, ParameterHead
from nvae_tf.model.layers.convolution import Convolution, WeightNormConvolution
from nvae_tf.model.layers.flow import AutoregressiveFlow
from nvae_tf.model.layers.normalization import BatchNormalization


def _create_unnamed(next_creator: Callable, **kwargs) -> tf.Variable:
    """Creates a variable whose name in TensorFlow says nothing; Keras still knows its path.

    TensorFlow keeps a kernel for every name that it has seen: 37 KB and 1 ms for each variable.
    """
    with tf.name_scope("nvae/"):
        return next_creator(**(kwargs | {"name": "variable"}))


class Towers(keras.Model):
    """All layers of the model, built on construction, and the two passes through them.

    Groups of latent variables are numbered top-down: group 0 has the lowest resolution.

    Args:
      config: what to build.
    """

    def __init__(self, config: ModelConfig, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config
        with tf.variable_creator_scope(_create_unnamed):
            self._build_bottom_up()
            self._build_latent_groups()
            self._build_top_down()
        self.built = True

    # Construction. The lists are flat and in the order of use, bottom-up or top-down.

    def _cells(
        self, names: Sequence[tuple[str, str]], operations: Sequence[str], shape: tuple
    ) -> tuple[list[ResidualCell], tuple]:
        """Cells in a row; `names` holds (name, kind). Returns them and the last one's shape."""
        cells = []
        for name, kind in names:
            cell = ResidualCell(
                operations, kind, self.config.use_se, dtype=self.dtype_policy, name=name
            )
            cell.build(shape)
            cells.append(cell)
            _, height, width, channels = shape
            if kind == "down":
                shape = (None, height // 2, width // 2, 2 * channels)
            elif kind == "up":
                shape = (None, 2 * height, 2 * width, channels // 2)
        return cells, shape

    def _convolution(self, name: str, filters: int, shape: tuple, kernel_size: int = 1):
        layer = WeightNormConvolution(filters, kernel_size, dtype=self.dtype_policy, name=name)
        layer.build(shape)
        return layer

    def _build_bottom_up(self) -> None:
        config = self.config
        operations = ARCHITECTURES[config.arch_instance]
        height, width, channels = config.image_shape
        shape = (None, height, width, config.num_channels_enc)
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

        self.encoder_cells: list[ResidualCell] = []
        self.encoder_down_cells: list[ResidualCell] = []
        self._bottom_up_shapes = []  # of each group, bottom-up
        for scale, groups in enumerate(config.groups_per_scale):
            if not config.is_vanilla:
                names = [
                    (f"encoder_{scale}_{group}_{i}", "normal")
                    for group in range(groups)
                    for i in range(config.num_cell_per_cond_enc)
                ]
                cells, shape = self._cells(names, operations.encoder, shape)
                self.encoder_cells += cells
            self._bottom_up_shapes += groups * [shape]
            if scale < config.num_latent_scales - 1:
                names = [(f"encoder_{scale}_down", "down")]
                cells, shape = self._cells(names, operations.encoder, shape)
                self.encoder_down_cells += cells
        self.encoder_head = self._convolution("encoder_head", shape[-1], shape)

    def _build_latent_groups(self) -> None:
        config = self.config
        common = {"dtype": self.dtype_policy}
        bottom_up_shapes = self._bottom_up_shapes[::-1]
        self.posterior_heads, self.prior_heads = [], []
        self.encoder_combiners, self.flows = [], []
        for group, latent_shape in enumerate(config.latent_shapes):
            head = ParameterHead(
                config.num_latent_per_group,
                kernel_size=3,
                elu=False,
                name=f"posterior_{group}",
                **common,
            )
            head.build(bottom_up_shapes[group])
            self.posterior_heads.append(head)
            if config.num_nf:
                flow = AutoregressiveFlow(config.num_nf, name=f"flow_{group}", dtype="float32")
                flow.build((None, *latent_shape))
                self.flows.append(flow)
            if group == 0:
                continue
            features = self._top_down_shape(config.group_scales[group])
            combiner = EncoderCombiner(name=f"encoder_combiner_{group}", **common)
            combiner.build([bottom_up_shapes[group], features])
            self.encoder_combiners.append(combiner)
            prior = ParameterHead(
                config.num_latent_per_group,
                kernel_size=1,
                elu=True,
                name=f"prior_{group}",
                **common,
            )
            prior.build(features)
            self.prior_heads.append(prior)

    def _top_down_shape(self, scale: int) -> tuple[None, int, int, int]:
        factor = 2 ** (self.config.num_preprocess_blocks + scale)
        height, width, _ = self.config.image_shape
        return None, height // factor, width // factor, self.config.num_channels_dec * factor

    def _build_top_down(self) -> None:
        config = self.config
        operations = ARCHITECTURES[config.arch_instance]
        common = {"dtype": self.dtype_policy}
        shape = self._top_down_shape(config.num_latent_scales - 1)
        latent_shapes = [(None, *latent_shape) for latent_shape in config.latent_shapes]

        self.decoder_cells: list[ResidualCell] = []
        self.decoder_up_cells: list[ResidualCell] = []
        self.decoder_combiners: list[DecoderCombiner] = []
        if config.is_vanilla:
            self.decoder_stem = self._convolution("decoder_stem", shape[-1], latent_shapes[0])
        else:
            self.constant = self.add_weight(
                name="constant",
                shape=shape[1:],
                initializer=keras.initializers.RandomUniform(0.0, 1.0),
                dtype="float32",
                autocast=False,
            )
            for group, scale in enumerate(config.group_scales):
                shape = self._top_down_shape(scale)
                if group > 0:
                    names = [
                        (f"decoder_{group}_{i}", "normal")
                        for i in range(config.num_cell_per_cond_dec)
                    ]
                    self.decoder_cells += self._cells(names, operations.decoder, shape)[0]
                combiner = DecoderCombiner(name=f"decoder_combiner_{group}", **common)
                combiner.build([shape, latent_shapes[group]])
                self.decoder_combiners.append(combiner)
            for scale in reversed(range(1, config.num_latent_scales)):
                cells, shape = self._cells(
                    [(f"decoder_{scale}_up", "up")],
                    operations.decoder,
                    self._top_down_shape(scale),
                )
                self.decoder_up_cells += cells
        names = [
            (f"postprocess_{block}_{i}", "up" if i == 0 else "normal")
            for block in range(config.num_postprocess_blocks)
            for i in range(config.num_postprocess_cells)
        ]
        self.postprocess_cells, shape = self._cells(names, operations.postprocess, shape)
        self.image_head = self._convolution(
            "image_head", num_likelihood_parameters(config), shape, kernel_size=3
        )

    # The two passes.

    def bottom_up(self, images: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Features of images for the posteriors: L tensors (B, H_l, W_l, C_l), top-down.

        They do not depend on the latent variables, so many samples of z can share them.

        Raises:
          ValueError: if the images have another shape than `config.image_shape`.
        """
        images = tf.convert_to_tensor(images)
        if tuple(images.shape[1:]) != self.config.image_shape:
            raise ValueError(
                f"Expected images of shape (batch, {', '.join(map(str, self.config.image_shape))})"
                f" (ModelConfig.image_shape), received {tuple(images.shape)}."
            )
        config = self.config
        x = self.stem(tf.cast(2 * images - 1, self.compute_dtype))
        for cell in self.preprocess_cells:
            x = cell(x, training=training)
        features = []
        cells = iter(self.encoder_cells)
        cells_per_group = 0 if config.is_vanilla else config.num_cell_per_cond_enc
        for scale, groups in enumerate(config.groups_per_scale):
            for _ in range(groups):
                for _ in range(cells_per_group):
                    x = next(cells)(x, training=training)
                features.append(x)
            if scale < config.num_latent_scales - 1:
                x = self.encoder_down_cells[scale](x, training=training)
        features[-1] = tf.nn.elu(self.encoder_head(tf.nn.elu(x)))
        return features[::-1]

    def top_down(
        self,
        num_samples: int | tf.Tensor,
        draw: Callable[[int, tf.Tensor | None], tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """The generative pass.

        Args:
          num_samples: B.
          draw: called with every group's number and features (B, H_l, W_l, D_l) (None for
            group 0); returns its latent variable (B, H_l, W_l, C_z).
          training: whether batch normalisation uses the batch's statistics.

        Returns:
          Parameters of the likelihood (B, H, W, P), float32.
        """
        if self.config.is_vanilla:
            x = self.decoder_stem(tf.cast(draw(0, None), self.compute_dtype))
        else:
            x = self._decode_groups(num_samples, draw, training)
        for cell in self.postprocess_cells:
            x = cell(x, training=training)
        return tf.cast(self.image_head(tf.nn.elu(x)), tf.float32)

    def _decode_groups(self, num_samples, draw, training: bool) -> tf.Tensor:
        config = self.config
        constant = tf.cast(tf.convert_to_tensor(self.constant), self.compute_dtype)
        x = tf.tile(constant[None], [num_samples, 1, 1, 1])
        cells, up_cells = iter(self.decoder_cells), iter(self.decoder_up_cells)
        group = 0
        for scale in reversed(range(config.num_latent_scales)):
            for _ in range(config.groups_per_scale[scale]):
                if group > 0:
                    for _ in range(config.num_cell_per_cond_dec):
                        x = next(cells)(x, training=training)
                z = draw(group, x if group > 0 else None)
                x = self.decoder_combiners[group]([x, z])
                group += 1
            if scale > 0:
                x = next(up_cells)(x, training=training)
        return x

    def convolutions(self) -> list[Convolution]:
        """All convolutions, in the order of construction."""
        return self._layers_of(Convolution)

    def batch_normalizations(self) -> list[BatchNormalization]:
        """All batch normalisations, in the order of construction."""
        return self._layers_of(BatchNormalization)

    def _layers_of(self, layer_class: type) -> list:
        return [layer for layer in self._flatten_layers() if isinstance(layer, layer_class)]

    @property
    def num_trainable_parameters(self) -> int:
        """Trainable values, counted."""
        return sum(int(np.prod(variable.shape)) for variable in self.trainable_variables)
