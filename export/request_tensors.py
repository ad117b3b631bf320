"""Conversion of requests into the model's input, inside the graph and row by row."""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import crop_and_resize
from nvae_tf.data.pipeline import preprocess

PICTURE_CHANNELS = (1, 3, 4)  # gray, RGB and RGBA, the channels that a PNG can have

_CROP_AND_RESIZE = DataConfig(center_crop=True, resize=True)
_DEFAULT_TEMPERATURE = 1.0


def read_pictures(contents: tf.Tensor, config: ModelConfig, seeds: tf.Tensor) -> tf.Tensor:
    """Decodes pictures of any size into the model's input.

    Gray and colours are converted to what the model needs. An alpha channel is dropped, or added
    as opaque. The largest centred part with the model's aspect ratio is resized by area, and then
    preprocessed like the training images; see `preprocess`.

    Args:
      contents: PNG or JPEG files, string (B,).
      config: The model's configuration, with 1, 3 or 4 channels.
      seeds: Seeds of the binarisation, int64 (B, 2).

    Returns:
      (B, H, W, C) float32 in [0, 1], including the padding.
    """

    def one_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        content, seed = row
        decoded = _decode(content, config.image_shape[-1])
        pixels = crop_and_resize(decoded, _CROP_AND_RESIZE, config)
        return preprocess(pixels[None], config, seed)[0]

    shape = tf.TensorSpec(config.image_shape, tf.float32)
    return tf.map_fn(one_row, (contents, seeds), fn_output_signature=shape)


def _decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a PNG or JPEG file into an image (h, w, channels) uint8."""
    if channels < 4:
        return tf.io.decode_image(content, channels, expand_animations=False)

    def with_opaque_alpha() -> tf.Tensor:
        colours = tf.io.decode_jpeg(content, 3)
        opaque = tf.fill(tf.shape(colours[..., :1]), tf.constant(255, tf.uint8))
        return tf.concat([colours, opaque], axis=2)

    def with_alpha() -> tf.Tensor:
        return tf.io.decode_png(content, 4)

    return tf.cond(tf.io.is_jpeg(content), with_opaque_alpha, with_alpha)


def read_examples(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Parses serialised tf.Examples (B,) into seeds int64 (B,) and temperatures float32 (B,).

    Both features are optional and default to seed 0 and temperature 1. Other features are ignored.
    """
    features = tf.io.parse_example(
        examples,
        {
            "seed": tf.io.FixedLenFeature([], tf.int64, 0),
            "temperature": tf.io.FixedLenFeature([], tf.float32, _DEFAULT_TEMPERATURE),
        },
    )
    return features["seed"], features["temperature"]


def allowed_temperature(temperature: tf.Tensor) -> tf.Tensor:
    """Replaces invalid temperatures (B,): NaN becomes 1, and negative values become 0.

    An error would fail all requests that the server has merged into the same batch.
    """
    known = tf.where(tf.math.is_nan(temperature), _DEFAULT_TEMPERATURE, temperature)
    return tf.maximum(known, 0.0)
