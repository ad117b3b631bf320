"""The inverse-autoregressive flow."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.flow import AutoregressiveCell, AutoregressiveFlow


@pytest.mark.parametrize("mirror", [False, True])
def test_a_value_s_shift_depends_on_the_values_before_it_only(mirror):
    cell = AutoregressiveCell(mirror)
    z = tf.random.stateless_normal([1, 4, 3, 2], (0, 0))
    with tf.GradientTape() as tape:
        tape.watch(z)
        shift = cell(z) * 0 + cell.mean(z)
    jacobian = np.abs(tape.jacobian(shift, z).numpy()).reshape(12, 2, 12, 2) > 0
    if mirror:  # pixels in reverse order, channels as they are
        jacobian = jacobian[::-1, :, ::-1, :]
    jacobian = jacobian.reshape(24, 24)
    assert not np.triu(jacobian).any()  # nothing sees itself or what comes after it
    assert np.tril(jacobian, -1).any(axis=1)[1:].all()  # and everything sees something


def test_the_log_determinant_is_zero():
    flow = AutoregressiveFlow(1)
    z = tf.random.stateless_normal([1, 3, 3, 2], (0, 1))
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = flow(z)
    jacobian = tape.jacobian(y, z).numpy().reshape(18, 18).astype(np.float64)
    sign, log_determinant = np.linalg.slogdet(jacobian)
    assert sign == 1 and abs(log_determinant) < 1e-5
