"""Measures how much of its latent groups, channels and units a model uses, and what for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.devices import batches_on_devices
from nvae_tf.model.inference import AnyModel, InferenceModel
from nvae_tf.sampling.latents import keep_first_groups

ACTIVE_VARIANCE = 0.01  # of a unit's posterior mean over the images, above which it is in use
ACTIVE_CHANNEL_NATS = 0.1  # of KL, above which a latent channel counts as in use
COLLAPSED_NATS = 0.1  # of KL, below which a whole group does not


def collapsed_groups(kl_per_group: Sequence[float]) -> list[int]:
    """Returns the numbers of the groups whose posterior says next to nothing about an image.

    Args:
      kl_per_group: L values, nats per image, top-down.
    """
    return [group for group, kl in enumerate(kl_per_group) if kl < COLLAPSED_NATS]


@dataclasses.dataclass(frozen=True)
class HierarchyResult:
    """Means over images, in nats per image; L groups, top-down.

    With the first k groups drawn from the posterior and the others from the prior, the sum of
    `rate[k]` and `distortion[k]` is a bound on -log p(x) as well; with k = L it is the -ELBO.

    Attributes:
      num_images: Number of images.
      kl_per_group: KL of each group, [L].
      kl_per_channel: KL of each channel of each group, L lists of C_z.
      units: Latent variables H_l W_l C_z of each group, [L].
      active_units: Those of each group whose posterior mean has a variance above 0.01, [L].
      rate: KL of the first k groups for k = 0 … L, [L + 1].
      distortion: -log p(x|z) with the first k groups from the posterior, [L + 1].
    """

    num_images: int
    kl_per_group: list[float]
    kl_per_channel: list[list[float]]
    units: list[int]
    active_units: list[int]
    rate: list[float]
    distortion: list[float]

    @property
    def negative_elbo(self) -> list[float]:
        """[L + 1], rate plus distortion."""
        return [rate + distortion for rate, distortion in zip(self.rate, self.distortion)]


class HierarchyEvaluator:
    """Measures a model group by group; traces it once for batches of one size.

    Args:
      model: The model to measure; each call takes its weights and moving averages of that moment.

    #### References

    Active units: Burda et al., *Importance Weighted Autoencoders*, ICLR 2016, section 5.2. In a
    hierarchy a unit's posterior mean depends on the groups before it; they are at their means, so
    that the image alone makes it vary.
    """

    def __init__(self, model: AnyModel):
        self._model = InferenceModel.of(model)
        self._bottom_up = self._model.function(self._model.bottom_up, reduce_retracing=True)
        self._infer = self._model.function(self._infer_once, reduce_retracing=True)
        self._keep = self._model.function(self._keep_once, reduce_retracing=True)

    def _infer_once(
        self, features: list[tf.Tensor], seed: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns KL by channel [B, L, C_z], and posterior means, L of [B, H_l, W_l, C_z]."""
        batch = tf.shape(features[0])[0]
        zeros = [tf.zeros([batch, *shape]) for shape in self._model.config.latent_shapes]
        noise = self._model.draw_noise(batch, seed, first)
        output = self._model.infer_from_features(features, noise)
        means = self._model.infer_from_features(features, zeros).latents
        return output.kl_per_channel, means

    def _keep_once(
        self,
        images: tf.Tensor,
        features: list[tf.Tensor],
        keep: tf.Tensor,
        seed: tf.Tensor,
        first: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns -log p(x|z) [B] and mean images with the first groups from the posterior."""
        model, batch = self._model, tf.shape(images)[0]
        noise = model.draw_noise(batch, seed, first)
        logits = keep_first_groups(model, features, tf.fill([batch], keep), noise, noise)
        likelihood = model.likelihood(logits)
        return -likelihood.log_prob(images), model.crop_padding(likelihood.mean())

    def evaluate(
        self,
        batches: Iterable[tf.Tensor],
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> HierarchyResult:
        """Runs L + 3 top-down passes over all batches.

        Args:
          batches: Images (B, H, W, C), binarised or quantised as in training.
          seed: A number from which the draws are made.
          after_batch: A function that is called after each batch with its size, for progress.

        Raises:
          ValueError: There are no images.
        """
        config = self._model.config
        weights = self._model.weights()
        groups = config.num_groups
        count = 0
        channels = np.zeros((groups, config.num_latent_per_group))
        distortion = np.zeros(groups + 1)
        sums = [np.zeros(shape) for shape in config.latent_shapes]
        squares = [np.zeros(shape) for shape in config.latent_shapes]
        own_seed = tf.constant([seed, 0], tf.int64)

        def compute(number: int, images: tf.Tensor) -> tuple[np.ndarray, ...]:
            features = self._bottom_up(weights, images)
            first = tf.constant(number, tf.int64)
            kl_per_channel, means = self._infer(weights, features, own_seed, first)
            distortions = [
                self._keep(weights, images, features, tf.constant(keep), own_seed, first)[0]
                for keep in range(groups + 1)
            ]
            return kl_per_channel.numpy(), np.stack(distortions, 1), *(m.numpy() for m in means)

        for arrays in batches_on_devices(compute, batches, after_batch=after_batch):
            kl_per_channel, distortions, *means = (a.astype(np.float64) for a in arrays)
            count += len(distortions)
            channels += kl_per_channel.sum(axis=0)
            distortion += distortions.sum(axis=0)
            for group, values in enumerate(means):
                sums[group] += values.sum(axis=0)
                squares[group] += np.square(values).sum(axis=0)
        if not count:
            raise ValueError("There are no images to evaluate.")
        channels /= count
        variances = [square / count - np.square(s / count) for s, square in zip(sums, squares)]
        kl_per_group = channels.sum(axis=1)
        return HierarchyResult(
            num_images=count,
            kl_per_group=kl_per_group.tolist(),
            kl_per_channel=channels.tolist(),
            units=[variance.size for variance in variances],
            active_units=[int(np.sum(variance > ACTIVE_VARIANCE)) for variance in variances],
            rate=np.cumsum([0.0, *kl_per_group]).tolist(),
            distortion=(distortion / count).tolist(),
        )

    def strips(self, images: tf.Tensor, seed: int = 0) -> np.ndarray:
        """Draws what the images become when only the first groups come from the posterior.

        Args:
          images: (B, H, W, C).
          seed: A number from which the draws are made.

        Returns:
          (L + 1, B, h, w, C) in [0, 1], without padding: the first 0, 1, ... L groups.
        """
        weights = self._model.weights()
        features = self._bottom_up(weights, images)
        own_seed, first = tf.constant([seed, 0], tf.int64), tf.constant(0, tf.int64)
        return np.stack(
            [
                self._keep(weights, images, features, tf.constant(keep), own_seed, first)[1].numpy()
                for keep in range(self._model.config.num_groups + 1)
            ]
        )
