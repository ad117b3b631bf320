"""What requests hold, as tensors for the model: inside the graph, and every row for itself."""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import crop_and_resize
from nvae_tf.data.pipeline import preprocess

PICTURE_CHANNELS = (1, 3, 4)  # gray, RGB and RGBA: what a PNG can hold

_FIT = DataConfig(center_crop=True, resize=True)
_DEFAULT_TEMPERATURE = 1.0


def read_pictures(contents: tf.Tensor, config: ModelConfig, seeds: tf.Tensor) -> tf.Tensor:
    """The model's input (B, H, W, C) in [0, 1], padding included, from files of any size.

    Colours become gray, or gray becomes colours, as the model needs it; transparency is dropped, or
    added as opaque. The largest centred part of the model's proportions is resized by area. Then
    comes what training images get: `preprocess`, with the row's seed for the binarisation.

    Args:
      contents: string (B,), PNG or JPEG.
      config: of the model, with 1, 3 or 4 channels.
      seeds: int64 (B, 2).
    """

    def one_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        content, seed = row
        pixels = crop_and_resize(_decode(content, config.image_shape[-1]), _FIT, config)
        return preprocess(pixels[None], config, seed)[0]

    shape = tf.TensorSpec(config.image_shape, tf.float32)
    return tf.map_fn(one_row, (contents, seeds), fn_output_signature=shape)


def _decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """A picture (h, w, channels) uint8."""
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
    """Seeds int64 (B,) and temperatures float32 (B,) of serialised tf.Examples (B,).

    Both features are optional: seed 0 and temperature 1. Other features are not looked at.
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
    """Temperatures (B,) that mean something: NaN counts as 1, a negative one as 0.

    An error would fail all the requests that a server has merged with the wrong one.
    """
    known = tf.where(tf.math.is_nan(temperature), _DEFAULT_TEMPERATURE, temperature)
    return tf.maximum(known, 0.0)
