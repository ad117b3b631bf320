"""The gradients of a step, by differences of its loss, and what the update takes them for."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data import training_batches
from nvae_tf.replicas import Replicas
from tests.conftest import small_experiment_config
from tests.trainers.run.test_trainer import stored_images
from trainers.run import step as step_module
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

# Balancing passes no gradient, and is over once beta is 1.
CONFIG = small_experiment_config(steps=100).override({"train.kl_anneal_portion": 1e-9})


def first_share(config):
    """The weights of a new trainer, and its first step's share as a function of such weights."""
    trainer = Trainer(config, make_strategy("one_device"), num_images=100)
    run, reading = trainer.traced_step().definition, trainer.state.read()
    stored = next(iter(training_batches(stored_images(config), config)))
    zero = tf.constant(0)
    images, noise = step_module.prepare(run, Replicas(), stored, reading.step, zero)

    @tf.function(autograph=False)
    def share(weights):
        state = reading._replace(weights=weights)
        stop = tf.constant(False)
        return step_module.forward_backward(run, Replicas(), state, images, noise, zero, stop)[0]

    return reading.weights, share


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_gradients_are_the_slopes_of_the_loss(monkeypatch, penalty):
    # Singular vectors move with the weights, which only makes no difference once they are exact.
    monkeypatch.setattr(step_module, "FIRST_ITERATIONS", 200)
    config = CONFIG.override({"train.weight_decay_norm": penalty})
    weights, share = first_share(config)
    gradients = share(weights).gradients
    for chosen in (
        lambda gradient: True,
        lambda gradient: gradient.shape.rank > 3,  # kernels, whose stacks have an axis more
        lambda gradient: gradient.shape.rank <= 3,
    ):
        way = [g if chosen(g) else tf.zeros_like(g) for g in gradients]
        length = tf.linalg.global_norm(way)
        step = 2e-3 / length
        ends = [
            float(share([w + sign * step * d for w, d in zip(weights, way)]).means.loss)
            for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(float(length), rel=0.02)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_the_loss_scale_is_taken_off_before_the_optimiser(clip_norm):
    momenta = []
    for precision in ("float32", "mixed_float16"):
        config = CONFIG.override({"train.precision": precision, "optimizer.clip_norm": clip_norm})
        trainer = Trainer(config, make_strategy("one_device"), num_images=100)
        metrics = trainer.step(iter(trainer.batches(stored_images(config))))
        assert bool(metrics.verdict.applied)
        momenta.append(np.concatenate([np.ravel(m) for m in trainer.state.momentum.values()]))
    exact, scaled = momenta
    if clip_norm:
        assert np.linalg.norm(exact) == pytest.approx(0.1 * clip_norm, rel=1e-4)
    assert np.linalg.norm(scaled - exact) < 0.05 * np.linalg.norm(exact)
