"""Conversion of requests into the model's input, inside the graph and row by row."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from export.limits import MAX_PIXELS
from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import crop_and_resize
from nvae_tf.data.pipeline import preprocess

_CROP_AND_RESIZE = DataConfig(center_crop=True, resize=True)
_DEFAULT_TEMPERATURE = 1.0
_COLOURS = 3  # channels of a JPEG, at most
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = (16, 8)  # offset and length of width and height in a PNG's header, in bytes
_AT_ONCE = 8  # pictures that are decoded at a time

# Errors that a row is answered with.
_UNREADABLE = "not a whole PNG or JPEG file in gray or RGB"
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
_NO_EXAMPLE = "not a tf.Example with at most one seed (int64) and one temperature (float)"


def read_pictures(
    contents: tf.Tensor, config: ModelConfig, seeds: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes pictures of any size into the model's input.

    Gray and colours are converted to what the model needs. An alpha channel is dropped, or added
    as opaque. The largest centred part with the model's aspect ratio is resized by area, and then
    preprocessed like the training images; see `preprocess`.

    Args:
      contents: PNG or JPEG files, string (B,).
      config: The model's configuration, with 1, 3 or 4 channels.
      seeds: Seeds of the binarisation, int64 (B, 2).

    Returns:
      (B, H, W, C) float32 in [0, 1], including the padding; and what is wrong with each picture,
      string (B,), empty where nothing is. A picture with an error is black. An exception would
      fail all requests that the server has merged into the same batch.
    """

    def one_row(row: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        content, seed = row
        decoded, error = _decode_or_blank(content, config.image_shape[-1])
        pixels = crop_and_resize(decoded, _CROP_AND_RESIZE, config)
        return preprocess(pixels[None], config, seed)[0], error

    specs = (tf.TensorSpec(config.image_shape, tf.float32), tf.TensorSpec([], tf.string))
    return tf.map_fn(
        one_row, (contents, seeds), fn_output_signature=specs, parallel_iterations=_AT_ONCE
    )


def _decode_or_blank(content: tf.Tensor, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a file into (h, w, channels) uint8 and no error, or into one black pixel and one."""
    black = tf.zeros([1, 1, channels], tf.uint8)

    def decode(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cond(
            tf.reduce_prod(_size(content)) > MAX_PIXELS,
            lambda: (black, tf.constant(_TOO_LARGE)),
            lambda: (_decode(content, channels), tf.constant("")),
        )

    pixels, error = _first_that_works(content, decode, (black, _UNREADABLE))
    return tf.ensure_shape(pixels, [None, None, channels]), tf.ensure_shape(error, [])


def _size(content: tf.Tensor) -> tf.Tensor:
    """Returns height and width, int64 (2,), by the header of a PNG or JPEG file.

    The operations fail for any other file.
    """

    def of_jpeg() -> tf.Tensor:
        return tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64)

    def of_png() -> tf.Tensor:
        is_png = tf.equal(tf.strings.substr(content, 0, len(_PNG)), _PNG)
        with tf.control_dependencies([tf.debugging.Assert(is_png, [_UNREADABLE])]):
            numbers = tf.strings.substr(content, *_PNG_SIZE)
        return tf.cast(tf.io.decode_raw(numbers, tf.int32, little_endian=False), tf.int64)

    return tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png)


def _decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a PNG or JPEG file into an image (h, w, channels) uint8."""

    def of_jpeg() -> tf.Tensor:
        image = tf.io.decode_jpeg(content, min(channels, _COLOURS))
        if channels <= _COLOURS:
            return image
        opaque = tf.fill(tf.shape(image[..., :1]), tf.constant(255, tf.uint8))
        return tf.concat([image, opaque], axis=2)

    def of_png() -> tf.Tensor:
        return tf.io.decode_png(content, channels)

    return tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png)


def read_examples(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Parses serialised tf.Examples (B,) into seeds int64 (B,) and temperatures float32 (B,).

    Both features are optional and default to seed 0 and temperature 1. Other features are ignored.

    Returns:
      Seeds, temperatures, and what is wrong with each example, string (B,), empty where nothing is;
      as in `read_pictures`, an example with an error does not fail the others.
    """

    def parse(example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        features = tf.io.parse_single_example(
            example,
            {
                "seed": tf.io.FixedLenFeature([], tf.int64, 0),
                "temperature": tf.io.FixedLenFeature([], tf.float32, _DEFAULT_TEMPERATURE),
            },
        )
        return features["seed"], features["temperature"], tf.constant("")

    def one_row(example: tf.Tensor) -> tuple[tf.Tensor, ...]:
        wrong = (tf.constant(0, tf.int64), tf.constant(_DEFAULT_TEMPERATURE), _NO_EXAMPLE)
        row = _first_that_works(example, parse, wrong)
        return tuple(tf.ensure_shape(value, []) for value in row)

    specs = tuple(tf.TensorSpec([], dtype) for dtype in (tf.int64, tf.float32, tf.string))
    return tf.map_fn(one_row, examples, fn_output_signature=specs, parallel_iterations=_AT_ONCE)


def _first_that_works(
    content: tf.Tensor, function: Callable[..., tuple], otherwise: tuple
) -> tuple[tf.Tensor, ...]:
    """Returns `function(content)`, or `otherwise` if one of its operations fails.

    In a graph only a data set survives an operation that fails.
    """
    attempt = tf.data.Dataset.from_tensors(content).map(function).ignore_errors()
    instead = tf.data.Dataset.from_tensors(otherwise)
    return attempt.concatenate(instead).take(1).get_single_element()


def allowed_temperature(temperature: tf.Tensor) -> tf.Tensor:
    """Replaces invalid temperatures (B,): NaN becomes 1, and negative values become 0.

    An error would fail all requests that the server has merged into the same batch.
    """
    known = tf.where(tf.math.is_nan(temperature), _DEFAULT_TEMPERATURE, temperature)
    return tf.maximum(known, 0.0)
