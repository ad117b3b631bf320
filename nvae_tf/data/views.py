"""Views of images: slightly turned, scaled and moved, with the same meaning.

#### References

Sinha and Dieng, *Consistency Regularization for Variational Auto-Encoders*, NeurIPS 2021, whose
transformations these are; their extents are our choice.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from nvae_tf.noise import uniform_rows

_LARGEST_ANGLE = math.radians(15)
_LARGEST_SCALING = 0.1  # of the size
_LARGEST_SHIFT = 1 / 14  # of the height and width


def random_views(images: tf.Tensor, seed: tf.Tensor, first: int | tf.Tensor = 0) -> tf.Tensor:
    """Turns, scales and moves each image at random, around its centre.

    An image is turned by up to 15 degrees, scaled by up to 10 %, and moved by up to a 14th of its
    height and width. Pixels are interpolated bilinearly; what lies outside of the image is zero.

    Args:
      images: (B, h, w, C) uint8.
      seed: Two integers.
      first: The number of the first image among those that the seed is for.

    Returns:
      (B, h, w, C) uint8.
    """
    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    # Between -1 and 1: angle, scaling, shift downwards and to the right.
    random = 2 * uniform_rows(count, [4, 1, 1], seed, first) - 1
    angle, scaling, down, right = tf.unstack(random, axis=1)
    scale = 1 + _LARGEST_SCALING * scaling
    sine, cosine = tf.sin(_LARGEST_ANGLE * angle) / scale, tf.cos(_LARGEST_ANGLE * angle) / scale
    # Where each pixel of the view lies in the image, from the centre.
    y = tf.range(float(height))[None, :, None] - (height - 1) / 2 - _LARGEST_SHIFT * height * down
    x = tf.range(float(width))[None, None, :] - (width - 1) / 2 - _LARGEST_SHIFT * width * right
    rows = cosine * y - sine * x + (height - 1) / 2
    columns = sine * y + cosine * x + (width - 1) / 2
    numbers = tf.broadcast_to(tf.range(count)[:, None, None], tf.shape(rows))
    places = tf.stack([tf.cast(numbers, tf.float32), rows, columns])
    values = tf.cast(images, tf.float32)
    moved = [
        keras.ops.image.map_coordinates(values[..., channel], places, 1, "constant", 0.0)
        for channel in range(channels)
    ]
    return tf.cast(tf.clip_by_value(tf.round(tf.stack(moved, axis=-1)), 0, 255), tf.uint8)
