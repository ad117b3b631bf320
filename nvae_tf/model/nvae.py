"""NVAE: what is random in the paper's section 3, between the two towers (SPEC section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions import ImageDistribution, ResidualNormal, image_distribution
from nvae_tf.model.layers.convolution import data_dependent_initialization
from nvae_tf.model.towers import Towers


class InferenceOutput(NamedTuple):
    """What `NVAE.infer` computes for B images; L groups, top-down. All float32."""

    logits: tf.Tensor  # [B, H, W, P], parameters of the likelihood
    kl_per_group: tf.Tensor  # [B, L], nats
    kl_per_channel: list[tf.Tensor]  # L of [C_z], nats, mean over the batch
    log_q: tf.Tensor  # [B], log q(z|x) of the drawn latents
    log_p: tf.Tensor  # [B], log p(z) of the drawn latents
    latents: list[tf.Tensor]  # L of [B, H_l, W_l, C_z]


class InferredGroup(NamedTuple):
    """One group's part of an `InferenceOutput`."""

    latent: tf.Tensor  # [B, H_l, W_l, C_z]
    kl: tf.Tensor  # [B, H_l, W_l, C_z]
    log_q: tf.Tensor  # [B]
    log_p: tf.Tensor  # [B]


def _batch_size(x: tf.Tensor) -> int | tf.Tensor:
    """A number where it is known: then no operation has to find it out."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


@keras.saving.register_keras_serializable(package="nvae_tf")
class NVAE(Towers):
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
        super().__init__(config, name, **kwargs)

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
        groups: list[InferredGroup] = []

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            groups.append(self.infer_group(group, features[group], top_down, noise[group]))
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

    def infer_group(
        self,
        group: int,
        bottom_up: tf.Tensor,
        top_down: tf.Tensor | None,
        noise: tf.Tensor,
    ) -> InferredGroup:
        """A draw of one group from its posterior q(z_l | z_<l, x) (paper, section 3.3).

        Args:
          group: its number.
          bottom_up: its features (B, H_l, W_l, C_l) from `bottom_up`.
          top_down: its features (B, H_l, W_l, D_l) from `top_down`; None for group 0.
          noise: standard normal (B, H_l, W_l, C_z); zeros for the mean.
        """
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
        return InferredGroup(
            latent, kl, tf.reduce_sum(log_q, [1, 2, 3]), tf.reduce_sum(log_p, [1, 2, 3])
        )

    def prior(
        self,
        group: int,
        top_down: tf.Tensor | None,
        shape: tf.Tensor,
        temperature: float | Sequence[float] | tf.Tensor = 1.0,
    ) -> ResidualNormal:
        """p(z_l | z_<l) of one group.

        Args:
          group: its number.
          top_down: its features (B, H_l, W_l, D_l) from `top_down`; None for group 0.
          shape: (B, H_l, W_l, C_z), of its latent variable.
          temperature: multiplies the scale: a scalar, one per group (L,), or one per sample and
            group (B or 1, L or 1).
        """
        loc, log_scale = self._prior_parameters(group, top_down, shape)
        rows = tf.broadcast_to(temperature, [shape[0], self.config.num_groups])
        return ResidualNormal(loc, log_scale, temperature=rows[:, group, None, None, None])

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
        noise = self._checked_noise(noise, num_samples)

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            prior = self.prior(group, top_down, tf.shape(noise[group]), temperature)
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
        seed = tf.cast(seed, tf.int64)
        return [
            tf.random.stateless_normal(
                tf.concat([[num_samples], shape], axis=0),
                # Folded in as 32 bits, two of some ten thousand seeds would become the same.
                tf.random.experimental.stateless_fold_in(seed, tf.constant(group, tf.int64)),
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

    def get_config(self) -> dict:
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> NVAE:
        del custom_objects
        config = dict(config)
        return cls(ModelConfig(**config.pop("config")), **config)
