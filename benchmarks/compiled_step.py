"""Writes a training step in XLA's own form, for `run_compiled_step.py`.

`python -m benchmarks.compiled_step --preset=mnist --replica_batch=200 --output=steps/mnist`

What is written is `forward_backward` as `train.jit_compile=step` compiles it: the model, the loss,
the regularisation and all gradients of one replica. Noise and the optimiser's update, which stay
outside of it, are not part of the file. So a machine without TensorFlow, with an accelerator and
JAX, can show how fast XLA's code for this step is and how much memory it takes; it says nothing
about TensorFlow's own kernels or the input pipeline.
"""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import tensorflow as tf
from absl import app, flags

from nvae_tf import presets
from nvae_tf.command_line import use_devices
from nvae_tf.config import PRECISIONS
from nvae_tf.files import write_atomically
from nvae_tf.model.compilation import compiled
from nvae_tf.replicas import Replicas
from trainers.run.step import draw_noise, forward_backward
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

_PRESET = flags.DEFINE_string("preset", "mnist", "Configuration of the run.")
_BATCH = flags.DEFINE_integer("replica_batch", 8, "Images of the step.", lower_bound=1)
_PRECISION = flags.DEFINE_enum("precision", "float32", PRECISIONS, "train.precision.")
_RECOMPUTE = flags.DEFINE_bool("recompute", False, "train.recompute.")
_PLATFORM = flags.DEFINE_enum("platform", "GPU", ["CPU", "GPU"], "What the step is lowered for.")
_VALUES = flags.DEFINE_bool(
    "values", True, "Whether to write the arguments; without them, others of their shapes are used."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the files.", required=True)


def main(argv: list[str]) -> None:
    del argv
    use_devices(training=True)
    config = presets.get(_PRESET.value).override(
        {
            "train.global_batch_size": _BATCH.value,
            "train.precision": _PRECISION.value,
            "train.recompute": _RECOMPUTE.value,
            "train.jit_compile": "step",
        }
    )
    trainer = Trainer(config, make_strategy("one_device"), 10 * _BATCH.value)
    definition, state = trainer.definition, trainer.state.read()
    images = np.random.default_rng(0).random((_BATCH.value, *config.model.image_shape))
    part = tf.constant(0)
    arguments = (
        state,
        tf.constant(images, tf.float32),
        draw_noise(definition, Replicas(), state.step, part),
        part,
        tf.constant(False),
    )
    step = compiled(functools.partial(forward_backward, definition, Replicas()))
    lowered = step.experimental_get_compiler_ir(*arguments)
    module = lowered(stage="stablehlo_serialized", platform_name=_PLATFORM.value)
    expected = step(*arguments)[0].means.loss if _PLATFORM.value == "CPU" else None
    os.makedirs(_OUTPUT.value, exist_ok=True)
    write_atomically(os.path.join(_OUTPUT.value, "step.mlirbc"), module)
    flat = [tensor.numpy() for tensor in tf.nest.flatten(arguments)]
    if _VALUES.value:
        np.savez(os.path.join(_OUTPUT.value, "arguments.npz"), *flat)
    facts = {
        "preset": _PRESET.value,
        "replica_batch": _BATCH.value,
        "precision": _PRECISION.value,
        "recompute": _RECOMPUTE.value,
        "platform": _PLATFORM.value,
        "parameters": trainer.model.num_trainable_parameters,
        "loss_output": len(state.weights) + len(state.statistics),  # its place among the results
        "arguments": [[list(array.shape), array.dtype.name] for array in flat],
        "loss": None if expected is None else float(expected),
    }
    write_atomically(os.path.join(_OUTPUT.value, "facts.json"), json.dumps(facts, indent=2) + "\n")
    print(f"{_OUTPUT.value}: {len(module) / 1e6:.1f} MB of StableHLO, {len(flat)} arguments")


if __name__ == "__main__":
    app.run(main)
