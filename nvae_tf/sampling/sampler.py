"""Images drawn from a model, each of them from its own seed (docs/latents.md)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from nvae_tf.config import ModelConfig
from nvae_tf.devices import on_devices
from nvae_tf.model.inference import AnyModel, InferenceModel
from nvae_tf.sampling.images import to_uint8

OUTPUTS = ("mean", "sample")


def group_temperatures(config: ModelConfig, temperature: ArrayLike) -> np.ndarray:
    """Returns one temperature for each of the L groups, top-down, float32.

    Args:
      config: The model's configuration, which says how many scales and groups there are.
      temperature: One number for all groups, one for each scale, or one for each group, top-down:
        the first belongs to the lowest resolution. If there are as many scales as groups, the last
        two are the same.

    Raises:
      ValueError: The number of values is another one, or one of them is negative or not finite.
    """
    scales, groups = config.num_latent_scales, config.num_groups
    wrong = ValueError(
        "temperature must be one number, one for each of the "
        f"{scales} scales or one for each of the {groups} groups, top-down, none of them negative; "
        f"received {temperature!r}."
    )
    try:
        values = np.atleast_1d(np.asarray(temperature, np.float32))
    except (TypeError, ValueError) as error:
        raise wrong from error
    if values.ndim > 1 or values.size not in (1, scales, groups):
        raise wrong
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise wrong
    if values.size == groups:
        return values
    if values.size == 1:
        return np.repeat(values, groups)
    return values[[scales - 1 - scale for scale in config.group_scales]]


def row_noise(model: AnyModel, seeds: tf.Tensor) -> list[tf.Tensor]:
    """Draws standard-normal tensors (B, H_l, W_l, C_z) for all groups, a row from each seed.

    A row is what `model.draw_noise(1, seed)` gives for its seed, whatever the other rows are.

    Args:
      model: The model, whose latent groups give the shapes.
      seeds: int64 (B, 2).
    """
    shapes = model.config.latent_shapes

    def one_row(seed: tf.Tensor) -> list[tf.Tensor]:
        return [tensor[0] for tensor in model.draw_noise(1, seed)]

    return tf.map_fn(
        one_row, seeds, fn_output_signature=[tf.TensorSpec(shape, tf.float32) for shape in shapes]
    )


def row_samples(model: AnyModel, logits: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws images (B, H, W, C) from the likelihood, a row from each seed.

    Args:
      model: The model whose likelihood it is.
      logits: The likelihood's parameters (B, H, W, P).
      seeds: int64 (B, 2), which may be those of `row_noise`.
    """

    def one_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        logits, seed = row
        # The groups have the numbers below this one. Folded in as 32 bits, two of some ten thousand
        # seeds would become the same, so the two integers that TFP takes are drawn.
        number = tf.constant(model.config.num_groups, tf.int64)
        own = tf.random.experimental.stateless_fold_in(seed, number)
        integers = tf.random.stateless_uniform([2], own, None, None, tf.int32)
        return model.likelihood(logits[None]).sample(seed=integers)[0]

    shape = tf.TensorSpec(model.config.image_shape, tf.float32)
    return tf.map_fn(one_row, (logits, seeds), fn_output_signature=shape)


class Sampler:
    """Draws images from the prior, in memory that does not grow with their number.

    Image i depends on the seed and on i alone: more images or another batch size change none of
    them (kernels may round differently for another batch size, which can move a grey level by one).
    Image 0 is the one that the SavedModel's signature `sample` answers for that seed. The model is
    traced once, however often and at whichever temperatures it is used.

    Args:
      model: The model to draw from; each call of `batches` takes its weights and moving averages of
        that moment.
      output: `"mean"` of the likelihood, or a `"sample"` of it.
      batch_size: The number of images at a time.

    Raises:
      ValueError: The output is another one, or the batch size is below 1.

    Example:
    ```python
    for images in Sampler(model).batches(50_000, temperature=0.7, seed=1):
        ...  # (64, h, w, C) uint8, without padding
    ```
    """

    def __init__(self, model: AnyModel, output: str = "mean", batch_size: int = 64):
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}; received {output!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}.")
        self._model = InferenceModel.of(model)
        self._output = output
        self._batch_size = batch_size
        self._draw = self._model.function(self._draw_batch)

    def _draw_batch(self, seeds: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """Draws images (B, h, w, C) in [0, 1] from seeds (B, 2) at temperatures (L,)."""
        model = self._model
        logits = model.generate(self._batch_size, temperature, row_noise(model, seeds))
        if self._output == "mean":
            images = model.likelihood(logits).mean()
        else:
            images = row_samples(model, logits, seeds)
        return model.crop_padding(images)

    def batches(
        self, number: int, temperature: ArrayLike = 1.0, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Draws images 0 to number - 1 of a seed, in batches (B, h, w, C) uint8 without padding.

        Args:
          number: How many images to draw; the last batch may be smaller than the others.
          temperature: One number, one per scale or one per group; see `group_temperatures`.
          seed: At least 0.

        Raises:
          ValueError: Number or seed are negative, or the temperatures do not fit. The call raises
            it, not the first batch.
        """
        if number < 0:
            raise ValueError(f"number must be at least 0, received {number}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, received {seed}.")
        temperatures = tf.constant(group_temperatures(self._model.config, temperature))
        weights = self._model.weights()

        def draw(first: int) -> np.ndarray:
            indices = np.arange(first, first + self._batch_size, dtype=np.int64)
            seeds = np.stack([np.full_like(indices, seed), indices], axis=1)
            return to_uint8(self._draw(weights, tf.constant(seeds), temperatures))[: number - first]

        return on_devices(draw, range(0, number, self._batch_size))
