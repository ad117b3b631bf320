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

import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags

from nvae_tf import presets
from nvae_tf.command_line import config_changes, define_config_flag, usage_errors, use_devices
from nvae_tf.data import load_images, preprocess, training_batches, training_input
from nvae_tf.files import write_atomically
from nvae_tf.model.compilation import compiled
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import read_values
from nvae_tf.replicas import Replicas
from nvae_tf.runs.load import TrainedModel
from trainers.run.state import TrainState
from trainers.run.step import forward_backward, prepare, update
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
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the files.", required=True)

_BOUND_IMAGES = 20
_UNKNOWN_IMAGES = 50_000  # images of an epoch, where only times are of interest
METRICS = ("loss", "negative_elbo", "kl", "gradient_norm", "skipped")


def steps(trainer: Trainer, count: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of images (count, B, h, w, C) uint8 that takes so many steps.

    It returns the means of `METRICS` over them; of `skipped`, the number so far.
    """
    run, state, alone = trainer.definition, trainer.state, Replicas()

    def step(stored: tf.Tensor) -> tf.Tensor:
        reading, part = state.read(), tf.constant(0)
        images, noise = prepare(run, alone, stored, reading.step, part)
        share, vectors = forward_backward(
            run, alone, reading, images, noise, part, tf.constant(False)
        )
        with trainer.strategy.scope():
            metrics = update(run, state, share)
        state.singular_vectors.assign(vectors)
        means, verdict = metrics.batch, metrics.verdict
        values = [means.loss, means.negative_elbo, means.kl, verdict.gradient_norm]
        return tf.stack([*values, tf.cast(verdict.skipped, tf.float32)])

    def call(stored: tf.Tensor) -> tf.Tensor:
        if count == 1:
            return step(stored[0])
        total = tf.zeros([len(METRICS)])
        _, total = tf.while_loop(
            lambda number, _: number < count,
            lambda number, total: (number + 1, total + step(stored[number]) / count),
            [tf.constant(0), total],
        )
        return tf.concat([total[:-1], tf.cast(state.guard.skipped, tf.float32)[None]], axis=0)

    return call


def bound(trainer: Trainer, draws: int) -> Callable[..., tf.Tensor]:
    """Returns a function of images (B, h, w, C) uint8, their numbers' first, and a pass's number.

    It returns (2, draws, B): -log p(x|z), and -log p(x|z) + log p(z) / q(z|x), in nats, with the
    weights that evaluations use.
    """
    model = InferenceModel(NVAE.structure(trainer.config.model, dtype="float32"))

    def call(stored: tf.Tensor, first: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        model.take(trainer.state.evaluation_values())
        images = preprocess(stored, model.config, tf.constant([0, 0], tf.int64), first)
        batch = images.shape[0]
        features = [_repeated(feature, draws) for feature in model.bottom_up(images)]
        noise = model.draw_noise(draws * batch, tf.stack([number + 1, first]))
        output = model.infer_from_features(features, noise)
        log_prob = model.likelihood(output.logits).log_prob(_repeated(images, draws))
        elbo = log_prob - tf.reduce_sum(output.kl_per_group, axis=1)
        weights = log_prob + output.log_p - output.log_q
        return tf.reshape(tf.stack([elbo, weights]), [2, draws, batch])

    return call


def _repeated(x: tf.Tensor, times: int) -> tf.Tensor:
    return tf.tile(x, [times] + [1] * (x.shape.rank - 1))


def write_module(
    directory: str,
    name: str,
    function: Callable[..., Any],
    specs: list[tf.TensorSpec],
    state: TrainState,
) -> dict[str, Any]:
    """Lowers a function that reads and changes variables, and writes it as NAME.mlirbc.

    Args:
      directory: Where it goes.
      name: The module's name.
      function: A function of tensors.
      specs: Their shapes and types.
      state: The object whose `variables` it uses.

    Returns:
      What its caller must know: `state`, which variable each further argument is, and `updates`,
      which output is the new value of which argument.
    """
    traced = compiled(function)
    captured = traced.get_concrete_function(*specs).captured_inputs
    lower = traced.experimental_get_compiler_ir(*(tf.zeros(s.shape, s.dtype) for s in specs))
    device = tf.config.list_logical_devices("CPU")[0].name
    module = lower(stage="stablehlo_serialized", device_name=device)
    write_atomically(os.path.join(directory, f"{name}.mlirbc"), module)
    header = lower(stage="hlo", device_name=device).partition("\n")[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)
    place = {id(variable.handle): i for i, variable in enumerate(state.variables)}
    print(f"{name}: {len(module) / 1e6:.1f} MB of StableHLO, {len(captured)} variables", flush=True)
    return {
        "state": [place[id(handle)] for handle in captured],
        "updates": [[int(output), int(argument)] for output, argument in aliases],
        "inputs": [[list(spec.shape), spec.dtype.name] for spec in specs],
    }


def _description(variable: tf.Variable) -> list[Any]:
    scalar = None if variable.shape.rank else float(variable.numpy())
    return [list(variable.shape), variable.dtype.name, variable.name.partition(":")[0], scalar]


def _place(variable: tf.Variable, state: TrainState) -> int:
    return next(i for i, other in enumerate(state.variables) if other is variable)


def write(
    trainer: Trainer, directory: str, steps_per_call: int = 1, draws: int = 0, values: bool = True
) -> None:
    """Writes a trainer's step and state.

    Args:
      trainer: On one device, with `train.jit_compile=step`.
      directory: Where the files go.
      steps_per_call: How many steps a call takes.
      draws: How many draws a pass of the importance-weighted bound makes for each of its images;
        0: without the bound.
      values: Whether to write the state's values; else, made-up ones are used.
    """
    os.makedirs(directory, exist_ok=True)
    model, size = trainer.config.model, trainer.config.train.global_batch_size
    if values:
        state = {str(i): v.numpy() for i, v in enumerate(trainer.state.variables)}
        np.savez(os.path.join(directory, "state.npz"), **state)
    images = tf.TensorSpec([steps_per_call, size, *model.content_shape], tf.uint8)
    step = steps(trainer, steps_per_call)
    modules = {"step": write_module(directory, "step", step, [images], trainer.state)}
    if draws:
        images = tf.TensorSpec([_BOUND_IMAGES, *model.content_shape], tf.uint8)
        number = tf.TensorSpec([], tf.int64)
        function = bound(trainer, draws)
        modules["bound"] = write_module(
            directory, "bound", function, [images, number, number], trainer.state
        )
    facts = {
        "config": json.loads(trainer.config.to_json()),
        "parameters": trainer.model.num_trainable_parameters,
        "total_steps": trainer.total_steps,
        "variables": [_description(variable) for variable in trainer.state.variables],
        "learning_rate_factor": _place(trainer.state.guard.learning_rate_factor, trainer.state),
        "metrics": METRICS,
        "modules": modules,
    }
    write_atomically(os.path.join(directory, "facts.json"), json.dumps(facts) + "\n")


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        config = config_changes(presets.get(_PRESET.value)).override({"train.jit_compile": "step"})
        init_from = TrainedModel.of(_INIT_FROM.value) if _INIT_FROM.value else None
        if init_from:
            init_from.check_same_model(config)
        splits = {"train": config.data.train_split, "test": config.data.test_split}
        images = {}
        if _IMAGES.value:
            images = {
                name: load_images(config.data, config.model, split)
                for name, split in splits.items()
            }
    use_devices(training=True)
    count = len(images["train"]) if images else _UNKNOWN_IMAGES
    trainer = Trainer(config, make_strategy("one_device"), count)
    if init_from:
        trainer.state.start_from(read_values(init_from.load().variables))
    elif images:
        stored = next(iter(training_batches(images["train"], config)))
        trainer.initialize_from_batch(training_input(stored, config, tf.constant(0)))
    write(trainer, _OUTPUT.value, _STEPS.value, _DRAWS.value, _VALUES.value)
    if images:
        np.savez_compressed(os.path.join(_OUTPUT.value, "images.npz"), **images)


if __name__ == "__main__":
    define_config_flag("Changes to the preset's fields, such as --config.train.steps=1000.")
    app.run(main)
