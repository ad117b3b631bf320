"""Cropping and resizing of stored images to the size that the model expects."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig


def size_problem(data: DataConfig, model: ModelConfig, height: int, width: int) -> str | None:
    """Explains why images of this size, in pixels, do not fit the model.

    Returns:
      The problem and its remedies, or None if `crop_and_resize` can make them fit.
    """
    if data.crop:
        top, left, crop_height, crop_width = data.crop
        if top + crop_height > height or left + crop_width > width:
            return f"{height}x{width} pixels, and data.crop {data.crop} reaches beyond them."
        height, width = crop_height, crop_width
    wanted_height, wanted_width, _ = model.content_shape
    if data.resize or (height, width) == (wanted_height, wanted_width):
        return None
    if data.center_crop and wanted_height <= height and wanted_width <= width:
        return None
    return (
        f"{height}x{width} pixels, but the model's image_shape {model.image_shape} with padding "
        f"{model.padding} expects {wanted_height}x{wanted_width}. Change it, or set data.crop, "
        "data.center_crop or data.resize."
    )


def check_shape(
    origin: str, shape: Sequence[int | None], data: DataConfig, model: ModelConfig
) -> None:
    """Checks that the images of a data set fit the model.

    Args:
      origin: What the images are of, in words that the user knows.
      shape: (h, w, C); None where the images differ, whose sizes are to be checked one by one.
      data: How they are cropped and resized.
      model: The model for which they are read.

    Raises:
      ValueError: Channels or size do not fit.
    """
    *size, channels = shape
    if channels != model.image_shape[-1]:
        raise ValueError(
            f"The images of {origin} have {channels} channels, but the model's image_shape "
            f"{model.image_shape} expects {model.image_shape[-1]}."
        )
    height, width = size
    problem: str | None = None
    if height is not None and width is not None:
        problem = size_problem(data, model, height, width)
    elif not (data.resize or data.crop or data.center_crop):  # else each image is looked at
        problem = "They have different sizes: set data.resize, best with data.center_crop."
    if problem:
        raise ValueError(f"The images of {origin}: {problem}")


def crop_and_resize(image: tf.Tensor, data: DataConfig, model: ModelConfig) -> tf.Tensor:
    """Crops and resizes one image (h, w, C) uint8 for which `size_problem` returns None.

    If the image is resized afterwards, `data.center_crop` keeps the largest part that has the
    model's aspect ratio, otherwise a part of exactly the model's size.

    Returns:
      (H, W, C) uint8, of the model's `content_shape`.
    """
    fitted = crop_and_average(image, data, model)
    return tf.cast(tf.round(fitted), tf.uint8) if data.resize else fitted


def crop_and_average(image: tf.Tensor, data: DataConfig, model: ModelConfig) -> tf.Tensor:
    """Does what `crop_and_resize` does, but leaves the means of resized pixels as float32."""
    height, width, channels = model.content_shape
    if data.crop:
        image = tf.image.crop_to_bounding_box(image, *data.crop)
    if data.center_crop:
        image = _center(image, height, width, data.resize)
    if data.resize:
        image = tf.image.resize(image, [height, width], method="area")
    return tf.ensure_shape(image, [height, width, channels])


def _center(image: tf.Tensor, height: int, width: int, proportions_only: bool) -> tf.Tensor:
    shape = tf.shape(image)
    size = tf.constant([height, width])
    if proportions_only:
        scale = tf.reduce_min(shape[:2] / size)
        size = tf.cast(tf.round(scale * tf.cast(size, tf.float64)), tf.int32)
        size = tf.clip_by_value(size, 1, shape[:2])
    top, left = tf.unstack((shape[:2] - size) // 2)
    return image[top : top + size[0], left : left + size[1]]
