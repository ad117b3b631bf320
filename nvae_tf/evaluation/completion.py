"""Judges completions by the likelihood of what was in the holes (docs/completion.md)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.data.pipeline import quantize
from nvae_tf.data.storage import image_blocks
from nvae_tf.evaluation.likelihood import standard_error


@dataclasses.dataclass(frozen=True)
class CompletionScore:
    """Means over images of -log p of the true pixels in the hole, in nats per image."""

    num_images: int
    hole_pixels: float  # mean number of pixels in a hole
    mixture: dict[int, float]  # of the first 1, 2, 4, … completions
    mixture_standard_error: dict[int, float]
    pixel_frequencies: float  # by `PixelFrequencies`, which knows the training images alone
    pixel_frequencies_standard_error: float


class PixelFrequencies:
    """The distribution of images whose values are independent, each as in the training images.

    It is what cutting the mean training image into a hole comes to as a likelihood: at every
    position, the frequency of each value. With V values and N images, a value that was counted n
    times has the probability (n + 1 / V) / (N + 1).

    Args:
      images: (N, h, w, C) uint8, to train on.
      config: Gives the likelihood and the number of bits, hence the values.

    Raises:
      ValueError: The likelihood is normal: densities are not comparable with frequencies.
    """

    def __init__(self, images: np.ndarray, config: ModelConfig):
        if config.likelihood == "normal":
            raise ValueError(
                "Completions are compared with the frequencies of values, but the model's normal "
                "likelihood gives densities."
            )
        shape, count = images.shape[1:], len(images)
        positions = math.prod(shape)
        self._values = 2 if config.likelihood == "bernoulli" else 2**config.num_x_bits
        counts = np.zeros(positions * self._values)
        offsets = np.arange(positions) * self._values
        for block in image_blocks(images):
            chunk = np.asarray(images[block]).reshape(-1, positions)
            if config.likelihood == "bernoulli":  # binarised: one with the intensity's probability
                ones = chunk.sum(axis=0, dtype=np.float64) / 255
                counts += np.stack([len(chunk) - ones, ones], axis=1).ravel()
            else:
                levels = self._levels(quantize(tf.cast(chunk, tf.float32), config.num_x_bits))
                counts += np.bincount((levels + offsets).ravel(), minlength=len(counts))
        probabilities = (counts + 1 / self._values) / (count + 1)
        self._log_prob = np.log(probabilities).reshape(*shape, self._values)

    def _levels(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Returns the numbers of values in [0, 1]."""
        return np.rint(np.asarray(images) * (self._values - 1)).astype(np.int64)

    def log_prob_by_pixel(self, images: np.ndarray) -> np.ndarray:
        """Returns (N, h, w) of images (N, h, w, C) in [0, 1], without padding."""
        chosen = self._levels(images)[..., None]
        shape = (*chosen.shape[:-1], self._values)
        by_value = np.take_along_axis(np.broadcast_to(self._log_prob, shape), chosen, axis=-1)
        return by_value[..., 0].sum(axis=-1)


def score(
    hole_log_prob: np.ndarray,
    images: np.ndarray,
    holes: np.ndarray,
    frequencies: PixelFrequencies,
) -> CompletionScore:
    """Compares the mixture of completions with the frequencies of the training images' values.

    Args:
      hole_log_prob: (N, M), log p(hole | z_m) of each image's completions.
      images: (N, h, w, C), the whole images as the model sees them, without padding.
      holes: (N, h, w) bool.
      frequencies: What to compare with.
    """
    by_pixel = frequencies.log_prob_by_pixel(images)
    frequency = -np.where(holes, by_pixel, 0).sum(axis=(1, 2))
    number, drawn = 1, hole_log_prob.shape[1]
    mixtures = {}
    while number <= drawn:
        first = hole_log_prob[:, :number].astype(np.float64)
        mixtures[number] = math.log(number) - np.logaddexp.reduce(first, axis=1)
        number = drawn if number < drawn < 2 * number else 2 * number
    return CompletionScore(
        num_images=len(images),
        hole_pixels=float(holes.sum(axis=(1, 2)).mean()),
        mixture={number: float(nats.mean()) for number, nats in mixtures.items()},
        mixture_standard_error={m: standard_error(nats) for m, nats in mixtures.items()},
        pixel_frequencies=float(frequency.mean()),
        pixel_frequencies_standard_error=standard_error(frequency),
    )
