"""NVAE: the network of the paper's section 3, from a `ModelConfig` (SPEC section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.config import ModelConfig
from nvae_tf.distributions import ImageDistribution, ResidualNormal, image_distribution
from nvae_tf.distributions.likelihoods import num_likelihood_parameters
from nvae_tf.layers.cells import ResidualCell
from nvae_tf.layers.combiners import DecoderCombiner, EncoderCombiner, ParameterHead
from nvae_tf.layers.convolution import (
    Convolution,
    WeightNormConvolution,
    data_dependent_initialization,
)
from nvae_tf.layers.flow import AutoregressiveFlow
from nvae_tf.layers.normalization import BatchNormalization


class InferenceOutput(NamedTuple):
    """What `NVAE.infer` computes for B images; L groups, top-down. All float32."""

    logits: tf.Tensor  # [B, H, W, P], parameters of the likelihood
    kl_per_group: tf.Tensor  # [B, L], nats
    kl_per_channel: list[tf.Tensor]  # L of [C_z], nats, mean over the batch
    log_q: tf.Tensor  # [B], log q(z|x) of the drawn latents
    log_p: tf.Tensor  # [B], log p(z) of the drawn latents
    latents: list[tf.Tensor]  # L of [B, H_l, W_l, C_z]


class _Group(NamedTuple):
    """One group's part of an `InferenceOutput`."""

    latent: tf.Tensor  # [B, H_l, W_l, C_z]
    kl: tf.Tensor  # [B, H_l, W_l, C_z]
    log_q: tf.Tensor  # [B]
    log_p: tf.Tensor  # [B]


def _batch_size(x: tf.Tensor) -> int | tf.Tensor:
    """A number where it is known: then no operation has to find it out."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def _create_unnamed(next_creator: Callable, **kwargs) -> tf.Variable:
    """Creates a variable whose name in TensorFlow says nothing; Keras still knows its path.

    TensorFlow keeps a kernel for every name that it has seen: 37 KB and 1 ms for each variable.
    """
    with tf.name_scope("nvae/"):
        return next_creator(**(kwargs | {"name": "variable"}))


@keras.saving.register_keras_serializable(package="nvae_tf")
class NVAE(keras.Model):
    """A deep hierarchical variational autoencoder, built on construction.

    Images are (B, H, W, C), float, in [0, 1], with (H, W, C) = `config.image_shape`, padding
    included. Groups of latent variables are numbered top-down: group 0 has the lowest resolution.

    Args:
      config: what to build.

    Example:
    ```python
    model = NVAE(ModelConfig(image_shape=(32, 32, 3), num_groups_per_scale=4))
    output = model.infer(images)
    negative_elbo = tf.reduce_sum(output.kl_per_group, 1) - model.likelihood(
        output.logits
    ).log_prob(images)
    pictures = model.likelihood(model.generate(16, temperature=0.7)).mean()
    ```

    #### References

    Vahdat and Kautz, *NVAE: A Deep Hierarchical Variational Autoencoder*, NeurIPS 2020.
    """

    def __init__(self, config: ModelConfig, name: str = "nvae", **kwargs):
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

    # What users call.

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Parameters of the likelihood of one reconstruction of each image."""
        return self.infer(images, training=training).logits

    def infer(
        self,
        images: tf.Tensor,
        noise: Sequence[tf.Tensor] | None = None,
        training: bool = False,
    ) -> InferenceOutput:
        """Encodes images, draws latent variables from the posterior and decodes them.

        Args:
          images: (B, H, W, C), in [0, 1].
          noise: L standard-normal tensors (B, H_l, W_l, C_z), top-down; None: drawn afresh.
          training: whether batch normalisation uses the batch's statistics.

        Raises:
          ValueError: for images or noise of the wrong shape or number.
        """
        images = tf.convert_to_tensor(images)
        return self.infer_from_features(
            self.bottom_up(images, training=training), noise, training=training
        )

    def infer_from_features(
        self,
        features: Sequence[tf.Tensor],
        noise: Sequence[tf.Tensor] | None = None,
        training: bool = False,
    ) -> InferenceOutput:
        """`infer`, from what `bottom_up` made of the images."""
        batch = _batch_size(features[0])
        noise = self._checked_noise(noise, batch)
        groups: list[_Group] = []

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            groups.append(self._infer_group(group, features[group], top_down, noise[group]))
            return groups[-1].latent

        logits = self.top_down(batch, draw, training=training)
        return InferenceOutput(
            logits=logits,
            kl_per_group=tf.stack([tf.reduce_sum(g.kl, [1, 2, 3]) for g in groups], axis=1),
            kl_per_channel=[tf.reduce_mean(tf.reduce_sum(g.kl, [1, 2]), axis=0) for g in groups],
            log_q=tf.add_n([g.log_q for g in groups]),
            log_p=tf.add_n([g.log_p for g in groups]),
            latents=[g.latent for g in groups],
        )

    def _infer_group(
        self, group: int, bottom_up: tf.Tensor, top_down: tf.Tensor | None, noise: tf.Tensor
    ) -> _Group:
        if top_down is not None:
            bottom_up = self.encoder_combiners[group - 1]([bottom_up, top_down])
        delta_loc, delta_log_scale = self.posterior_heads[group](bottom_up)
        loc, log_scale = self._prior_parameters(group, top_down, tf.shape(noise))
        prior = ResidualNormal(loc, log_scale)
        if self.config.res_dist:
            posterior = ResidualNormal(loc, log_scale, delta_loc, delta_log_scale)
        else:
            posterior = ResidualNormal(delta_loc, delta_log_scale)

        before_flow = posterior.loc + posterior.scale * noise
        latent = self.flows[group](before_flow) if self.config.num_nf else before_flow
        log_q, log_p = posterior.log_prob(before_flow), prior.log_prob(latent)
        kl = log_q - log_p if self.config.num_nf else tfd.kl_divergence(posterior, prior)
        return _Group(latent, kl, tf.reduce_sum(log_q, [1, 2, 3]), tf.reduce_sum(log_p, [1, 2, 3]))

    def _prior_parameters(
        self, group: int, top_down: tf.Tensor | None, shape: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log-scale of p(z_l | z_<l) before the clamp; zeros for group 0."""
        if group == 0:
            return tf.zeros(shape), tf.zeros(shape)
        return self.prior_heads[group - 1](top_down)

    def generate(
        self,
        num_samples: int | tf.Tensor,
        temperature: float | Sequence[float] | tf.Tensor = 1.0,
        noise: Sequence[tf.Tensor] | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Draws latent variables from the prior and decodes them.

        Args:
          num_samples: B.
          temperature: multiplies the prior's scales: a scalar, one per group (L,), or one per
            sample and group (B or 1, L or 1).
          noise: L standard-normal tensors (B, H_l, W_l, C_z), top-down; None: drawn afresh.
          training: whether batch normalisation uses the batch's statistics.

        Returns:
          Parameters of the likelihood (B, H, W, P), float32.

        Raises:
          ValueError: for noise or temperatures of the wrong shape or number.
        """
        temperature = tf.convert_to_tensor(temperature, tf.float32)
        num_groups = self.config.num_groups
        if temperature.shape.rank > 2 or (
            temperature.shape.rank and temperature.shape[-1] not in (1, num_groups)
        ):
            raise ValueError(
                f"temperature must be a scalar or one value for each of the {num_groups} groups, "
                f"received the shape {tuple(temperature.shape)}."
            )
        temperature = tf.broadcast_to(temperature, [num_samples, num_groups])
        noise = self._checked_noise(noise, num_samples)

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            loc, log_scale = self._prior_parameters(group, top_down, tf.shape(noise[group]))
            prior = ResidualNormal(
                loc, log_scale, temperature=temperature[:, group, None, None, None]
            )
            return prior.loc + prior.scale * noise[group]

        return self.top_down(num_samples, draw, training=training)

    def likelihood(self, logits: tf.Tensor) -> ImageDistribution:
        """p(x | z): a distribution over images (B, H, W, C) in [0, 1].

        Its `log_prob` leaves the padding out; `sample` and `mean` have the padded size, which
        `crop_padding` takes off.
        """
        return image_distribution(self.config, logits)

    def crop_padding(self, images: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) without the padding that `config.image_shape` includes."""
        height, width, _ = self.config.image_shape
        border = self.config.padding
        return images[:, border : height - border, border : width - border]

    def draw_noise(
        self, num_samples: int | tf.Tensor, seed: Sequence[int] | tf.Tensor
    ) -> list[tf.Tensor]:
        """L standard-normal tensors (B, H_l, W_l, C_z), the same ones for the same seed.

        Args:
          num_samples: B.
          seed: two integers, as for `tf.random.stateless_normal`.
        """
        return [
            tf.random.stateless_normal(
                tf.concat([[num_samples], shape], axis=0),
                tf.random.experimental.stateless_fold_in(seed, group),
            )
            for group, shape in enumerate(self.config.latent_shapes)
        ]

    def _checked_noise(
        self, noise: Sequence[tf.Tensor] | None, num_samples: int | tf.Tensor
    ) -> Sequence[tf.Tensor]:
        shapes = self.config.latent_shapes
        if noise is None:
            return [tf.random.normal(tf.concat([[num_samples], s], axis=0)) for s in shapes]
        received = [tuple(tensor.shape[1:]) for tensor in noise]
        if received != list(shapes):
            raise ValueError(
                f"noise must hold one tensor for each of the {len(shapes)} groups, top-down, "
                f"(batch, {'), (batch, '.join(', '.join(map(str, s)) for s in shapes)}); "
                f"received {received} after the batch."
            )
        return noise

    def initialize_from_batch(self, images: tf.Tensor, seed: Sequence[int] = (0, 0)) -> None:
        """Data-dependent initialisation of the convolutions that have one (`res_elu` cells).

        Args:
          images: the first batch (B, H, W, C); runs eagerly.
          seed: of the posterior's noise.
        """
        if not any(getattr(layer, "data_init", False) for layer in self.convolutions()):
            return
        with data_dependent_initialization():
            self.infer(images, self.draw_noise(len(images), seed), training=True)

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

    def get_config(self) -> dict:
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> NVAE:
        del custom_objects
        config = dict(config)
        return cls(ModelConfig(**config.pop("config")), **config)
