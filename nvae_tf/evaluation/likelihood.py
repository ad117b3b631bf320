"""-ELBO and the importance-weighted bound (SPEC section 7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.model import NVAE
from nvae_tf.objective import bits_per_dimension


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
    kl: float
    kl_per_group: list[float]  # top-down


class LikelihoodEvaluator:
    """Averages both bounds over images; traces the model once, however often it is called.

    Args:
      model: evaluated with its moving averages, and with the weights of the moment.
    """

    def __init__(self, model: NVAE):
        self._model = model
        images = tf.TensorSpec((None, *model.config.image_shape))
        self._bottom_up = tf.function(model.bottom_up, input_signature=[images], autograph=False)
        self._draw = tf.function(self._draw_once, autograph=False, reduce_retracing=True)

    def _draw_once(
        self, images: tf.Tensor, features: list[tf.Tensor], seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """-log p(x|z) [B], KL [B, L] and log p(z) / q(z|x) [B] of one draw of z per image."""
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
        """Runs over all batches; the bottom-up pass, which all draws share, once for each.

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
        reconstructions, kls, log_weights = [], [], []
        for number, images in enumerate(batches):
            features = self._bottom_up(images)
            first = number * num_iw_samples
            draws = [
                self._draw(images, features, tf.constant([seed, first + k], tf.int64))
                for k in range(num_iw_samples)
            ]
            reconstruction, kl, log_ratio = (np.stack(v) for v in zip(*draws))  # [K, B, ...]
            reconstructions.append(np.mean(reconstruction, axis=0))
            kls.append(np.mean(kl, axis=0))
            log_weights.append(log_ratio.astype(np.float64) - reconstruction)
            if after_batch:
                after_batch(len(images))
        if not kls:
            raise ValueError("There are no images to evaluate.")
        return _summarize(
            self._model.config,
            np.concatenate(reconstructions),
            np.concatenate(kls),
            np.concatenate(log_weights, axis=1),
        )


def _summarize(
    config: ModelConfig,
    reconstruction: np.ndarray,
    kl_per_group: np.ndarray,
    log_weights: np.ndarray,
) -> LikelihoodResult:
    """From values of N images: -log p(x|z) [N], KL [N, L], log-weights [K, N]."""
    elbo = reconstruction + kl_per_group.sum(axis=1)
    num_iw_samples = len(log_weights)
    iw_bound = math.log(num_iw_samples) - np.logaddexp.reduce(log_weights, axis=0)
    return LikelihoodResult(
        num_images=len(elbo),
        num_iw_samples=num_iw_samples,
        negative_elbo=float(elbo.mean()),
        negative_elbo_standard_error=_standard_error(elbo),
        negative_elbo_bits_per_dim=bits_per_dimension(float(elbo.mean()), config),
        iw_bound=float(iw_bound.mean()),
        iw_bound_standard_error=_standard_error(iw_bound),
        iw_bound_bits_per_dim=bits_per_dimension(float(iw_bound.mean()), config),
        reconstruction=float(reconstruction.mean()),
        kl=float(kl_per_group.sum(axis=1).mean()),
        kl_per_group=kl_per_group.mean(axis=0).astype(float).tolist(),
    )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
