"""Which gradients are applied, and what becomes of the loss scale."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import TrainConfig
from trainers.run.guard import Guard


def judge(guard, norm, loss=1.0):
    return bool(guard.judge(tf.constant(loss), tf.constant(norm)))


@pytest.mark.parametrize("loss, norm", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_what_is_not_finite_is_not_applied(loss, norm):
    guard = Guard(TrainConfig())
    assert not judge(guard, norm, loss)
    assert int(guard.skipped) == int(guard.not_finite_in_a_row) == 1
    assert float(guard.loss_scale) == 1  # float32 needs none
    assert judge(guard, 1e30)
    assert int(guard.skipped) == 1 and int(guard.not_finite_in_a_row) == 0


def test_the_loss_scale_halves_and_grows_again():
    guard = Guard(TrainConfig(precision="mixed_float16"))
    judge(guard, np.inf)
    assert float(guard.loss_scale) == 2.0**9
    for _ in range(1999):
        judge(guard, 1.0)
    assert float(guard.loss_scale) == 2.0**9
    judge(guard, 1.0)
    assert float(guard.loss_scale) == 2.0**10
    for _ in range(20):
        judge(guard, np.nan)
    assert float(guard.loss_scale) == 1


def test_large_gradients_are_skipped_relative_to_the_running_norm():
    guard = Guard(TrainConfig(skip_gradient_norm=3.0))
    for _ in range(10):
        assert judge(guard, 2.0)
    assert not judge(guard, 7.0)
    assert judge(guard, 5.0)
    assert int(guard.skipped) == 1 and int(guard.not_finite_in_a_row) == 0


def test_a_norm_that_has_grown_for_good_is_accepted_in_the_end():
    guard = Guard(TrainConfig(skip_gradient_norm=3.0))
    judge(guard, 1.0)
    accepted = [judge(guard, 1000.0) for _ in range(400)]
    assert not any(accepted[:100]) and all(accepted[350:])


def test_rollbacks_lower_the_learning_rate():
    guard = Guard(TrainConfig())
    guard.note_rollback(2)
    assert float(guard.learning_rate_factor) == 0.25
