"""Pictures of what a model does with held-out images, and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.model.inference import InferenceModel, PreparedWeights
from nvae_tf.sampling.images import sheet, to_uint8
from nvae_tf.sampling.latents import vary
from nvae_tf.sampling.sampler import row_noise

EXAMPLES = 16  # images that are reconstructed or drawn at a time
_COLUMNS = 8
_STRIPS = 6  # images of `first_groups`


class Sheets(NamedTuple):
    """Pictures (H, W, C) uint8."""

    pairs: np.ndarray  # the examples, each beside its reconstruction at the posterior's means
    # A row for each of some examples: its first groups and a draw of the others, and itself. The
    # columns keep `Gallery.shown_groups`, and the draws have the same noise in all of them.
    first_groups: np.ndarray
    samples: list[np.ndarray]  # 16 each, the same noise at every temperature


class Gallery:
    """Draws sheets of pictures (H, W, C) uint8.

    Reconstruction, sampling and what lies between differ in how many groups come from an image, so
    one traced function draws them all.

    Args:
      model: The model to draw with.
      examples: 1 to 16 held-out images (N, H, W, C) as the model sees them.
    """

    def __init__(self, model: InferenceModel, examples: tf.Tensor):
        self._model = model
        self._examples = examples[:EXAMPLES]
        self._draw = self._model.function(self._draw_rows)

    def draw(self, weights: PreparedWeights, temperatures: Sequence[float]) -> Sheets:
        """Draws all sheets, with samples at these temperatures.

        Args:
          weights: What `InferenceModel.weights` returned.
          temperatures: Those of the samples.
        """
        return Sheets(
            pairs=self._reconstructions(weights),
            first_groups=self._first_groups(weights),
            samples=[self._samples(weights, temperature) for temperature in temperatures],
        )

    def _draw_rows(
        self,
        images: tf.Tensor,
        keep_groups: tf.Tensor,
        seeds: tf.Tensor,
        temperature: tf.Tensor,
    ) -> tf.Tensor:
        noise = row_noise(self._model, seeds)
        drawn = vary(self._model, images, keep_groups, noise, temperature)
        return self._model.crop_padding(drawn)

    def _rows(
        self,
        weights: PreparedWeights,
        examples: np.ndarray,
        keep_groups: np.ndarray,
        seeds: np.ndarray,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Images (N, h, w, C): numbers of examples, groups kept from them, seeds of the others."""
        drawn = []
        for first in range(0, len(examples), EXAMPLES):
            rows = np.arange(first, first + EXAMPLES) % len(examples)  # always as many
            pairs = np.stack([np.zeros_like(seeds[rows]), seeds[rows]], axis=1)
            images = self._draw(
                weights,
                tf.gather(self._examples, examples[rows]),
                tf.constant(keep_groups[rows], tf.int32),
                tf.constant(pairs, tf.int64),
                tf.constant(temperature, tf.float32),
            )
            drawn.append(images.numpy())
        return np.concatenate(drawn)[: len(examples)]

    def _reconstructions(self, weights: PreparedWeights) -> np.ndarray:
        numbers = np.arange(len(self._examples))
        keep = np.full_like(numbers, self._model.config.num_groups)
        pairs = np.stack([self._inputs(), self._rows(weights, numbers, keep, numbers)], axis=1)
        return sheet(to_uint8(pairs.reshape(-1, *pairs.shape[2:])), _COLUMNS)

    def _inputs(self) -> np.ndarray:
        return self._model.crop_padding(self._examples).numpy()

    def _samples(self, weights: PreparedWeights, temperature: float) -> np.ndarray:
        numbers = np.arange(EXAMPLES)
        examples = numbers % len(self._examples)  # of which nothing is kept
        drawn = self._rows(weights, examples, np.zeros_like(numbers), numbers, temperature)
        return sheet(to_uint8(drawn), _COLUMNS)

    def shown_groups(self) -> list[int]:
        """Returns how many groups each column of `Sheets.first_groups` keeps, from none to all."""
        groups = self._model.config.num_groups
        columns = min(groups + 1, _COLUMNS - 1)
        return np.linspace(0, groups, columns).round().astype(int).tolist()

    def _first_groups(self, weights: PreparedWeights) -> np.ndarray:
        keep = self.shown_groups()
        count = min(_STRIPS, len(self._examples))
        numbers = np.repeat(np.arange(count), len(keep))
        drawn = self._rows(weights, numbers, np.tile(keep, count), numbers)
        strips = drawn.reshape(count, len(keep), *drawn.shape[1:])
        rows = np.concatenate([strips, self._inputs()[:count, None]], axis=1)
        return sheet(to_uint8(rows.reshape(-1, *rows.shape[2:])), columns=len(keep) + 1)
