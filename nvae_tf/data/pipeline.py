"""Batches of images, each determined by a seed and the batch's number.

Batch number k of a seed is always the same, so a checkpoint need not hold any state of the data.
Batches to train on are stored images, which a replica's device turns into the model's input: a
quarter of the bytes travel, and the processor has less to do. See docs/data.md.
"""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, ModelConfig
from nvae_tf.data.views import random_views
from nvae_tf.noise import uniform_rows

_OF_VIEWS = 2**40  # folded into a seed; more than groups of latents, which are folded in, too


def preprocess(
    images: tf.Tensor, model: ModelConfig, seed: tf.Tensor, first: int | tf.Tensor = 0
) -> tf.Tensor:
    """Turns stored images into the model's input: `discretize`, and a border of zeros.

    Args:
      images: (B, h, w, C) uint8, without padding.
      model: Gives the likelihood, the number of bits and the padding.
      seed: Two integers that determine the binarisation.
      first: The number of the first image among those that the seed is for.

    Returns:
      (B, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: As from `discretize`.
    """
    return pad(discretize(images, model, seed, first), model)


def discretize(
    images: tf.Tensor, model: ModelConfig, seed: tf.Tensor, first: int | tf.Tensor = 0
) -> tf.Tensor:
    """Gives stored images the values that the likelihood knows.

    For a Bernoulli likelihood the images are binarised: each pixel becomes 1 with a probability
    equal to its intensity. Other images are quantised to `model.num_x_bits`.

    Args:
      images: (B, h, w, C) uint8, without padding.
      model: Gives the likelihood and the number of bits.
      seed: Two integers that determine the binarisation.
      first: The number of the first image among those that the seed is for.

    Returns:
      (B, h, w, C) float32 in [0, 1].

    Raises:
      ValueError: The images are not uint8, or not of the model's shape without padding.
    """
    images = tf.convert_to_tensor(images)
    if images.dtype != tf.uint8 or not images.shape[1:].is_compatible_with(model.content_shape):
        raise ValueError(
            f"Expected stored images, uint8 of shape (B, {', '.join(map(str, model.content_shape))}"
            f"), received {images.dtype.name} of shape {tuple(images.shape)}."
        )
    values = tf.cast(images, tf.float32)
    if model.likelihood == "bernoulli":
        uniform = uniform_rows(tf.shape(images)[0], images.shape[1:], seed, first)
        return tf.cast(uniform < values / 255.0, tf.float32)
    return quantize(values, model.num_x_bits)


def pad(images: tf.Tensor, model: ModelConfig) -> tf.Tensor:
    """Adds the border of zeros that `model.image_shape` includes to images (B, h, w, C)."""
    border = [model.padding, model.padding]
    return tf.pad(images, [[0, 0], border, border, [0, 0]])


def quantize(values: tf.Tensor, bits: int) -> tf.Tensor:
    """Rounds float values from 0 to 255 down to `bits` bits, and scales them to [0, 1].

    Returns:
      Multiples of 1 / (2^bits - 1).
    """
    return tf.floor(values / 2.0 ** (8 - bits)) / (2.0**bits - 1)


@dataclasses.dataclass(frozen=True)
class Division:
    """How a global batch is divided: into parts, and each part over replicas.

    Attributes:
      parts: The number of parts, which are computed one after the other.
      replicas: The number of replicas.
      first: The number of the first replica that this process feeds.
      local: The number of replicas that it feeds.
    """

    parts: int = 1
    replicas: int = 1
    first: int = 0
    local: int = 1


def training_batches(
    images: np.ndarray,
    config: ExperimentConfig,
    start: int = 0,
    division: Division = Division(),
) -> tf.data.Dataset:
    """Returns an endless dataset of stored images, in a new random order every epoch.

    Its elements are global batches; or shares of them, of which a process reads its own only: for
    each part in turn, one for every replica that it feeds.

    Args:
      images: (N, h, w, C) uint8, as `load_images` returns them.
      config: Gives the global batch size and the seed.
      start: Number of the first batch. A resumed run passes its step.
      division: How batches are divided.

    Returns:
      A dataset of images (B, h, w, C) uint8; `training_input` makes the model's input of them.
    """
    count, global_batch = len(images), config.train.global_batch_size
    size = global_batch // (division.parts * division.replicas)
    held = _HeldImages(images)

    def batch(number: tf.Tensor) -> tf.Tensor:
        number, replica = number // division.local, division.first + number % division.local
        number, part = number // division.parts, number % division.parts
        position = number * global_batch + size * (part * division.replicas + replica)
        position += tf.range(size, dtype=tf.int64)
        return held.rows(_shuffled(position, count, config.train.seed))

    numbers = tf.data.Dataset.counter(start * division.parts * division.local)
    dataset = numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    return held.until_unused(untuned(dataset))


def training_seed(config: ExperimentConfig, number: tf.Tensor, of_views: bool = False) -> tf.Tensor:
    """Returns the seed (2,) int64 of what is random about a global batch, or about its views."""
    seed = tf.stack([tf.constant(config.train.seed, tf.int64), tf.cast(number, tf.int64)])
    if of_views:
        return tf.random.experimental.stateless_fold_in(seed, tf.constant(_OF_VIEWS, tf.int64))
    return seed


def training_input(
    images: tf.Tensor,
    config: ExperimentConfig,
    number: tf.Tensor,
    first: int | tf.Tensor = 0,
    as_views: bool = False,
) -> tf.Tensor:
    """Turns images of a training batch into the model's input: some are flipped, if asked for.

    Args:
      images: (B, h, w, C) uint8, rows of a global batch.
      config: Gives the seed, whether to flip, and the model of `preprocess`.
      number: The number of the global batch.
      first: The number of the first of these rows in it.
      as_views: Whether to give a view of each image, see `random_views`.

    Returns:
      (B, H, W, C) float32 in [0, 1].
    """
    seed = training_seed(config, number, as_views)
    if as_views:
        images = random_views(images, seed + 2, first)
    if config.data.flip:
        # A view is flipped if its image is: it must not become its mirror image.
        side = training_seed(config, number) + 1
        coins = uniform_rows(tf.shape(images)[0], [1, 1, 1], side, first)
        images = tf.where(coins < 0.5, images, images[:, :, ::-1])
    return preprocess(images, config.model, seed, first)


class _HeldImages:
    """Images (N, h, w, C) of which a dataset reads rows, and which are freed with it.

    The array stays where it is, in memory or in a mapped file. As a constant, TensorFlow would copy
    it several times, once of them to the GPU. TensorFlow also keeps every function of NumPy for as
    long as the process lives. So the function here refers to a list, which is emptied in the end.
    """

    def __init__(self, images: np.ndarray):
        self._images = [images]
        self._shape = images.shape[1:]

    def rows(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns the images at indices (B,)."""
        held = self._images
        chosen = tf.numpy_function(lambda wanted: held[0][wanted], [numbers], tf.uint8)
        return tf.ensure_shape(chosen, [*numbers.shape, *self._shape])

    def until_unused(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Frees the images once nothing refers to the dataset, nor to an iterator over it."""
        weakref.finalize(dataset, self._images.clear)
        return dataset


def _shuffled(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Returns the image indices (B,) at positions (B,) of the endless sequence of epochs."""
    # tf.random.experimental.index_shuffle takes a single seed, but a batch that crosses the end of
    # an epoch needs two.
    seeds = tf.stack(
        [
            tf.fill(tf.shape(position), tf.constant(seed % 2**31, tf.int32)),
            tf.cast(position // count, tf.int32),
            tf.zeros_like(position, tf.int32),
        ],
        axis=-1,
    )
    return tf.raw_ops.RandomIndexShuffle(
        index=tf.cast(position % count, tf.int32),
        seed=seeds,
        max_index=tf.constant(count - 1, tf.int32),
        rounds=4,
    )


def evaluation_batches(
    images: np.ndarray, model: ModelConfig, batch_size: int, seed: int = 0, first: int = 0
) -> tf.data.Dataset:
    """Returns a dataset of all images once, in order.

    Args:
      images: (N, h, w, C) uint8.
      model: Determines how `preprocess` prepares the images.
      batch_size: B; the last batch may be smaller. It makes no difference to the images.
      seed: Seed of the binarisation.
      first: The number of the image to begin with; it makes no difference to those that follow.

    Returns:
      A dataset of batches (B, H, W, C) float32 in [0, 1].
    """
    held = _HeldImages(images)
    dataset = tf.data.Dataset.range(first, len(images)).batch(batch_size)

    def prepare(numbers: tf.Tensor) -> tf.Tensor:
        return preprocess(held.rows(numbers), model, tf.constant([seed, 0], tf.int64), numbers[0])

    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    return held.until_unused(untuned(dataset))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset that TensorFlow does not tune while it is read.

    The thread that does so may miss the end of the iterator, which then waits for it: on a single
    core, a training that was asked to stop after 80 s did so up to 94 s later.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
