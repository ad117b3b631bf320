"""NVAE: what is random in the paper's section 3, between the two towers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig, ModelConfig
from nvae_tf.model.compilation import graph_function
from nvae_tf.model.distributions import ImageDistribution, ResidualNormal, image_distribution
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.convolution import WeightNormConvolution
from nvae_tf.model.layers.flow import AutoregressiveFlow
from nvae_tf.model.pretrained import Pretrained, builtin_names, is_saved_model, save
from nvae_tf.model.stacks import Values, read_values
from nvae_tf.model.towers import Towers
from nvae_tf.noise import normal_rows


class InferredGroup(NamedTuple):
    """One group's part of an `InferenceOutput`."""

    latent: tf.Tensor  # [B, H_l, W_l, C_z]
    kl: tf.Tensor  # [B, H_l, W_l, C_z]
    log_q: tf.Tensor  # [B]
    log_p: tf.Tensor  # [B]


class InferenceOutput(NamedTuple):
    """The result of `NVAE.infer` for B images; L groups, top-down. All float32."""

    logits: tf.Tensor  # [B, H, W, P], parameters of the likelihood
    kl_per_group: tf.Tensor  # [B, L], nats
    kl_per_channel: tf.Tensor  # [B, L, C_z], nats
    log_q: tf.Tensor  # [B], log q(z|x) of the drawn latents
    log_p: tf.Tensor  # [B], log p(z) of the drawn latents
    latents: list[tf.Tensor]  # L of [B, H_l, W_l, C_z]

    @classmethod
    def of(cls, logits: tf.Tensor, groups: Sequence[InferredGroup]) -> InferenceOutput:
        """Puts together what belongs to single groups, top-down."""
        kl_per_channel = tf.stack([tf.reduce_sum(g.kl, [1, 2]) for g in groups], axis=1)
        return cls(
            logits=logits,
            kl_per_group=tf.reduce_sum(kl_per_channel, axis=2),
            kl_per_channel=kl_per_channel,
            log_q=tf.add_n([g.log_q for g in groups]),
            log_p=tf.add_n([g.log_p for g in groups]),
            latents=[g.latent for g in groups],
        )


# Mean and log-scale of the prior, and what the posterior's head gives, before the clamp.
_Parameters: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


def _posterior(residual: bool, smooth: bool, parameters: _Parameters) -> ResidualNormal:
    loc, log_scale, delta_loc, delta_log_scale = parameters
    if residual:
        return ResidualNormal(loc, log_scale, delta_loc, delta_log_scale, smooth=smooth)
    return ResidualNormal(delta_loc, delta_log_scale, smooth=smooth)


def _draw(
    residual: bool,
    smooth: bool,
    parameters: _Parameters,
    noise: tf.Tensor,
    flow: AutoregressiveFlow | None = None,
) -> InferredGroup:
    """Draws a group's latent variable from noise, given the heads' outputs."""
    prior = ResidualNormal(*parameters[:2], smooth=smooth)
    posterior = _posterior(residual, smooth, parameters)
    before_flow = posterior.at(noise)
    latent = flow(before_flow) if flow else before_flow
    log_q, log_p = posterior.log_prob(before_flow), prior.log_prob(latent)
    kl = log_q - log_p if flow else tfd.kl_divergence(posterior, prior)
    return InferredGroup(
        latent, kl, tf.reduce_sum(log_q, [1, 2, 3]), tf.reduce_sum(log_p, [1, 2, 3])
    )


_draw_function = graph_function(_draw)


def _batch_size(x: tf.Tensor) -> int | tf.Tensor:
    """Returns a number where it is known: then no operation has to find it out."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


@keras.saving.register_keras_serializable(package="nvae_tf")
class NVAE(Towers):
    """A deep hierarchical variational autoencoder, built on construction.

    Images are (B, H, W, C), float, in [0, 1], with (H, W, C) = `config.image_shape`, padding
    included. Groups of latent variables are numbered top-down: group 0 has the lowest resolution.

    Args:
      config: What to build.
      name: The model's name.
      **kwargs: The arguments of `keras.Model`, such as `dtype`.

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

    def __init__(self, config: ModelConfig, name: str = "nvae", **kwargs: Any):
        super().__init__(config, name, **kwargs)

    @classmethod
    def structure(cls, config: ModelConfig, **kwargs: Any) -> NVAE:
        """Builds a model whose variables have paths, shapes and initial values, but no memory.

        It computes only inside of a `functional_call` that gives it values. Outside of one, reading
        a variable gives its initial value, computed anew each time.

        Args:
          config: What to build.
          **kwargs: The arguments of `keras.Model`, such as `dtype`.
        """
        with keras.StatelessScope(initialize_variables=False):
            model = cls(config, **kwargs)
        model.has_own_values = False
        return model

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike, load_weights: bool = True, **kwargs: Any
    ) -> NVAE:
        """Builds the model of a preset, with its trained weights.

        Args:
          preset: The name of a preset, or a directory that `save_to_preset` wrote.
          load_weights: Whether the preset must have weights and the model takes them; else it is
            initialised at random.
          **kwargs: The arguments of `keras.Model`, such as `dtype`.

        Raises:
          ValueError: There is no such preset, it has no weights, or its files are damaged.

        Example:
        ```python
        model = NVAE.from_preset("mnist_small")
        pictures = model.likelihood(model.generate(16, temperature=0.8)).mean()
        ```
        """
        name = os.fspath(preset)
        is_saved = name in builtin_names() or is_saved_model(name)
        if not load_weights and name in presets.names() and not is_saved:
            return cls(presets.get(name).model, **kwargs)
        found = Pretrained.find(name)
        model = cls(found.config.model, **kwargs)
        if load_weights:
            found.load_weights(model)
        return model

    def save_to_preset(
        self,
        directory: str | os.PathLike,
        config: ExperimentConfig | None = None,
        **options: Any,
    ) -> None:
        """Writes a directory from which `from_preset` makes this model again.

        Args:
          directory: The path to create.
          config: The configuration of the experiment; None: defaults, with this model's own.
          **options: The options of `nvae_tf.model.pretrained.save`, such as `mantissa_bits`.

        Raises:
          ValueError: The directory exists and is not empty, the configuration is of another model,
            or values are not finite.
        """
        config = config or ExperimentConfig(model=self.config)
        if config.model != self.config:
            raise ValueError("config.model describes another model than this one.")
        save(self, directory, config, **options)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the likelihood's parameters (B, H, W, P) of one reconstruction of each image."""
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
          noise: L standard-normal tensors (B, H_l, W_l, C_z), top-down; None draws them afresh.
          training: Whether batch normalisation uses the batch's statistics.

        Raises:
          ValueError: Images or noise have the wrong shape or number.
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
        """Does what `infer` does, with the features that `bottom_up` made of the images."""
        batch = _batch_size(features[0])
        noise = self._checked_noise(noise, batch)
        groups: list[InferredGroup] = []

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            groups.append(self.infer_group(group, features[group], top_down, noise[group]))
            return groups[-1].latent

        logits = self.top_down(batch, draw, training=training)
        return InferenceOutput.of(logits, groups)

    def infer_group(
        self,
        group: int,
        bottom_up: tf.Tensor,
        top_down: tf.Tensor | None,
        noise: tf.Tensor,
    ) -> InferredGroup:
        """Draws one group from its posterior q(z_l | z_<l, x) (paper, section 3.2).

        Args:
          group: The group's number.
          bottom_up: Its features (B, H_l, W_l, C_l) from `bottom_up`.
          top_down: Its features (B, H_l, W_l, D_l) from `top_down`; None for group 0.
          noise: Standard normal (B, H_l, W_l, C_z); zeros give the mean.
        """
        parameters = self._parameters(group, bottom_up, top_down)
        form = (self.config.res_dist, self.config.smooth_scales)
        flow = self.groups[group].flow
        if flow:
            return _draw(*form, parameters, noise, flow)
        return _draw_function(*form, parameters, noise)

    def posterior(
        self, group: int, bottom_up: tf.Tensor, top_down: tf.Tensor | None
    ) -> ResidualNormal:
        """Returns the posterior q(z_l | z_<l, x) of one group, before its flow.

        Args:
          group: The group's number.
          bottom_up: Its features (B, H_l, W_l, C_l) from `bottom_up`.
          top_down: Its features (B, H_l, W_l, D_l) from `top_down`; None for group 0.
        """
        parameters = self._parameters(group, bottom_up, top_down)
        return _posterior(self.config.res_dist, self.config.smooth_scales, parameters)

    def _parameters(
        self, group: int, bottom_up: tf.Tensor, top_down: tf.Tensor | None
    ) -> _Parameters:
        """Returns what `posterior` and the prior beside it are made of."""
        layers = self.groups[group]
        if layers.encoder_combiner:
            bottom_up = layers.encoder_combiner([bottom_up, top_down])
        delta_loc, delta_log_scale = layers.posterior_head(bottom_up)
        loc, log_scale = self._prior_parameters(group, top_down, tf.shape(delta_loc))
        return loc, log_scale, delta_loc, delta_log_scale

    def prior(
        self,
        group: int,
        top_down: tf.Tensor | None,
        shape: tf.Tensor,
        temperature: float | Sequence[float] | tf.Tensor = 1.0,
    ) -> ResidualNormal:
        """Returns the prior p(z_l | z_<l) of one group.

        Args:
          group: The group's number.
          top_down: Its features (B, H_l, W_l, D_l) from `top_down`; None for group 0.
          shape: The shape (B, H_l, W_l, C_z) of its latent variable.
          temperature: A factor of the scale: a scalar, one per group (L,), or one per sample and
            group (B or 1, L or 1).
        """
        loc, log_scale = self._prior_parameters(group, top_down, shape)
        temperature = tf.cast(temperature, tf.float32)
        rows = tf.broadcast_to(temperature, [shape[0], self.config.num_groups])
        return ResidualNormal(
            loc,
            log_scale,
            temperature=rows[:, group, None, None, None],
            smooth=self.config.smooth_scales,
        )

    def _prior_parameters(
        self, group: int, top_down: tf.Tensor | None, shape: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-scale of p(z_l | z_<l) before the clamp; zeros for group 0."""
        head = self.groups[group].prior_head
        return head(top_down) if head else (tf.zeros(shape), tf.zeros(shape))

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
          temperature: A factor of the prior's scales: a scalar, one per group (L,), or one per
            sample and group (B or 1, L or 1).
          noise: L standard-normal tensors (B, H_l, W_l, C_z), top-down; None draws them afresh.
          training: Whether batch normalisation uses the batch's statistics.

        Returns:
          Parameters of the likelihood (B, H, W, P), float32.

        Raises:
          ValueError: Noise or temperatures have the wrong shape or number, a temperature is
            negative or not finite, or there is no sample to draw.
        """
        if isinstance(num_samples, int | np.integer) and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}.")
        temperature = tf.convert_to_tensor(temperature, tf.float32)
        known = tf.get_static_value(temperature)  # None in a graph
        if known is not None and not np.all(np.isfinite(known) & (known >= 0)):
            raise ValueError(f"Temperatures must be finite and not negative, received {known}.")
        num_groups = self.config.num_groups
        shape = tuple(temperature.shape)
        by_sample = len(shape) == 2 and isinstance(num_samples, int | np.integer)
        if (
            len(shape) > 2
            or (shape and shape[-1] not in (1, num_groups))
            or (by_sample and shape[0] not in (1, num_samples, None))
        ):
            raise ValueError(
                f"temperature must be a scalar, one value for each of the {num_groups} groups, or "
                f"rows of these for each sample; received the shape {shape} for {num_samples} "
                "samples."
            )
        noise = self._checked_noise(noise, num_samples)

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            prior = self.prior(group, top_down, tf.shape(noise[group]), temperature)
            return prior.at(noise[group])

        return self.top_down(num_samples, draw, training=training)

    def likelihood(self, logits: tf.Tensor) -> ImageDistribution:
        """Returns p(x | z), a distribution over images (B, H, W, C) in [0, 1].

        Its `log_prob` leaves the padding out; `sample` and `mean` have the padded size, which
        `crop_padding` takes off.
        """
        return image_distribution(self.config, logits)

    def crop_padding(self, images: tf.Tensor) -> tf.Tensor:
        """Cuts the padding that `config.image_shape` includes off images (B, H, W, C)."""
        height, width, _ = self.config.image_shape
        border = self.config.padding
        return images[:, border : height - border, border : width - border]

    def draw_noise(
        self,
        num_samples: int | tf.Tensor,
        seed: Sequence[int] | tf.Tensor,
        first: int | tf.Tensor = 0,
    ) -> list[tf.Tensor]:
        """Draws L standard-normal tensors (B, H_l, W_l, C_z), the same ones for the same seed.

        Args:
          num_samples: B.
          seed: Two integers, as for `tf.random.stateless_normal`.
          first: The number of the first row: these are the rows from there on of any larger batch.
        """
        seed = tf.cast(seed, tf.int64)
        return [
            normal_rows(
                num_samples,
                shape,
                # Folded in as 32 bits, two of some ten thousand seeds would become the same.
                tf.random.experimental.stateless_fold_in(seed, tf.constant(group, tf.int64)),
                first,
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
        rows = {tensor.shape[0] for tensor in noise} - {None}
        if isinstance(num_samples, int | np.integer) and rows - {num_samples}:
            raise ValueError(
                f"noise must have a row for each of the {num_samples} images, received "
                f"{', '.join(map(str, sorted(rows)))}."
            )
        return noise

    def initialize_from_batch(self, images: tf.Tensor, seed: Sequence[int] = (0, 0)) -> None:
        """Sets scale and bias of the convolutions of `res_elu` cells from the first batch.

        Args:
          images: The first batch (B, H, W, C). The method runs eagerly.
          seed: Two integers for the posterior's noise.
        """
        values = self.data_dependent_values(images, seed)
        for variable in self.variables:
            if variable.path in values:
                variable.assign(values[variable.path])

    def data_dependent_values(
        self, images: tf.Tensor, seed: Sequence[int], values: Values | None = None
    ) -> dict[str, tf.Tensor]:
        """Computes what `initialize_from_batch` assigns, by the path of the variable.

        Args:
          images: The first batch (B, H, W, C).
          seed: Two integers for the posterior's noise.
          values: The values of all variables by path; None: their own.
        """
        chosen = [
            variable
            for layer in self.convolutions()
            if isinstance(layer, WeightNormConvolution) and layer.data_init
            for variable in (layer.log_scale, layer.bias)
        ]
        if not chosen:
            return {}
        if values is None:
            values = read_values(self.variables)
        with functional_call(self, values, initialize=True):
            self.infer(images, self.draw_noise(len(images), seed), training=True)
            return read_values(chosen)

    def compute_loss(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Refuses: `fit`, `evaluate` and `train_on_batch` would leave out the KL.

        Raises:
          NotImplementedError: Always. `nvae-train` and `trainers.run.trainer.Trainer` train.
        """
        del args, kwargs
        raise NotImplementedError(
            "The -ELBO of an NVAE is not a loss of outputs and targets, which is what fit, "
            "evaluate and train_on_batch minimise: they would leave out the KL. Train with "
            "nvae-train (or trainers.run.experiment.train), and measure with nvae-evaluate."
        )

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Does what `keras.Model.export` does, by default for batches of any size.

        The SavedModel's answer is that of `call`. `nvae-export` writes one that samples, encodes
        and measures (docs/serving.md).
        """
        images = tf.TensorSpec((None, *self.config.image_shape), tf.float32, name="images")
        signature = [images] if input_signature is None else input_signature
        super().export(filepath, format, verbose, signature, **kwargs)

    def get_config(self) -> dict:
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> NVAE:
        del custom_objects
        config = dict(config)
        return cls(ModelConfig(**config.pop("config")), **config)
