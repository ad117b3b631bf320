"""Naming what was not finite first."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.context import functional_call
from tests.conftest import random_images, tiny_experiment_config
from trainers.run import diagnosis
from trainers.run.diagnosis import first_non_finite
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

FIRST = "The first value that was not finite is"


@pytest.fixture(scope="module")
def trainer():
    return Trainer(tiny_experiment_config(), make_strategy("auto"), num_images=100)


@pytest.fixture
def diagnose(trainer):
    """Names the culprit with some of the model's variables changed."""
    changed = []

    def diagnose(changes=None):
        for variable, value in changes or ():
            before = trainer.state.model_values()[variable.path].numpy()
            changed.append((variable, before))
            new = tf.fill(variable.shape, float(value))
            trainer.state.replace_weights({variable.path: new})
        values = trainer.state.model_values()
        return first_non_finite(trainer, values, 0, random_images(trainer.config.model, 4))

    yield diagnose
    for variable, value in changed:
        trainer.state.replace_weights({variable.path: tf.constant(value)})


def test_a_good_step(diagnose):
    assert diagnose().endswith("gradients of the first images were finite")


def test_a_variable(trainer, diagnose):
    variable = trainer.model.image_head.bias
    assert diagnose([(variable, np.nan)]) == f"{FIRST} in the variable {variable.path}"


def test_a_layer(trainer, diagnose):
    cell = trainer.model.groups[1].decoder_cells[0]
    norm = cell.branch[0].spatial[1]
    culprit = diagnose([(norm.gamma, 3e38), (norm.beta, 3e38)])
    assert culprit == f"{FIRST} in the output of {norm.path}"


def test_a_frozen_normalisation_is_looked_at_as_it_was_computed():
    config = tiny_experiment_config().override({"train.frozen_batch_norm_portion": 0.5})
    trainer = Trainer(config, make_strategy("auto"), num_images=100)
    norm = trainer.model.groups[1].decoder_cells[0].branch[0].spatial[1]
    values = dict(trainer.state.model_values())
    values[norm.moving_variance.path] = tf.fill(norm.moving_variance.shape, -1.0)
    images = random_images(trainer.config.model, 4)
    before, after = (first_non_finite(trainer, values, step, images) for step in (1, 2))
    assert before.endswith("gradients of the first images were finite")
    assert after == f"{FIRST} in the output of {norm.path}"


def test_the_kl_of_a_group(trainer, diagnose, monkeypatch):
    infer_group = trainer.model.infer_group

    def overflowing(group, *args):
        result = infer_group(group, *args)
        if group != 1:
            return result
        return result._replace(kl=result.kl * np.inf, latent=result.latent * np.nan)

    monkeypatch.setattr(trainer.model, "infer_group", overflowing)
    assert diagnose() == f"{FIRST} in the KL of group 1 (scale 0)"


def test_memory_that_does_not_suffice(diagnose, monkeypatch):
    def exhausted(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating [8,32,32,96]")

    monkeypatch.setattr(diagnosis, "_first_non_finite", exhausted)
    assert (
        "too little memory to look for the cause (OOM when allocating [8,32,32,96])" in diagnose()
    )


def test_one_replica_is_looked_at(trainer, monkeypatch):
    seen = []
    monkeypatch.setattr(diagnosis, "_first_non_finite", lambda *args: seen.append(args[-1].shape))
    images = random_images(trainer.config.model, 3 * trainer.replica_batch)
    first_non_finite(trainer, trainer.state.model_values(), 0, images)
    assert seen == [images[: trainer.replica_batch].shape]


def test_layers_work_as_before(trainer, diagnose):
    diagnose()
    with functional_call(trainer.model, trainer.state.model_values()):
        output = trainer.model.infer(random_images(trainer.config.model, 2))
    assert np.all(np.isfinite(output.logits))
