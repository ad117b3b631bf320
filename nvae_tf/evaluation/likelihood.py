"""-ELBO and the importance-weighted bound (SPEC section 7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.model.layers.convolution import effective_kernels, given_kernels
from nvae_tf.model.nvae import NVAE
from nvae_tf.training.objective import bits_per_dimension


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """Means over images, in nats per image unless said otherwise.

    The importance-weighted bound is -log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x): an upper bound of
    -log p(x), tighter with more samples; with one sample an estimate of the -ELBO.
    """

    num_images: int
    num_iw_samples: int  # K
    negative_elbo: float
    negative_elbo_standard_error: float
    negative_elbo_bits_per_dim: float
    iw_bound: float
    iw_bound_standard_error: float
    iw_bound_bits_per_dim: float
    reconstruction: float  # -log p(x|z)
    reconstruction_standard_error: float
    kl: float
    kl_standard_error: float
    kl_per_group: list[float]  # top-down


@dataclasses.dataclass(frozen=True)
class ImageLikelihoods:
    """Bounds for each of N images, in nats; the fields are means over K draws of z."""

    num_iw_samples: int  # K
    reconstruction: np.ndarray  # [N], -log p(x|z)
    kl_per_group: np.ndarray  # [N, L], top-down
    iw_bound: np.ndarray  # [N]

    @property
    def negative_elbo(self) -> np.ndarray:
        """[N]."""
        return self.reconstruction + self.kl_per_group.sum(axis=1)

    def summary(self, config: ModelConfig) -> LikelihoodResult:
        """Means over the images; the model's configuration says how many dimensions they have."""
        elbo, bound, kl = self.negative_elbo, self.iw_bound, self.kl_per_group.sum(axis=1)
        return LikelihoodResult(
            num_images=len(elbo),
            num_iw_samples=self.num_iw_samples,
            negative_elbo=float(elbo.mean()),
            negative_elbo_standard_error=_standard_error(elbo),
            negative_elbo_bits_per_dim=bits_per_dimension(float(elbo.mean()), config),
            iw_bound=float(bound.mean()),
            iw_bound_standard_error=_standard_error(bound),
            iw_bound_bits_per_dim=bits_per_dimension(float(bound.mean()), config),
            reconstruction=float(self.reconstruction.mean()),
            reconstruction_standard_error=_standard_error(self.reconstruction),
            kl=float(kl.mean()),
            kl_standard_error=_standard_error(kl),
            kl_per_group=self.kl_per_group.mean(axis=0).astype(float).tolist(),
        )

    def to_csv(self) -> str:
        """One line per image, in the order of the images, below a line of column names."""
        groups = self.kl_per_group.shape[1]
        names = ["negative_elbo", "iw_bound", "reconstruction"]
        names += [f"kl_{group:02d}" for group in range(groups)]
        columns = [self.negative_elbo, self.iw_bound, self.reconstruction, *self.kl_per_group.T]
        lines = [",".join(["image", *names])]
        for number, values in enumerate(zip(*columns)):
            lines.append(",".join([str(number), *(f"{value:.6f}" for value in values)]))
        return "\n".join(lines) + "\n"


class LikelihoodEvaluator:
    """Bounds on the likelihood of images; traces the model once, however often it is called.

    The bottom-up pass of an image does not depend on the draws of z, nor do the normalised weights:
    all draws share them.

    Args:
      model: evaluated with its moving averages, and with the weights of the moment.
    """

    def __init__(self, model: NVAE):
        self._model = model
        self._bottom_up = tf.function(self._bottom_up_once, autograph=False, reduce_retracing=True)
        self._draw = tf.function(self._draw_once, autograph=False, reduce_retracing=True)

    def _bottom_up_once(self, kernels: dict[int, tf.Tensor], images: tf.Tensor) -> list[tf.Tensor]:
        with given_kernels(kernels):
            return self._model.bottom_up(images)

    def _draw_once(
        self,
        kernels: dict[int, tf.Tensor],
        images: tf.Tensor,
        features: list[tf.Tensor],
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """-log p(x|z) [B], KL [B, L] and log p(z) / q(z|x) [B] of one draw of z per image."""
        noise = self._model.draw_noise(tf.shape(images)[0], seed)
        with given_kernels(kernels):
            output = self._model.infer_from_features(features, noise)
        reconstruction = -self._model.likelihood(output.logits).log_prob(images)
        return reconstruction, output.kl_per_group, output.log_p - output.log_q

    def evaluate(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> LikelihoodResult:
        """The means of `per_image`, which has the same arguments and errors."""
        images = self.per_image(batches, num_iw_samples, seed, after_batch)
        return images.summary(self._model.config)

    def per_image(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> ImageLikelihoods:
        """Runs over all batches.

        Args:
          batches: of images (B, H, W, C), binarised or quantised as in training.
          num_iw_samples: K, draws per image.
          seed: of the draws.
          after_batch: called after each batch with its size, for progress.

        Raises:
          ValueError: if there are no images, or fewer than one sample is asked for.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, received {num_iw_samples}.")
        kernels = effective_kernels(self._model.convolutions())
        reconstructions, kls, bounds = [], [], []
        for number, images in enumerate(batches):
            features = self._bottom_up(kernels, images)
            first = number * num_iw_samples
            draws = [
                self._draw(kernels, images, features, tf.constant([seed, first + k], tf.int64))
                for k in range(num_iw_samples)
            ]
            reconstruction, kl, log_ratio = (np.stack(v) for v in zip(*draws))  # [K, B, ...]
            log_weights = log_ratio.astype(np.float64) - reconstruction
            reconstructions.append(np.mean(reconstruction, axis=0))
            kls.append(np.mean(kl, axis=0))
            bounds.append(math.log(num_iw_samples) - np.logaddexp.reduce(log_weights, axis=0))
            if after_batch:
                after_batch(len(images))
        if not kls:
            raise ValueError("There are no images to evaluate.")
        return ImageLikelihoods(
            num_iw_samples,
            np.concatenate(reconstructions),
            np.concatenate(kls),
            np.concatenate(bounds),
        )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
