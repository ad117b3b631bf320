"""The numbers that change with the step alone."""

import math

import pytest

from nvae_tf.training.schedule import Schedule, steps_per_epoch, total_steps
from tests.conftest import small_experiment_config, tiny_experiment_config


def test_steps_win_over_epochs():
    config = tiny_experiment_config(steps=7)
    assert total_steps(config, 10) == 7
    assert total_steps(config.override({"train.steps": 0, "train.epochs": 3}), 10) == 6
    assert steps_per_epoch(config, 11) == 2


def test_batch_norm_is_frozen_from_the_first_step_only_on_request():
    for steps, portion, expected in [
        (100, 0.0, 100),
        (100, 0.001, 100),
        (100, 1.0, 0),
        (9, 0.99, 1),
        (100, 0.29, 71),
    ]:
        config = small_experiment_config(steps=steps)
        config = config.override({"train.frozen_batch_norm_portion": portion})
        schedule = Schedule(config, 100)
        assert schedule.frozen_from == expected
        assert not schedule.freezes(steps)  # a step that never comes


def test_values_of_a_schedule():
    config = small_experiment_config(steps=100).override(
        {
            "train.kl_const_portion": 0.1,
            "train.kl_anneal_portion": 0.3,
            "train.weight_decay_norm_anneal": True,
            "train.weight_decay_norm_init": 1.0,
            "train.weight_decay_norm": 0.01,
            "optimizer.learning_rate": 0.01,
            "optimizer.learning_rate_min": 0.001,
            "optimizer.warmup_epochs": 0.8,  # of 25 steps each
        }
    )
    schedule = Schedule(config, 100)
    assert schedule.warmup_steps == 20
    for step, beta, penalty, rate in [
        (0, 1e-4, 0.01**1e-4, 0.0),
        (10, 1e-4, 0.01**1e-4, 0.005),
        (25, 0.5, 0.1, 0.001 + 0.009 * (1 + math.cos(math.pi / 16)) / 2),
        (40, 1.0, 0.01, 0.001 + 0.009 * (1 + math.cos(math.pi / 4)) / 2),
        (60, 1.0, 0.01, 0.0055),
        (100, 1.0, 0.01, 0.001),
    ]:
        found = schedule.at(step)
        assert tuple(map(float, found)) == pytest.approx((beta, penalty, rate), rel=1e-4), step
