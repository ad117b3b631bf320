"""Writes training steps in XLA's own form, for machines with an accelerator and JAX alone.

`python -m benchmarks.compiled_step --preset=mnist --output=steps/mnist`

What is written is whole steps: the images' preparation, the noise, the gradients, the guard and the
optimiser. `run_compiled_step` times them, `train_compiled_step` trains with them, and
`read_compiled_state` turns what it has trained into a workdir. All of it shows how fast XLA's code
for this step is and how much memory it takes. It says nothing about TensorFlow's own kernels or the
input pipeline. XLA draws other noise than TensorFlow, so a run of it is not bit for bit that of
`nvae-train`; it is another run of the same recipe.
"""

from __future__ import annotations

import contextlib
import os

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.step_modules import write
from nvae_tf import presets
from nvae_tf.command_line import config_changes, define_config_flag, usage_errors, use_devices
from nvae_tf.data import load_images, training_batches, training_input
from nvae_tf.files import new_directory
from nvae_tf.model.stacks import read_values
from nvae_tf.runs.load import TrainedModel
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

_PRESET = flags.DEFINE_string("preset", "mnist", "Configuration of the run.")
_IMAGES = flags.DEFINE_bool(
    "images", False, "Whether to write the data set, and to start the weights from its first batch."
)
_INIT_FROM = flags.DEFINE_string("init_from", None, "Trained model whose weights to start with.")
_STEPS = flags.DEFINE_integer("steps_per_call", 1, "Steps of one call.", lower_bound=1)
_DRAWS = flags.DEFINE_integer(
    "draws",
    0,
    "Draws of a pass of the importance-weighted bound, for 20 images; 0: leave it out.",
    lower_bound=0,
)
_VALUES = flags.DEFINE_bool("values", True, "Whether to write the state's values.")
_OUTPUT = flags.DEFINE_string("output", None, "New directory of the files.", required=True)

_UNKNOWN_IMAGES = 50_000  # images of an epoch, where only times are of interest


def main(argv: list[str]) -> None:
    with contextlib.ExitStack() as scope:
        with usage_errors(argv):
            if _IMAGES.value and not _VALUES.value:
                raise ValueError("--images needs the state's values, to start training with.")
            directory = scope.enter_context(new_directory(_OUTPUT.value))
            config = config_changes(presets.get(_PRESET.value)).override(
                {"train.jit_compile": "step"}
            )
            if 0 < config.train.frozen_batch_norm_portion < 1:
                raise ValueError(
                    "A compiled step stays the same: train.frozen_batch_norm_portion must be 0, or "
                    "1 in a run of its own that starts with --init_from."
                )
            init_from = TrainedModel.of(_INIT_FROM.value) if _INIT_FROM.value else None
            if init_from:
                init_from.check_same_model(config)
            use_devices(training=True)
            splits = {"train": config.data.train_split, "test": config.data.test_split}
            images = {}
            if _IMAGES.value:
                images = {
                    name: load_images(config.data, config.model, split)
                    for name, split in splits.items()
                }
        count = len(images["train"]) if images else _UNKNOWN_IMAGES
        trainer = Trainer(config, make_strategy("one_device"), count)
        if init_from:
            trainer.state.start_from(read_values(init_from.load().variables))
        elif images:
            stored = next(iter(training_batches(images["train"], config)))
            trainer.initialize_from_batch(training_input(stored, config, tf.constant(0)))
        write(trainer, directory, _STEPS.value, _DRAWS.value, _VALUES.value)
        if images:
            np.savez_compressed(os.path.join(directory, "images.npz"), **images)


if __name__ == "__main__":
    define_config_flag("Changes to the preset's fields, such as --config.train.steps=1000.")
    app.run(main)
