"""-ELBO and the importance-weighted bound (Burda et al., ICLR 2016; docs/evaluation.md)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.devices import batches_on_devices
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.files import to_csv
from nvae_tf.model.inference import AnyModel, InferenceModel, PreparedWeights
from nvae_tf.training.objective import bits_per_dimension

# Rows of a pass through the top-down path, enough to keep all cores busy. More only take memory.
_ROWS = 64


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """Means over images, in nats per image unless said otherwise.

    The importance-weighted bound is -log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x): an upper bound of
    -log p(x), tighter with more samples; with one sample an estimate of the -ELBO.

    Attributes:
      num_images: Number of images.
      num_iw_samples: K, draws per image of the importance-weighted bound.
      negative_elbo: The -ELBO: reconstruction plus KL.
      negative_elbo_standard_error: Its standard error over the images.
      negative_elbo_bits_per_dim: The -ELBO in bits per dimension.
      iw_bound: The importance-weighted bound.
      iw_bound_standard_error: Its standard error over the images.
      iw_bound_bits_per_dim: The bound in bits per dimension.
      reconstruction: -log p(x|z).
      reconstruction_standard_error: Its standard error over the images.
      kl: KL of all groups together.
      kl_standard_error: Its standard error over the images.
      kl_per_group: KL of each group, top-down.
    """

    num_images: int
    num_iw_samples: int
    negative_elbo: float
    negative_elbo_standard_error: float
    negative_elbo_bits_per_dim: float
    iw_bound: float
    iw_bound_standard_error: float
    iw_bound_bits_per_dim: float
    reconstruction: float
    reconstruction_standard_error: float
    kl: float
    kl_standard_error: float
    kl_per_group: list[float]


@dataclasses.dataclass(frozen=True)
class ImageLikelihoods:
    """Bounds for each of N images, in nats; all but the last are means over K draws of z.

    Attributes:
      num_iw_samples: K.
      reconstruction: -log p(x|z), [N].
      kl_per_group: KL of each of the L groups, top-down, [N, L].
      iw_bound: The importance-weighted bound, [N].
    """

    num_iw_samples: int
    reconstruction: np.ndarray
    kl_per_group: np.ndarray
    iw_bound: np.ndarray

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
            negative_elbo_standard_error=standard_error(elbo),
            negative_elbo_bits_per_dim=bits_per_dimension(float(elbo.mean()), config),
            iw_bound=float(bound.mean()),
            iw_bound_standard_error=standard_error(bound),
            iw_bound_bits_per_dim=bits_per_dimension(float(bound.mean()), config),
            reconstruction=float(self.reconstruction.mean()),
            reconstruction_standard_error=standard_error(self.reconstruction),
            kl=float(kl.mean()),
            kl_standard_error=standard_error(kl),
            kl_per_group=self.kl_per_group.mean(axis=0).astype(float).tolist(),
        )

    def to_csv(self, files: Sequence[str] | None = None) -> str:
        """Returns a table with a line for each image.

        Args:
          files: [N], the images' files, which become a column; None: they have none.
        """
        groups = self.kl_per_group.shape[1]
        names = ["image", "negative_elbo", "iw_bound", "reconstruction"]
        names += [f"kl_{group:02d}" for group in range(groups)]
        values = [self.negative_elbo, self.iw_bound, self.reconstruction, *self.kl_per_group.T]
        columns: list[Iterable[str]] = [map(str, range(len(self.reconstruction)))]
        columns += [map("{:.6f}".format, column) for column in values]
        if files is not None:
            names.insert(1, "file")
            columns.insert(1, files)
        return to_csv(names, zip(*columns, strict=True))


class LikelihoodEvaluator:
    """Bounds on the likelihood of images; traces the model once for batches of one size.

    The bottom-up pass of an image does not depend on the draws of z, so all draws share it. Small
    batches are drawn from several times at once.

    Args:
      model: The model to evaluate; each call takes its weights and moving averages of that moment.
      devices: The names of those that compute batches side by side; None: all GPUs, or the CPU.
    """

    def __init__(self, model: AnyModel, devices: Sequence[str] | None = None):
        self._devices = devices
        self._model = InferenceModel.of(model)
        self._bottom_up = self._model.function(self._model.bottom_up, reduce_retracing=True)
        self._draw = self._model.function(self._draw_together, reduce_retracing=True)

    def _draw_together(
        self,
        images: tf.Tensor,
        features: list[tf.Tensor],
        seed: tf.Tensor,
        first: tf.Tensor,
        draws: int,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws z for all images several times, in one batch of k B rows.

        Args:
          images: (B, H, W, C).
          features: What `bottom_up` made of them.
          seed: Two integers, of which the second one is the first draw's number.
          first: The number of the first image.
          draws: k.

        Returns:
          -log p(x|z) [k, B], KL [k, B, L] and log p(z) / q(z|x) [k, B].
        """
        batch = tf.shape(images)[0]
        # A draw is the same in whichever company it is made.
        noises = [
            self._model.draw_noise(batch, tf.stack([seed[0], seed[1] + number]), first)
            for number in range(draws)
        ]
        noise = [tf.concat(group, axis=0) for group in zip(*noises)]
        rows = [repeat_batch(feature, draws) for feature in features]
        output = self._model.infer_from_features(rows, noise)
        log_prob = self._model.likelihood(output.logits).log_prob(repeat_batch(images, draws))
        kl, log_ratio = output.kl_per_group, output.log_p - output.log_q
        return (
            tf.reshape(-log_prob, [draws, batch]),
            tf.reshape(kl, [draws, batch, kl.shape[1]]),
            tf.reshape(log_ratio, [draws, batch]),
        )

    def evaluate(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
    ) -> LikelihoodResult:
        """Returns the means of `per_image`, which has these arguments and the same errors."""
        images = self.per_image(batches, num_iw_samples, seed, after_batch)
        return images.summary(self._model.config)

    def per_image(
        self,
        batches: Iterable[tf.Tensor],
        num_iw_samples: int = 1,
        seed: int = 0,
        after_batch: Callable[[int], None] | None = None,
        kept: KeptRows | None = None,
        weights: PreparedWeights | None = None,
    ) -> ImageLikelihoods:
        """Computes the bounds of all images, batch by batch.

        An image's draws depend on the seed and its number alone, not on the size of the batches.

        Args:
          batches: Images (B, H, W, C), binarised or quantised as in training.
          num_iw_samples: K, the number of draws per image.
          seed: A number from which the draws are made.
          after_batch: A function that is called after each batch with its size, for progress.
          kept: The rows of the images before these, with draws of the same seed. Those of these
            images are added, and all of them make up the result.
          weights: What `InferenceModel.weights` returned; None: those of the moment.

        Raises:
          ValueError: There are no images, or fewer than one draw is asked for.
          NotFiniteError: The bounds of a batch are not finite.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, received {num_iw_samples}.")
        weights = self._model.weights() if weights is None else weights
        compute = functools.partial(self._batch_likelihoods, weights, num_iw_samples, seed)
        rows = KeptRows() if kept is None else kept
        for arrays in batches_on_devices(
            compute, batches, self._devices, after_batch, first=rows.count
        ):
            rows.add(arrays)
        return ImageLikelihoods(num_iw_samples, *rows.all())

    def _batch_likelihoods(
        self,
        weights: PreparedWeights,
        num_iw_samples: int,
        seed: int,
        number: int,
        images: tf.Tensor,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the arrays of `ImageLikelihoods` for a numbered batch."""
        features = self._bottom_up(weights, images)
        first = tf.constant(number, tf.int64)
        together = _draws_per_pass(len(images), num_iw_samples)
        draws = [
            self._draw(weights, images, features, tf.constant([seed, k], tf.int64), first, together)
            for k in range(0, num_iw_samples, together)
        ]
        reconstruction, kl, log_ratio = (  # [K, B, ...]
            np.concatenate(v)[:num_iw_samples] for v in zip(*draws)
        )
        log_weights = log_ratio.astype(np.float64) - reconstruction
        with np.errstate(invalid="ignore"):  # what is not finite is not kept
            bound = math.log(num_iw_samples) - np.logaddexp.reduce(log_weights, axis=0)
        means = (np.mean(v, axis=0, dtype=np.float64) for v in (reconstruction, kl))
        return *means, bound


def _draws_per_pass(batch: int, draws: int) -> int:
    """Returns how many draws of a batch make up a pass, all passes alike and the last one full."""
    passes = math.ceil(draws / max(_ROWS // batch, 1))
    return math.ceil(draws / passes)


def repeat_batch(x: tf.Tensor, times: int) -> tf.Tensor:
    """Repeats a batch (B, ...) as a whole: (times B, ...)."""
    return tf.tile(x, [times] + [1] * (x.shape.rank - 1))


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of the mean of values (N,), NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
