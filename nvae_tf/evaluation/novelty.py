"""Scores of how novel an image is to a model (Havtorn et al., ICML 2021; docs/detection.md)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.devices import batches_on_devices
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.model.inference import AnyModel, InferenceModel, PreparedWeights
from nvae_tf.sampling.latents import keep_first_groups


@dataclasses.dataclass(frozen=True)
class ImageNovelty:
    """Bounds on log p(x) of each of N images, in nats; L groups, of which k are replaced.

    The k groups nearest to the pixels are drawn from the prior, given the others.

    Attributes:
      num_iw_samples: K, draws of the latent variables per image.
      bound: L, [N]: the ELBO, or with more than one draw the importance-weighted bound.
      bounds: L^{>k} for k = 0 … L, means over the draws, [N, L + 1].
    """

    num_iw_samples: int
    bound: np.ndarray
    bounds: np.ndarray

    @property
    def llr(self) -> np.ndarray:
        """LLR^{>k} = L - L^{>k} for k = 1 … L, [N, L] nats: the larger, the more novel."""
        return self.bound[:, None] - self.bounds[:, 1:]

    @property
    def scores(self) -> np.ndarray:
        """-L and LLR^{>1}, … LLR^{>L}, [N, L + 1]: the larger, the more novel."""
        return np.concatenate([-self.bound[:, None], self.llr], axis=1)


class DrawnBounds(NamedTuple):
    """What one draw of the latent variables says about B images; L groups."""

    bounds: tf.Tensor  # [B, L + 1], L^{>k} for k = 0 … L in nats
    log_weight: tf.Tensor  # [B], log p(x, z) - log q(z|x)

    @property
    def llr(self) -> tf.Tensor:
        """LLR^{>k} = L - L^{>k} for k = 1 … L, [B, L] nats."""
        return self.bounds[:, :1] - self.bounds[:, 1:]


def draw_bounds(
    model: AnyModel, images: tf.Tensor, features: Sequence[tf.Tensor], noise: Sequence[tf.Tensor]
) -> DrawnBounds:
    """Computes the bounds of images for each number k of groups that come from the prior.

    All k share the draws of the groups that are kept. The batch dimension may be unknown.

    Args:
      model: The model.
      images: (B, H, W, C), binarised or quantised as in training.
      features: What `bottom_up` made of them.
      noise: L standard-normal tensors (B, H_l, W_l, C_z), top-down.
    """
    output = model.infer_from_features(features, noise)
    own = model.likelihood(output.logits).log_prob(images)

    def log_prob(keep: tf.Tensor) -> tf.Tensor:
        rows = tf.fill([tf.shape(images)[0]], keep)
        logits = keep_first_groups(model, features, rows, noise, noise)
        return model.likelihood(logits).log_prob(images)

    # In a loop, for the graph of a large model should not hold its layers once for every k.
    keep = tf.range(model.config.num_groups - 1, -1, -1)
    replaced = tf.map_fn(log_prob, keep, fn_output_signature=tf.float32, parallel_iterations=1)
    log_probs = tf.concat([own[:, None], tf.transpose(replaced)], axis=1)
    rates = tf.cumsum(tf.pad(output.kl_per_group, [[0, 0], [1, 0]]), axis=1)  # of 0, 1, … L groups
    return DrawnBounds(log_probs - rates[:, ::-1], own + output.log_p - output.log_q)


class NoveltyEvaluator:
    """Bounds of images whose groups next to the pixels come from the prior.

    It traces the model once for batches of one size, however often it is called. An image needs
    one bottom-up pass, and L + 1 top-down passes for each draw.

    Args:
      model: The model to evaluate; each call takes its weights and moving averages of that moment.
      devices: The names of those that compute batches side by side; None: all GPUs, or the CPU.

    #### References

    Havtorn et al., *Hierarchical VAEs Know What They Don't Know*, ICML 2021. A group's number in
    the paper grows with the distance from the pixels, ours with the distance from the top.
    """

    def __init__(self, model: AnyModel, devices: Sequence[str] | None = None):
        self._devices = devices
        self._model = InferenceModel.of(model)
        self._bottom_up = self._model.function(self._model.bottom_up, reduce_retracing=True)
        self._draw = self._model.function(self._draw_once, reduce_retracing=True)

    def _draw_once(
        self, images: tf.Tensor, features: list[tf.Tensor], seed: tf.Tensor, first: tf.Tensor
    ) -> DrawnBounds:
        noise = self._model.draw_noise(tf.shape(images)[0], seed, first)
        return draw_bounds(self._model, images, features, noise)

    def per_image(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> ImageNovelty:
        """Computes the bounds of all images, batch by batch.

        An image's draws depend on the seed and its number alone, not on the size of the batches.

        Args:
          batches: Images (B, H, W, C), binarised or quantised as in training.
          num_iw_samples: K, the number of draws per image.
          seed: A number from which the draws are made.
          after_batch: A function that is called after each batch with its size, for progress.

        Raises:
          ValueError: There are no images, or fewer than one draw is asked for.
          NotFiniteError: The bounds of a batch are not finite.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, received {num_iw_samples}.")
        weights = self._model.weights()
        compute = functools.partial(self._batch_bounds, weights, num_iw_samples, seed)
        rows = KeptRows()
        for arrays in batches_on_devices(compute, batches, self._devices, after_batch):
            rows.add(arrays)
        return ImageNovelty(num_iw_samples, *rows.all())

    def _batch_bounds(
        self,
        weights: PreparedWeights,
        num_iw_samples: int,
        seed: int,
        number: int,
        images: tf.Tensor,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the arrays of `ImageNovelty` for a numbered batch."""
        features = self._bottom_up(weights, images)
        first = tf.constant(number, tf.int64)
        draws = [
            self._draw(weights, images, features, tf.constant([seed, draw], tf.int64), first)
            for draw in range(num_iw_samples)
        ]
        bounds = np.stack([draw.bounds.numpy() for draw in draws]).astype(np.float64)
        mean = np.asarray(bounds.mean(axis=0))
        if num_iw_samples == 1:  # the KL as an integral varies less than as a draw
            return mean[:, 0], mean
        log_weights = [draw.log_weight.numpy().astype(np.float64) for draw in draws]
        with np.errstate(invalid="ignore"):  # the caller looks for what is not finite
            total = np.asarray(np.logaddexp.reduce(log_weights, axis=0))
        return total - math.log(num_iw_samples), mean
