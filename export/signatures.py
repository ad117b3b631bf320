"""Serving functions: every input and output has the batch first, and rows are independent.

Row i of an answer depends on row i of the request alone, so that a server may merge requests.
"""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.model import NVAE
from nvae_tf.sampling import row_noise

_PNG_CHANNELS = (1, 3, 4)


def make_sample(model: NVAE) -> tf.types.experimental.PolymorphicFunction:
    """The `sample` signature: one image per seed.

    Inputs: `seed` int64 [B], `temperature` float32 [B]. Outputs: `image` uint8 [B, H, W, C] without
    padding, and `image_bytes` string [B], PNG, for images of 1, 3 or 4 channels.
    """

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="seed"),
            tf.TensorSpec([None], tf.float32, name="temperature"),
        ],
        autograph=False,
    )
    def sample(seed: tf.Tensor, temperature: tf.Tensor) -> dict[str, tf.Tensor]:
        noise = row_noise(model, tf.stack([seed, tf.zeros_like(seed)], axis=1))
        logits = model.generate(tf.shape(seed)[0], temperature[:, None], noise)
        return image_outputs(model, model.likelihood(logits).mean())

    return sample


def image_outputs(model: NVAE, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """`image` and, where a PNG can hold it, `image_bytes` of (B, H, W, C) in [0, 1]."""
    cropped = model.crop_padding(images)
    pixels = tf.cast(tf.round(255 * tf.clip_by_value(cropped, 0.0, 1.0)), tf.uint8)
    outputs = {"image": pixels}
    if pixels.shape[-1] in _PNG_CHANNELS:
        outputs["image_bytes"] = tf.map_fn(
            tf.io.encode_png, pixels, fn_output_signature=tf.TensorSpec([], tf.string)
        )
    return outputs
