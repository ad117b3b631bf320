"""Serving functions: every input and output has the batch first, and rows are independent.

Row i of an answer depends on row i of the request alone, so that a server may merge requests, and
fill them up with dummy rows. There is no state: the same row has the same answer every time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from export.portable_signatures import (
    bound_outputs,
    group_specs,
    latent_outputs,
    portable_signatures,
)
from export.request_tensors import (
    allowed_temperature,
    read_examples,
    read_pictures,
)
from nvae_tf.evaluation.novelty import draw_bounds
from nvae_tf.model.inference import AnyModel, InferenceModel
from nvae_tf.sampling import latents
from nvae_tf.sampling.images import PNG_CHANNELS
from nvae_tf.sampling.sampler import row_noise

Signature: TypeAlias = tf.types.experimental.PolymorphicFunction
Outputs: TypeAlias = dict[str, tf.Tensor]

_SEED = tf.TensorSpec([None], tf.int64, name="seed")
_TEMPERATURE = tf.TensorSpec([None], tf.float32, name="temperature")
_PICTURES = tf.TensorSpec([None], tf.string, name="image_bytes")
_KEEP_GROUPS = tf.TensorSpec([None], tf.int32, name="keep_groups")
_EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")

# Second halves of the rows' seeds.
_OF_NOISE, _OF_BINARISATION = 0, 1


def make_signatures(model: AnyModel) -> dict[str, Signature]:
    """All signatures by name, as functions of named tensors that return dictionaries.

    Their weights are those of the moment, prepared once and kept in variables of their own. Where
    no PNG can hold an image's channels, there is no `image_bytes`, and no signature asks for it.

    Args:
      model: The model to serve.

    | signature | inputs | outputs |
    |---|---|---|
    | `sample` | `seed`, `temperature` | `image` uint8 (B, h, w, C), `image_bytes` (B,), PNG |
    | `decode` | `z_00`, … (B, H_l, W_l, C_z) | the same |
    | `serving_default` | `examples`: tf.Examples with optional `seed`, `temperature` | + `error` |
    | `reconstruct` | `image_bytes`, PNG or JPEG | the same, `error` |
    | `vary` | `image_bytes`, `keep_groups`, `seed`, `temperature` | the same, `error` |
    | `encode` | `image_bytes` | `z_00`, …: posterior means; `kl` (B, L) nats; `error` |
    | `log_likelihood` | `image_bytes`, `seed` | `elbo`, `bits_per_dim` (B,); `kl`; `error` |
    | `novelty` | `image_bytes`, `seed` | `llr` (B, L): LLR^{>k} for k = 1, … L, nats; `error` |

    `export.portable_signatures` lists three more.

    `error` (B,) is empty, or says what is wrong with the row's picture or example. The images of
    such a row are black, and its numbers are NaN.

    Signatures without a seed binarise their pictures with seed 0, where the model is of binary
    images. With flows, the `kl` of `encode` is log q - log p at the means.
    """
    prepared = InferenceModel.of(model).in_variables()
    signature = functools.partial(_signature, prepared)

    def draw(seed: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        rows = allowed_temperature(temperature)[:, None]
        logits = prepared.generate(tf.shape(seed)[0], rows, _noise(prepared, seed))
        return prepared.likelihood(logits).mean()

    @signature(_SEED, _TEMPERATURE)
    def sample(seed: tf.Tensor, temperature: tf.Tensor) -> Outputs:
        return _image_outputs(prepared, draw(seed, temperature))

    @signature(_EXAMPLES)
    def serving_default(examples: tf.Tensor) -> Outputs:
        seed, temperature, error = read_examples(examples)
        images = _or_blank(draw(seed, temperature), error)
        return _image_outputs(prepared, images) | {"error": error}

    @signature(*group_specs(model.config, "z"))
    def decode(*groups: tf.Tensor) -> Outputs:
        return _image_outputs(prepared, latents.decode(prepared, groups))

    functions = {"sample": sample, "serving_default": serving_default, "decode": decode}
    if model.config.image_shape[-1] in PNG_CHANNELS:
        functions |= _picture_signatures(prepared, signature)
    return functions | portable_signatures(prepared, signature)


def _picture_signatures(model: InferenceModel, signature: Callable) -> dict[str, Signature]:
    """The signatures that take pictures."""
    config = model.config

    def read(contents: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read_pictures(contents, config, _row_seeds(seed, _OF_BINARISATION))

    def without_seed(contents: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(contents, tf.int64)

    @signature(_PICTURES)
    def reconstruct(image_bytes: tf.Tensor) -> Outputs:
        images, error = read(image_bytes, without_seed(image_bytes))
        reconstructed = _or_blank(latents.reconstruct(model, images), error)
        return _image_outputs(model, reconstructed) | {"error": error}

    @signature(_PICTURES)
    def encode(image_bytes: tf.Tensor) -> Outputs:
        images, error = read(image_bytes, without_seed(image_bytes))
        zeros = [tf.zeros([tf.shape(images)[0], *shape]) for shape in config.latent_shapes]
        output = model.infer(images, zeros)
        numbers = latent_outputs(output.latents) | {"kl": output.kl_per_group}
        return {n: _or_blank(value, error) for n, value in numbers.items()} | {"error": error}

    @signature(_PICTURES, _KEEP_GROUPS, _SEED, _TEMPERATURE)
    def vary(
        image_bytes: tf.Tensor, keep_groups: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor
    ) -> Outputs:
        images, error = read(image_bytes, seed)
        rows = allowed_temperature(temperature)[:, None]
        varied = latents.vary(model, images, keep_groups, _noise(model, seed), rows)
        return _image_outputs(model, _or_blank(varied, error)) | {"error": error}

    @signature(_PICTURES, _SEED)
    def log_likelihood(image_bytes: tf.Tensor, seed: tf.Tensor) -> Outputs:
        images, error = read(image_bytes, seed)
        output = model.infer(images, _noise(model, seed))
        numbers = bound_outputs(model, images, output)
        return {n: _or_blank(value, error) for n, value in numbers.items()} | {"error": error}

    @signature(_PICTURES, _SEED)
    def novelty(image_bytes: tf.Tensor, seed: tf.Tensor) -> Outputs:
        images, error = read(image_bytes, seed)
        drawn = draw_bounds(model, images, model.bottom_up(images), _noise(model, seed))
        return {"llr": _or_blank(drawn.llr, error), "error": error}

    return {
        "reconstruct": reconstruct,
        "encode": encode,
        "vary": vary,
        "log_likelihood": log_likelihood,
        "novelty": novelty,
    }


def _signature(
    model: InferenceModel, *specs: tf.TensorSpec
) -> Callable[[Callable[..., Outputs]], Signature]:
    """Makes a function with these inputs, all of which answers with the same unpacked weights."""

    def decorate(function: Callable[..., Outputs]) -> Signature:
        @functools.wraps(function)
        def in_scope(*args: tf.Tensor) -> Outputs:
            with model.scope():
                return function(*args)

        return tf.function(in_scope, input_signature=specs, autograph=False)

    return decorate


def _row_seeds(seed: tf.Tensor, purpose: int) -> tf.Tensor:
    """(B, 2), from the requests' seeds (B,)."""
    return tf.stack([seed, tf.fill(tf.shape(seed), tf.constant(purpose, tf.int64))], axis=1)


def _noise(model: InferenceModel, seed: tf.Tensor) -> list[tf.Tensor]:
    return row_noise(model, _row_seeds(seed, _OF_NOISE))


def _or_blank(values: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
    """Replaces the rows of (B, …) whose picture has an error by values that are not numbers."""
    fault = tf.reshape(tf.not_equal(error, ""), [-1, *[1] * (len(values.shape) - 1)])
    return tf.where(fault, tf.constant(math.nan, values.dtype), values)


def _image_outputs(model: InferenceModel, images: tf.Tensor) -> Outputs:
    """`image` and, where a PNG can hold it, `image_bytes` of (B, H, W, C) in [0, 1].

    A value that is not a number, as of a temperature at which the network overflows or of a picture
    with an error, is black.
    """
    cropped = model.crop_padding(images)
    values = tf.where(tf.math.is_nan(cropped), 0.0, tf.clip_by_value(cropped, 0.0, 1.0))
    pixels = tf.cast(tf.round(255 * values), tf.uint8)
    outputs = {"image": pixels}
    if pixels.shape[-1] in PNG_CHANNELS:
        outputs["image_bytes"] = tf.map_fn(
            tf.io.encode_png, pixels, fn_output_signature=tf.TensorSpec([], tf.string)
        )
    return outputs
