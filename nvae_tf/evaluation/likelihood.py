"""-ELBO and the importance-weighted bound (Burda et al., ICLR 2016; docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.model.inference import AnyModel, InferenceModel
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
    """Bounds for each of N images, in nats; all but the last are means over K draws of z."""

    num_iw_samples: int  # K
    reconstruction: np.ndarray  # [N], -log p(x|z)
    kl_per_group: np.ndarray  # [N, L], top-down
    iw_bound: np.ndarray  # [N]

    @property
    def negative_elbo(self) -> np.ndarray:
        """-ELBO of each image, [N]."""
        return self.reconstruction + self.kl_per_group.sum(axis=1)

    def summary(self, config: ModelConfig) -> LikelihoodResult:
        """Returns means over the images; `config` says how many dimensions an image has."""
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
        """Returns a line of column names and, in their order, a line for each image."""
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

    The bottom-up pass of an image does not depend on the draws of z, so all draws share it.

    Args:
      model: The model to evaluate, with its moving averages. An `NVAE` is prepared anew for each
        evaluation, with its weights of that moment.
    """

    def __init__(self, model: AnyModel):
        self._model = InferenceModel.of(model)
        self._bottom_up = self._model.function(self._model.bottom_up, reduce_retracing=True)
        self._draw = self._model.function(self._draw_once, reduce_retracing=True)

    def _draw_once(
        self, images: tf.Tensor, features: list[tf.Tensor], seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns -log p(x|z) [B], KL [B, L] and log p(z) / q(z|x) [B] of one draw per image."""
        noise = self._model.draw_noise(tf.shape(images)[0], seed)
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
        """Returns the means of `per_image`, which has the same arguments and errors."""
        images = self.per_image(batches, num_iw_samples, seed, after_batch)
        return images.summary(self._model.config)

    def per_image(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> ImageLikelihoods:
        """Computes the bounds of all images, batch by batch.

        Args:
          batches: Images (B, H, W, C), binarised or quantised as in training.
          num_iw_samples: K, the number of draws per image.
          seed: A number from which the draws are made.
          after_batch: A function that is called after each batch with its size, for progress.

        Raises:
          ValueError: There are no images, or fewer than one draw is asked for.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, received {num_iw_samples}.")
        self._model.update()
        reconstructions, kls, bounds = [], [], []
        for number, images in enumerate(batches):
            features = self._bottom_up(images)
            first = number * num_iw_samples
            draws = [
                self._draw(images, features, tf.constant([seed, first + k], tf.int64))
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
