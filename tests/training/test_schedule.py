"""The numbers that change with the step alone."""

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
