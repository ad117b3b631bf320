"""Names what went wrong first in a step that is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.stacks import Values
from nvae_tf.training.objective import negative_elbo, objective_terms
from trainers.run.trainer import Trainer


def first_non_finite(trainer: Trainer, values: Values, step: int, images: tf.Tensor) -> str:
    """Computes a step's losses again, one operation after the other, and names the culprit.

    This takes as much memory as a replica's part of a step, so only one replica's images are looked
    at.

    Args:
      trainer: The trainer.
      values: The values of the model's variables with which the step failed, by path.
      step: The number of steps before the one that failed.
      images: (B, H, W, C), the first images of the step's global batch.

    Returns:
      A sentence without its full stop. It says what was not finite first (a variable, a layer's
      output, the KL of a group, the likelihood, or a gradient), that all values were finite, or
      that the memory did not suffice. In the second case the cause is among what is not computed
      here: other images, their views, or the regularisation.
    """
    try:
        culprit = _first_non_finite(trainer, values, step, images[: trainer.replica_batch])
    except tf.errors.ResourceExhaustedError as error:
        return f"There was too little memory to look for the cause ({error.message})"
    if culprit is None:
        return "Computed again on one device, bound and gradients of the first images were finite"
    return f"The first value that was not finite is {culprit}"


def _first_non_finite(trainer: Trainer, values: Values, step: int, images: tf.Tensor) -> str | None:
    model = trainer.model
    for path, value in values.items():
        if not _is_finite(value):
            return f"in the variable {path}"
    noise = model.draw_noise(len(images), [trainer.config.train.seed, step])
    weights = {v.path: values[v.path] for v in model.trainable_variables}
    with tf.GradientTape() as tape, _observed(model) as layers:
        tape.watch(weights)
        with functional_call(model, values, frozen=trainer.schedule.freezes(step)):
            output = model.infer(images, noise, training=True)
            terms = objective_terms(model, images, output, 1.0)
        loss = tf.reduce_mean(negative_elbo(terms))
    order = [path for path, _ in layers]
    suspects: list[tuple[float, str]] = [
        (i, f"in the output of {path}") for i, (path, good) in enumerate(layers) if not good
    ]
    for group, latent in enumerate(output.latents):
        if not (_is_finite(output.kl_per_group[:, group]) and _is_finite(latent)):
            # A group's latent variable is computed before the combiner that it goes into.
            combiner = f"decoder_combiner_{group}/"  # and what is inside of it
            name = "decoder_stem" if model.config.is_vanilla else combiner
            scale = model.config.group_scales[group]
            place = next(i for i, path in enumerate(order) if path.startswith(name))
            suspects.append((place - 0.5, f"in the KL of group {group} (scale {scale})"))
    if suspects:
        return min(suspects)[1]
    if not _is_finite(terms.reconstruction):
        return "in the likelihood of the images"
    # Gradients are computed from the last layer to the first.
    for path, gradient in reversed(tape.gradient(loss, weights).items()):
        if gradient is not None and not _is_finite(gradient):
            return f"in the gradient of {path}"
    return None


@contextlib.contextmanager
def _observed(model: keras.Model) -> Iterator[list[tuple[str, bool]]]:
    """Collects, in the order of computation, each layer's path and whether its output is finite."""
    seen: list[tuple[str, bool]] = []
    layers = [layer for layer in model._flatten_layers() if layer is not model]

    def observe(layer: keras.layers.Layer) -> None:
        call = layer.call

        def observed(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            seen.append((layer.path, all(map(_is_finite, tf.nest.flatten(result)))))
            return result

        layer.call = observed

    for layer in layers:
        observe(layer)
    try:
        yield seen
    finally:
        for layer in layers:
            del layer.call


def _is_finite(values: tf.Tensor) -> bool:
    return bool(np.all(np.isfinite(tf.cast(tf.convert_to_tensor(values), tf.float32).numpy())))
