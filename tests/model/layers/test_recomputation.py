"""Cells that are computed again in the backward pass do what others do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.cells import ResidualCell
from nvae_tf.model.layers.context import functional_call


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("jit_compile", ["none", "islands"])
def test_recomputation_changes_neither_statistics_nor_gradients(jit_compile, trainable, frozen):
    keras.utils.set_random_seed(0)
    cell = ResidualCell(("mconv_e3k5g0",), "normal", use_se=True)
    x = 1 + tf.random.stateless_normal([2, 6, 4, 8], (0, 0))
    cell.build(x.shape)
    cell.trainable = trainable
    results = []
    for recompute in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            with functional_call(
                cell, recompute=recompute, jit_compile=jit_compile, frozen=frozen
            ) as call:
                y = cell(x, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        results.append((y, tape.gradient(loss, x), call.statistics))
    plain, again = results
    np.testing.assert_allclose(again[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(again[1], plain[1], rtol=1e-4, atol=1e-5)
    assert again[2].keys() == plain[2].keys() and bool(plain[2]) != frozen
    for path, statistic in plain[2].items():
        np.testing.assert_allclose(again[2][path], statistic, rtol=1e-5, err_msg=path)
