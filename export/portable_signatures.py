"""Functions of the model that other runtimes than TensorFlow can compute: floats in, floats out.

They have no strings, no random numbers, no loops and no state, and all batches are open. The noise
is an input; `export.seed_noise` gives that of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from export.portable_names import PORTABLE_NAMES
from nvae_tf.config import ModelConfig
from nvae_tf.data.pipeline import pad, quantize
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.nvae import InferenceOutput
from nvae_tf.sampling import latents
from nvae_tf.training.objective import bits_per_dimension

if TYPE_CHECKING:
    from export.signatures import Outputs, Signature


def portable_signatures(model: InferenceModel, signature: Callable) -> dict[str, Signature]:
    """The portable signatures by name.

    Args:
      model: The model, prepared once.
      signature: Makes a signature of a function, from the specifications of its inputs.

    | signature | inputs | outputs |
    |---|---|---|
    | `decode_tensors` | `z_00`, … (B, H_l, W_l, C_z) | `image` (B, h, w, C) in [0, 1] |
    | `sample_tensors` | `noise_00`, … (B, H_l, W_l, C_z), `temperature` (B,) | the same |
    | `infer_tensors` | `image` (B, h, w, C) in [0, 1], `noise_00`, … | see below |

    All are float32. `infer_tensors` answers with `elbo` and `bits_per_dim` (B,), `kl` (B, L) in
    nats, and the drawn `z_00`, …. Its images are quantised as in training; those of a model of
    binary images must be binary.
    """
    config = model.config
    noise_specs = group_specs(config, "noise")
    image = tf.TensorSpec([None, *config.content_shape], tf.float32, name="image")
    temperature = tf.TensorSpec([None], tf.float32, name="temperature")

    @signature(*group_specs(config, "z"))
    def decode_tensors(*groups: tf.Tensor) -> Outputs:
        return _image(model, latents.decode(model, groups))

    @signature(*noise_specs, temperature)
    def sample_tensors(*inputs: tf.Tensor) -> Outputs:
        *noise, temperature = inputs
        logits = model.generate(tf.shape(temperature)[0], temperature[:, None], noise)
        return _image(model, model.likelihood(logits).mean())

    @signature(image, *noise_specs)
    def infer_tensors(image: tf.Tensor, *noise: tf.Tensor) -> Outputs:
        images = _model_input(image, config)
        output = model.infer(images, noise)
        return bound_outputs(model, images, output) | latent_outputs(output.latents)

    return dict(zip(PORTABLE_NAMES, (decode_tensors, sample_tensors, infer_tensors)))


def group_specs(config: ModelConfig, word: str) -> list[tf.TensorSpec]:
    """Returns the inputs `word_00`, … (B, H_l, W_l, C_z), one for each latent group, top-down."""
    return [
        tf.TensorSpec([None, *shape], tf.float32, name=f"{word}_{group:02}")
        for group, shape in enumerate(config.latent_shapes)
    ]


def latent_outputs(groups: Sequence[tf.Tensor]) -> Outputs:
    """Returns latent variables, top-down, as the outputs `z_00`, …."""
    return {f"z_{group:02}": latent for group, latent in enumerate(groups)}


def bound_outputs(model: InferenceModel, images: tf.Tensor, output: InferenceOutput) -> Outputs:
    """Returns `elbo` and `bits_per_dim` (B,) and `kl` (B, L) of images that were inferred."""
    log_prob = model.likelihood(output.logits).log_prob(images)
    elbo = log_prob - tf.reduce_sum(output.kl_per_group, axis=1)
    bits = bits_per_dimension(-elbo, model.config)
    return {"elbo": elbo, "bits_per_dim": bits, "kl": output.kl_per_group}


def _image(model: InferenceModel, images: tf.Tensor) -> Outputs:
    return {"image": tf.clip_by_value(model.crop_padding(images), 0.0, 1.0)}


def _model_input(images: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Quantises and pads images (B, h, w, C) in [0, 1], as `preprocess` does with stored ones."""
    if config.likelihood != "bernoulli":
        images = quantize(tf.round(255 * images), config.num_x_bits)
    return pad(images, config)
