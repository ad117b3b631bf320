"""A training step in XLA's own form: the functions that it consists of, and their files.

`compiled_step` is the program that writes them.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.data import preprocess
from nvae_tf.evaluation.likelihood import repeat_batch
from nvae_tf.files import write_atomically
from nvae_tf.model.compilation import compiled
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.nvae import NVAE
from trainers.run.state import TrainState
from trainers.run.trainer import Trainer

_BOUND_IMAGES = 20  # of a pass of the importance-weighted bound
METRICS = ("loss", "negative_elbo", "kl", "gradient_norm", "skipped")


def steps(trainer: Trainer, count: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of images (count, B, h, w, C) uint8 that takes so many steps.

    It returns the means of `METRICS` over them; of `skipped`, the number so far.
    """
    traced = trainer.traced_step()  # here, for a function that is being traced reads no variable

    def step(stored: tf.Tensor) -> tf.Tensor:
        means, _, verdict = traced.whole(stored, tf.constant(False))
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
        skipped = tf.cast(trainer.state.guard.skipped, tf.float32)
        return tf.concat([total[:-1], skipped[None]], axis=0)

    return call


def bound(trainer: Trainer, draws: int) -> Callable[..., tf.Tensor]:
    """Returns a function of images (B, h, w, C) uint8, their numbers' first, and a pass's number.

    It returns (2, draws, B): log p(x|z) - KL, whose mean is the ELBO, and
    log p(x|z) + log p(z) - log q(z|x), both in nats, with the weights that evaluations use.
    """
    model = InferenceModel(NVAE.structure(trainer.config.model, dtype="float32"))

    def call(stored: tf.Tensor, first: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        images = preprocess(stored, model.config, tf.constant([0, 0], tf.int64), first)
        batch = images.shape[0]
        noise = model.draw_noise(draws * batch, tf.stack([number + 1, first]))
        with model.scope(model.weights(trainer.state.evaluation_values())):
            features = [repeat_batch(feature, draws) for feature in model.bottom_up(images)]
            output = model.infer_from_features(features, noise)
        log_prob = model.likelihood(output.logits).log_prob(repeat_batch(images, draws))
        elbo = log_prob - tf.reduce_sum(output.kl_per_group, axis=1)
        weights = log_prob + output.log_p - output.log_q
        return tf.reshape(tf.stack([elbo, weights]), [2, draws, batch])

    return call


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
    with warnings.catch_warnings():
        # A platform is asked for in place of a device, but does not do for variables.
        warnings.filterwarnings("ignore", message="device_name is being deprecated")
        module = lower(stage="stablehlo_serialized", device_name=device)
        header = lower(stage="hlo", device_name=device).partition("\n")[0]
    write_atomically(os.path.join(directory, f"{name}.mlirbc"), module)
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)
    place = {id(variable.handle): i for i, variable in enumerate(state.variables)}
    print(f"{name}: {len(module) / 1e6:.1f} MB of StableHLO, {len(captured)} variables", flush=True)
    return {
        "state": [place[id(handle)] for handle in captured],
        "updates": [[int(output), int(argument)] for output, argument in aliases],
        "inputs": [[list(spec.shape), spec.dtype.name] for spec in specs],
    }


def description(variable: tf.Variable) -> list[Any]:
    """Returns a variable's shape, type, name, and, if it is a scalar, its value."""
    scalar = None if variable.shape.rank else float(variable.numpy())
    return [list(variable.shape), variable.dtype.name, variable.name.partition(":")[0], scalar]


def write(
    trainer: Trainer, directory: str, steps_per_call: int = 1, draws: int = 0, values: bool = True
) -> None:
    """Writes a trainer's step and state.

    Args:
      trainer: On one device, with `train.jit_compile=step`.
      directory: Where the files go, which exists.
      steps_per_call: How many steps a call takes.
      draws: How many draws a pass of the importance-weighted bound makes for each of its images;
        0: without the bound.
      values: Whether to write the state's values; else, made-up ones are used.
    """
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
        "total_steps": trainer.total_steps,
        "variables": [description(variable) for variable in trainer.state.variables],
        "metrics": METRICS,
        "modules": modules,
    }
    write_atomically(os.path.join(directory, "facts.json"), json.dumps(facts) + "\n")
