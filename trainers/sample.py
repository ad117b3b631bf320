"""Draws images from a trained model: `python -m trainers.sample --workdir=DIR`."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from nvae_tf.files import write_atomically
from nvae_tf.model import NVAE
from nvae_tf.pictures import encode_png, sheet, to_uint8
from nvae_tf.workdir import load_model
from trainers.programs import define_checkpoint_flag, usage_errors, use_devices

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_CHECKPOINT = define_checkpoint_flag()
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    1.0,
    "Multiplies the prior's scales; lower is more typical and less diverse.",
    lower_bound=0.0,
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many images.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same images.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "samples.png", "The sheet, a PNG file.")

_BATCH = 64


def draw_samples(model: NVAE, num_samples: int, temperature: float, seed: int) -> np.ndarray:
    """Mean images (N, h, w, C) uint8, without padding, of latents drawn from the prior."""

    @tf.function(autograph=False)
    def draw(seed: tf.Tensor) -> tf.Tensor:
        noise = model.draw_noise(_BATCH, seed)
        logits = model.generate(_BATCH, temperature, noise)
        return model.crop_padding(model.likelihood(logits).mean())

    images = [
        to_uint8(draw(tf.constant([seed, first], tf.int64)))
        for first in tqdm(range(0, num_samples, _BATCH), unit="batch", disable=None)
    ]
    return np.concatenate(images)[:num_samples]


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        directory = os.path.dirname(os.path.abspath(_OUTPUT.value))
        if not os.path.isdir(directory):
            raise FileNotFoundError(f"--output: there is no directory {directory!r}.")
        use_devices()
        model = load_model(_WORKDIR.value, _CHECKPOINT.value)
        images = draw_samples(model, _NUM_SAMPLES.value, _TEMPERATURE.value, _SEED.value)
        write_atomically(_OUTPUT.value, encode_png(sheet(images)))
    print(
        f"{len(images)} samples at temperature {_TEMPERATURE.value}, seed {_SEED.value}: "
        f"{_OUTPUT.value}"
    )


def run() -> None:
    """Entry point of `nvae-sample`."""
    app.run(main)


if __name__ == "__main__":
    run()
