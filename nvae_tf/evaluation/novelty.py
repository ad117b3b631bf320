"""Scores of how novel an image is to a model (Havtorn et al., ICML 2021; docs/detection.md)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.devices import arrays_on_devices
from nvae_tf.model.inference import AnyModel, InferenceModel
from nvae_tf.sampling.latents import keep_first_groups


@dataclasses.dataclass(frozen=True)
class ImageNovelty:
    """Bounds on log p(x) of each of N images, in nats; L groups, of which k are replaced.

    The k groups nearest to the pixels are drawn from the prior, given the others.
    """

    num_iw_samples: int  # K
    bound: np.ndarray  # [N], L: the ELBO; with more than one draw the importance-weighted bound
    bounds: np.ndarray  # [N, L + 1], L^{>k} for k = 0 … L, means over the draws

    @property
    def llr(self) -> np.ndarray:
        """LLR^{>k} = L - L^{>k} for k = 0 … L, [N, L + 1] nats: the larger, the more novel."""
        return self.bound[:, None] - self.bounds

    @property
    def scores(self) -> np.ndarray:
        """-L and LLR^{>1}, … LLR^{>L}, [N, L + 1]: the larger, the more novel."""
        return np.concatenate([-self.bound[:, None], self.llr[:, 1:]], axis=1)


class NoveltyEvaluator:
    """Bounds of images whose groups next to the pixels come from the prior.

    It traces the model once, however often it is called. An image needs one bottom-up pass, and
    L + 1 top-down passes for each draw.

    Args:
      model: The model to evaluate, with its moving averages. An `NVAE` is prepared anew for each
        evaluation, with its weights of that moment.
      devices: The names of those that compute batches side by side; None: all GPUs, or the CPU.

    #### References

    Havtorn et al., *Hierarchical VAEs Know What They Don't Know*, ICML 2021. A group's number in
    the paper grows with the distance from the pixels, ours with the distance from the top.
    """

    def __init__(self, model: AnyModel, devices: Sequence[str] | None = None):
        self._devices = devices
        self._model = InferenceModel.of(model)
        self._bottom_up = self._model.function(self._model.bottom_up, reduce_retracing=True)
        self._infer = self._model.function(self._infer_once, reduce_retracing=True)
        self._keep = self._model.function(self._keep_once, reduce_retracing=True)

    def _infer_once(
        self, images: tf.Tensor, features: list[tf.Tensor], seed: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns log p(x|z) [B], KL [B, L] and log p(z) / q(z|x) [B]."""
        noise = self._model.draw_noise(tf.shape(images)[0], seed, first)
        output = self._model.infer_from_features(features, noise)
        log_prob = self._model.likelihood(output.logits).log_prob(images)
        return log_prob, output.kl_per_group, output.log_p - output.log_q

    def _keep_once(
        self,
        images: tf.Tensor,
        features: list[tf.Tensor],
        keep: tf.Tensor,
        seed: tf.Tensor,
        first: tf.Tensor,
    ) -> tf.Tensor:
        """Returns log p(x|z) [B] with the first groups as `_infer_once` draws them."""
        batch = tf.shape(images)[0]
        noise = self._model.draw_noise(batch, seed, first)
        logits = keep_first_groups(self._model, features, tf.fill([batch], keep), noise, noise)
        return self._model.likelihood(logits).log_prob(images)

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
          ValueError: There are no images, fewer than one draw is asked for, or a bound is not
            finite.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, received {num_iw_samples}.")
        self._model.update()
        compute = functools.partial(self._batch_bounds, num_iw_samples, seed)
        bound, bounds = arrays_on_devices(compute, batches, self._devices, after_batch)
        wrong = int(np.sum(~(np.isfinite(bound) & np.isfinite(bounds).all(axis=1))))
        if wrong:
            raise ValueError(
                f"The bounds of {wrong} of {len(bound)} images are not finite: the weights of this "
                "model are of no use."
            )
        return ImageNovelty(num_iw_samples, bound, bounds)

    def _batch_bounds(
        self, num_iw_samples: int, seed: int, batch: tuple[int, tf.Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the arrays of `ImageNovelty` for a numbered batch."""
        number, images = batch
        groups = self._model.config.num_groups
        features = self._bottom_up(images)
        first = tf.constant(number, tf.int64)
        bounds, log_weights = [], []
        for draw in range(num_iw_samples):
            own_seed = tf.constant([seed, draw], tf.int64)
            log_prob, kl, log_ratio = (
                values.numpy().astype(np.float64)
                for values in self._infer(images, features, own_seed, first)
            )
            # Those with k = 1 … L groups from the prior share the draws of the other groups.
            log_probs = [log_prob] + [
                self._keep(images, features, tf.constant(keep), own_seed, first).numpy()
                for keep in reversed(range(groups))
            ]
            rates = np.cumsum(np.pad(kl, [(0, 0), (1, 0)]), axis=1)  # of the first 0, 1, … L
            bounds.append(np.stack(log_probs, axis=1) - rates[:, ::-1])
            log_weights.append(log_prob + log_ratio)
        mean = np.mean(bounds, axis=0)
        if num_iw_samples == 1:  # the KL as an integral varies less than as a draw
            return mean[:, 0], mean
        with np.errstate(invalid="ignore"):  # the caller looks for what is not finite
            bound = np.logaddexp.reduce(log_weights, axis=0) - math.log(num_iw_samples)
        return bound, mean
