"""Batches of images, as functions of a seed and of the batch's number (SPEC section 8).

Nothing has to be saved to continue a run: batch number k of a seed is always the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, ModelConfig


def preprocess(images: tf.Tensor, model: ModelConfig, seed: tf.Tensor) -> tf.Tensor:
    """What the model gets, from images as they are stored.

    Bernoulli images are binarised: each pixel is 1 with its intensity as the probability. Others
    are reduced to the model's bits. Then comes the padding, with zeros.

    Args:
      images: (B, h, w, C) uint8, without padding.
      model: likelihood, bits and padding.
      seed: two integers; the same ones binarise in the same way.

    Returns:
      (B, H, W, C) float32 in [0, 1].
    """
    values = tf.cast(images, tf.float32)
    if model.likelihood == "bernoulli":
        uniform = tf.random.stateless_uniform(tf.shape(images), seed)
        values = tf.cast(uniform < values / 255.0, tf.float32)
    else:
        values = quantize(values, model.num_x_bits)
    border = [model.padding, model.padding]
    return tf.pad(values, [[0, 0], border, border, [0, 0]])


def quantize(values: tf.Tensor, bits: int) -> tf.Tensor:
    """Values 0 to 255 (float) as multiples of 1 / (2^bits - 1) in [0, 1]."""
    return tf.floor(values / 2.0 ** (8 - bits)) / (2.0**bits - 1)


def training_batches(
    images: np.ndarray, config: ExperimentConfig, start: int = 0
) -> tf.data.Dataset:
    """An endless dataset of global batches (B, H, W, C), in a new random order every epoch.

    Args:
      images: (N, h, w, C) uint8, as `load_images` gives them.
      config: batch size, seed, flips and what `preprocess` needs.
      start: number of the first batch; a resumed run passes its step.
    """
    count, batch_size = len(images), config.train.global_batch_size
    rows = _reader(images)

    def batch(number: tf.Tensor) -> tf.Tensor:
        position = number * batch_size + tf.range(batch_size, dtype=tf.int64)
        chosen = rows(_shuffled(position, count, config.train.seed))
        seed = tf.stack([tf.constant(config.train.seed, tf.int64), number])
        if config.data.flip:
            chosen = _randomly_flipped(chosen, seed)
        return preprocess(chosen, config.model, seed)

    numbers = tf.data.Dataset.counter(start)
    return numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _reader(images: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """From image numbers (B,) to these images, in memory or in a mapped file."""
    if isinstance(images, np.memmap):

        def rows(numbers: tf.Tensor) -> tf.Tensor:
            chosen = tf.numpy_function(lambda wanted: images[wanted], [numbers], tf.uint8)
            return tf.ensure_shape(chosen, [*numbers.shape, *images.shape[1:]])

        return rows
    stored = tf.constant(images)
    return lambda numbers: tf.gather(stored, numbers)


def _shuffled(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Image indices (B,) at positions (B,) of the endless sequence of shuffled epochs."""
    # The public index_shuffle takes one seed for all; across the end of an epoch there are two.
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


def _randomly_flipped(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    coins = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed + 1)
    return tf.where(coins < 0.5, images, images[:, :, ::-1])


def evaluation_batches(
    images: np.ndarray, model: ModelConfig, batch_size: int, seed: int = 0
) -> tf.data.Dataset:
    """All images once, in order, in batches (B, H, W, C); the last one may be smaller.

    Args:
      images: (N, h, w, C) uint8.
      model: what `preprocess` needs.
      batch_size: B.
      seed: of the binarisation.
    """
    rows = _reader(images)
    dataset = tf.data.Dataset.range(len(images)).batch(batch_size).enumerate()

    def prepare(number: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return preprocess(rows(numbers), model, tf.stack([tf.constant(seed, tf.int64), number]))

    return dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
