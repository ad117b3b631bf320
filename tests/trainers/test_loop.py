"""The training step: what it minimises, on one replica and on two."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.objective import negative_elbo, objective_terms
from tests.conftest import random_images, tiny_experiment_config
from trainers.loop import (
    DivergedError,
    Trainer,
    make_strategy,
    run_steps,
    steps_per_epoch,
    total_steps,
)


def batches(config, count):
    """The same `count` batches every time."""
    size = config.train.global_batch_size
    images = random_images(config.model, count * size)
    return tf.data.Dataset.from_tensor_slices(images).batch(size)


CONFIG = tiny_experiment_config(steps=100).override({"model.num_nf": 1})


def train(strategy, count):
    trainer = Trainer(CONFIG, strategy, num_images=100)
    metrics = [trainer.step(batch) for batch in trainer.distribute(batches(CONFIG, count))]
    return trainer, metrics


@pytest.fixture(scope="module")
def one_replica():
    """A trainer after four steps, and their metrics."""
    return train(make_strategy("one_device"), 4)


def test_metrics_add_up_to_the_loss(one_replica):
    trainer, metrics = one_replica
    for step in metrics:
        assert float(step.kl) == pytest.approx(float(tf.reduce_sum(step.kl_per_group)), rel=1e-5)
        assert float(step.negative_elbo) == pytest.approx(
            float(step.reconstruction + step.kl), rel=1e-5
        )
        balanced = float(tf.reduce_sum(step.balance * step.kl_per_group))
        regularization = float(step.spectral + step.batch_norm)
        assert float(step.loss) == pytest.approx(
            float(step.reconstruction)
            + float(step.kl_coefficient) * balanced
            + float(step.regularization_coefficient) * regularization,
            rel=1e-5,
        )
    assert int(trainer.optimizer.iterations) == 4


def test_the_step_is_that_of_the_model_and_the_objective(one_replica):
    fresh = Trainer(CONFIG, make_strategy("one_device"), num_images=100)
    images = next(iter(batches(CONFIG, 1)))
    noise = fresh.model.draw_noise(4, tf.constant([CONFIG.train.seed, 0], tf.int64))
    output = fresh.model.infer(images, noise, training=True)
    terms = objective_terms(fresh.model, images, output, 1e-4)
    first = one_replica[1][0]
    expected = float(tf.reduce_mean(negative_elbo(terms)))
    assert float(first.negative_elbo) == pytest.approx(expected, rel=1e-4)


def test_two_replicas_walk_the_path_of_one(one_replica):
    one, losses_of_one = one_replica
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    two, losses_of_two = train(strategy, 4)
    for a, b in zip(losses_of_one, losses_of_two):
        for name, ours, theirs in zip(a._fields, a, b):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
    for a, b in zip(one.model.variables, two.model.variables):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-4, err_msg=a.path)


def test_the_batch_must_divide_over_the_replicas():
    config = tiny_experiment_config(global_batch_size=3)
    with pytest.raises(ValueError, match="multiple of the 2 replicas, received 3"):
        Trainer(config, make_strategy("mirrored"), num_images=100)


def test_a_loss_that_is_not_finite_stops_the_run():
    config = tiny_experiment_config(steps=3)
    trainer = Trainer(config, make_strategy("auto"), num_images=100)
    trainer.model.image_head.bias.assign([np.nan])
    seen = []
    with pytest.raises(DivergedError, match=r"nan in step 1 .*optimizer\.learning_rate"):
        run_steps(
            trainer, trainer.distribute(batches(config, 3)), lambda step, _: seen.append(step)
        )
    assert not seen


def test_steps_win_over_epochs():
    config = tiny_experiment_config(steps=7)
    assert total_steps(config, 10) == 7
    assert total_steps(config.override({"train.steps": 0, "train.epochs": 3}), 10) == 6
    assert steps_per_epoch(config, 11) == 2


def test_too_few_images():
    with pytest.raises(ValueError, match="has 3 images, fewer than train.global_batch_size 4"):
        Trainer(tiny_experiment_config(), make_strategy("auto"), num_images=3)


def test_unknown_strategy():
    with pytest.raises(ValueError, match="'tpu'"):
        make_strategy("tpu")
