"""Draws grids of images that show what the latent groups of a model hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from nvae_tf.devices import filled_rows
from nvae_tf.model.inference import AnyModel, InferenceModel, PreparedWeights
from nvae_tf.sampling import latents
from nvae_tf.sampling.images import to_uint8
from nvae_tf.sampling.sampler import group_temperatures, row_noise

_NOTHING = "There is nothing to draw: no images, seeds, rows or columns."
Latents = list[tf.Tensor]  # L of [1, H_l, W_l, C_z], top-down: those of one image


class Explorer:
    """Draws what the functions of `nvae_tf.sampling.latents` do, as uint8 without padding.

    It computes a few images at a time. A method traces the model when it first gets so many images,
    up to `batch_size`, or these groups. Images that go in are (N, H, W, C) in [0, 1], with padding.
    A seed stands for image 0 of `Sampler`.

    Args:
      model: The model to look into; each call takes its weights and moving averages of that moment.
      batch_size: The number of images at a time.
      after_batch: A function that is called with the number of images drawn, for progress.

    Raises:
      ValueError: The batch size is below 1. Methods that draw images raise one if there is nothing
        to draw.
    """

    def __init__(
        self,
        model: AnyModel,
        batch_size: int = 16,
        after_batch: Callable[[int], object] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}.")
        self._model = model = InferenceModel.of(model)
        self._batch_size = batch_size
        self._after_batch = after_batch

        def encode(images: Any) -> Any:
            return latents.encode(model, images)

        def draw(seeds: Any, temperature: Any) -> Any:
            return latents.draw_latents(model, row_noise(model, seeds), temperature)

        def reconstruct(images: Any) -> Any:
            return latents.reconstruct(model, images)

        def between_images(weight: Any, start: Any, end: Any, groups: Any) -> Any:
            return latents.decode(model, latents.interpolate(start, end, weight, groups))

        def between_seeds(weight: Any, start: Any, end: Any, temperature: Any, groups: Any) -> Any:
            start, end = row_noise(model, start), row_noise(model, end)
            noise = latents.interpolate_noise(start, end, weight, groups)
            logits = model.generate(tf.shape(weight)[0], temperature, noise)
            return model.likelihood(logits).mean()

        def along(amount: Any, base: Any, direction: Any, groups: Any) -> Any:
            return latents.decode(model, latents.move(base, direction, amount, groups))

        def traverse(group: Any, channel: Any, deviations: Any, base: Any) -> Any:
            return latents.traverse(model, base, group, channel, deviations)

        def vary(images: Any, keep_groups: Any, seeds: Any, temperature: Any) -> Any:
            return latents.vary(model, images, keep_groups, row_noise(model, seeds), temperature)

        self._encode, self._draw = model.function(encode), model.function(draw)
        self._reconstruct = model.function(reconstruct)
        self._between_images = model.function(between_images)
        self._between_seeds = model.function(between_seeds)
        self._along = model.function(along)
        self._traverse, self._vary = model.function(traverse), model.function(vary)

    def encode(self, images: tf.Tensor) -> list[Latents]:
        """Returns the posterior means of each of N images."""
        return self._encode_each(self._model.weights(), images)

    def _encode_each(self, weights: PreparedWeights, images: tf.Tensor) -> list[Latents]:
        return [self._encode(weights, image[None]) for image in tf.convert_to_tensor(images)]

    def posterior_means(self, images: tf.Tensor) -> list[np.ndarray]:
        """Returns the posterior means of N images, by group: L of (N, H_l, W_l, C_z)."""
        weights = self._model.weights()
        batches = list(self._batches(weights, self._encode, [tf.convert_to_tensor(images)]))
        return [np.concatenate(group) for group in zip(*batches)]

    def mean_latents(self, batches: Iterable[tf.Tensor]) -> list[np.ndarray]:
        """Returns the mean of all images' posterior means, by group: L of (H_l, W_l, C_z).

        Args:
          batches: Images (B, H, W, C). No more than a batch is held at a time.

        Raises:
          ValueError: There are no images.
        """
        weights = self._model.weights()
        count = 0
        totals = [np.zeros(shape) for shape in self._model.config.latent_shapes]
        for images in filter(len, batches):
            for means in self._batches(weights, self._encode, [tf.convert_to_tensor(images)]):
                count += len(means[0])
                totals = [total + group.sum(axis=0) for total, group in zip(totals, means)]
        if not count:
            raise ValueError("There are no images whose mean could be taken.")
        return [(total / count).astype(np.float32) for total in totals]

    def draw(self, seeds: Sequence[int], temperature: ArrayLike = 1.0) -> list[Latents]:
        """Returns the latent variables of each of N samples."""
        temperatures = group_temperatures(self._model.config, temperature)
        weights = self._model.weights()
        return [self._draw(weights, _row_seeds([seed]), temperatures) for seed in seeds]

    def reconstruct(self, images: tf.Tensor) -> np.ndarray:
        """Draws reconstructions (N, h, w, C) at the posterior means."""
        weights = self._model.weights()
        return self._images(weights, self._reconstruct, [tf.convert_to_tensor(images)])

    def interpolate_images(
        self, images: tf.Tensor, steps: int, groups: Sequence[int] | None = None
    ) -> np.ndarray:
        """Draws the way from each image to the next, by `latents.interpolate`.

        Args:
          images: (N, H, W, C), at least two.
          steps: The number of images from one to the next, both included.
          groups: The groups that move; None moves all.

        Returns:
          (N - 1, steps, h, w, C).

        Raises:
          ValueError: There are fewer than two images or steps, or a group does not exist.
        """
        _check_ends_and_steps(len(images), steps)
        weights = self._model.weights()
        bases = self._encode_each(weights, images)
        shares = [tf.linspace(0.0, 1.0, steps)]
        moving = _tuple_or_none(groups)
        return np.stack(
            [
                self._images(weights, self._between_images, shares, start, end, moving)
                for start, end in itertools.pairwise(bases)
            ]
        )

    def interpolate_seeds(
        self,
        seeds: Sequence[int],
        steps: int,
        temperature: ArrayLike = 1.0,
        groups: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Draws the way from each sample to the next, by `latents.interpolate_noise`.

        Args:
          seeds: At least two.
          steps: The number of images from one to the next, both included.
          temperature: One number, one per scale or one per group; see `group_temperatures`.
          groups: The groups whose noise moves; None moves all.

        Returns:
          (N - 1, steps, h, w, C).

        Raises:
          ValueError: There are fewer than two seeds or steps, the temperatures do not fit, or a
            group does not exist.
        """
        _check_ends_and_steps(len(seeds), steps)
        temperatures = group_temperatures(self._model.config, temperature)
        shares = [tf.linspace(0.0, 1.0, steps)]
        moving = _tuple_or_none(groups)
        ends = [_row_seeds([seed]) for seed in seeds]
        weights = self._model.weights()
        return np.stack(
            [
                self._images(weights, self._between_seeds, shares, start, end, temperatures, moving)
                for start, end in itertools.pairwise(ends)
            ]
        )

    def along(
        self,
        images: tf.Tensor,
        direction: Sequence[np.ndarray],
        amounts: Sequence[float] | np.ndarray,
        groups: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Draws `latents.move` of each of N images.

        Args:
          images: (N, H, W, C).
          direction: L arrays (H_l, W_l, C_z), such as the difference of two classes'
            `mean_latents`.
          amounts: The factor of the direction of each column; 0 gives the reconstruction.
          groups: The groups that move; None moves all.

        Returns:
          (N, amounts, h, w, C).

        Raises:
          ValueError: A group does not exist.
        """
        columns = [tf.constant(amounts, tf.float32)]
        way = [tf.constant(group[None], tf.float32) for group in direction]
        moving = _tuple_or_none(groups)
        weights = self._model.weights()
        return _stacked(
            self._images(weights, self._along, columns, base, way, moving)
            for base in self._encode_each(weights, images)
        )

    def traverse(
        self,
        bases: Sequence[Latents],
        group: int,
        channels: Sequence[int],
        deviations: Sequence[float] | np.ndarray,
    ) -> np.ndarray:
        """Draws `latents.traverse` of each channel, for each of N images or samples.

        Args:
          bases: What `encode` or `draw` returned.
          group: The number of the group whose channels they are.
          channels: The channel of each row.
          deviations: The value of each column, in standard deviations of the prior.

        Returns:
          (N · channels, deviations, h, w, C).

        Raises:
          ValueError: The group or a channel does not exist.
        """
        config = self._model.config
        check_indices("group", [group], config.num_groups)
        check_indices("channels", channels, config.num_latent_per_group)
        values = tf.constant(deviations, tf.float32)
        weights = self._model.weights()
        return _stacked(
            self._images(
                weights,
                self._traverse,
                [tf.fill([len(values)], group), tf.fill([len(values)], channel), values],
                base,
            )
            for base in bases
            for channel in channels
        )

    def vary(
        self,
        images: tf.Tensor,
        keep_groups: Sequence[int],
        seeds: Sequence[int],
        temperature: ArrayLike = 1.0,
    ) -> np.ndarray:
        """Draws `latents.vary` of each of N images, for each number of groups to keep.

        Args:
          images: (N, H, W, C).
          keep_groups: The number of groups that each row keeps.
          seeds: The seed of each column; all rows have the same noise.
          temperature: One number, one per scale or one per group; see `group_temperatures`.

        Returns:
          (N · keep_groups, seeds, h, w, C).

        Raises:
          ValueError: There are fewer groups than are to be kept, or the temperatures do not fit.
        """
        check_indices("keep_groups", keep_groups, self._model.config.num_groups + 1)
        temperatures = group_temperatures(self._model.config, temperature)
        count = len(seeds)
        weights = self._model.weights()
        return _stacked(
            self._images(
                weights,
                self._vary,
                [tf.repeat(image[None], count, axis=0), tf.fill([count], keep), _row_seeds(seeds)],
                temperatures,
            )
            for image in tf.convert_to_tensor(images)
            for keep in keep_groups
        )

    def _images(
        self,
        weights: PreparedWeights,
        function: Callable[..., Any],
        rows: Sequence[tf.Tensor],
        *others: Any,
    ) -> np.ndarray:
        """Returns images that `function` draws, with the arguments of `_batches`."""
        batches = self._batches(
            weights,
            lambda *arguments: [self._model.crop_padding(function(*arguments))],
            rows,
            *others,
        )
        return np.concatenate([to_uint8(images) for (images,) in batches])

    def _batches(
        self,
        weights: PreparedWeights,
        function: Callable[..., Any],
        rows: Sequence[tf.Tensor],
        *others: Any,
    ) -> Iterator[list[np.ndarray]]:
        """Yields the tensors of `function(weights, *rows, *others)`, for a few rows at a time."""
        count = len(rows[0])
        if not count:
            raise ValueError(_NOTHING)
        for chosen, number in filled_rows(count, min(self._batch_size, count)):
            tensors = function(weights, *(tf.gather(tensor, chosen) for tensor in rows), *others)
            yield [tensor.numpy()[:number] for tensor in tensors]
            if self._after_batch:
                self._after_batch(number)


def _stacked(rows: Iterable[np.ndarray]) -> np.ndarray:
    rows = list(rows)
    if not rows:
        raise ValueError(_NOTHING)
    return np.stack(rows)


def _row_seeds(seeds: Sequence[int]) -> tf.Tensor:
    """Returns the seeds (N, 2) of image 0 of each seed."""
    return tf.constant([[seed, 0] for seed in seeds], tf.int64)


def _tuple_or_none(groups: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if groups is None else tuple(groups)


def _check_ends_and_steps(ends: int, steps: int) -> None:
    if ends < 2 or steps < 2:
        raise ValueError(
            f"An interpolation needs two ends and two steps or more, received {ends} and {steps}."
        )


def check_indices(name: str, values: Sequence[int], limit: int) -> None:
    """Raises a ValueError unless all values are from 0 to limit - 1."""
    for value in values:
        if not 0 <= value < limit:
            raise ValueError(f"{name} must be from 0 to {limit - 1}, received {value}.")
