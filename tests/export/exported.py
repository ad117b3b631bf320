"""One small model as a SavedModel, written once for all tests of it."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from export.manifest import Manifest
from export.saved_model import write_saved_model
from nvae_tf import NVAE, ExperimentConfig
from tests.conftest import tiny_model_config

SIGNATURES = (
    "sample",
    "serving_default",
    "decode",
    "reconstruct",
    "encode",
    "vary",
    "log_likelihood",
    "novelty",
)


@functools.cache
def small_model() -> NVAE:
    """Flows, padding and colours; large enough weights for pictures that differ."""
    keras.utils.set_random_seed(0)
    model = NVAE(
        tiny_model_config(
            image_shape=(16, 16, 3),
            padding=2,
            likelihood="logistic_mixture",
            num_x_bits=8,
            num_latent_scales=1,
            num_preprocess_blocks=2,
            num_postprocess_blocks=2,
            num_nf=1,
            arch_instance="res_bnswish",
        )
    )
    for layer in model.convolutions():
        larger = 3 if layer is model.image_head else 0.5
        layer.log_scale.assign(layer.log_scale + larger)
    return model


@functools.cache
def small_version() -> str:
    """The directory of that model's SavedModel, which is removed at exit."""
    directory = tempfile.mkdtemp(prefix="nvae-exported-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    config = ExperimentConfig(model=small_model().config)
    write_saved_model(small_model(), directory, Manifest.of(config, step=7))
    return directory


@functools.cache
def small_signatures() -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The signatures of that SavedModel, as a process that knows TensorFlow alone has them."""
    loaded = tf.saved_model.load(small_version())
    signatures = dict(loaded.signatures)
    signatures["owner"] = loaded  # else its variables go
    return signatures


def pictures(count: int, height: int = 12, width: int = 12, seed: int = 0) -> np.ndarray:
    """Smooth coloured pictures (count, height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).uniform(0, 255, [count, 3, 3, 3])
    return np.uint8(tf.image.resize(coarse, [height, width]).numpy().round())


def as_png(images: np.ndarray) -> tf.Tensor:
    """String (B,)."""
    return tf.stack([tf.io.encode_png(image) for image in images])


def requests(rows: int) -> dict[str, dict[str, tf.Tensor]]:
    """Inputs of every signature, all rows different."""
    seed = tf.range(rows, dtype=tf.int64) + 5
    temperature = tf.linspace(0.5, 1.0, rows)
    contents = as_png(pictures(rows))
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "seed": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(s)])),
                    "temperature": tf.train.Feature(float_list=tf.train.FloatList(value=[t])),
                }
            )
        ).SerializeToString()
        for s, t in zip(seed.numpy(), temperature.numpy())
    ]
    latents = {
        f"z_{group:02}": tf.random.stateless_normal([rows, *shape], [group, 3])
        for group, shape in enumerate(small_model().config.latent_shapes)
    }
    return {
        "sample": {"seed": seed, "temperature": temperature},
        "serving_default": {"examples": tf.constant(examples)},
        "decode": latents,
        "reconstruct": {"image_bytes": contents},
        "encode": {"image_bytes": contents},
        "vary": {
            "image_bytes": contents,
            "keep_groups": tf.range(rows) % 3,
            "seed": seed,
            "temperature": temperature,
        },
        "log_likelihood": {"image_bytes": contents, "seed": seed},
        "novelty": {"image_bytes": contents, "seed": seed},
    }
