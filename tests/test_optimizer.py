"""AdaMax and the learning rate."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import OptimizerConfig
from nvae_tf.optimizer import AdaMax, learning_rate_at


def test_steps_are_the_reference_s(golden):
    values = golden("adamax.npz")
    config = OptimizerConfig(
        weight_decay=float(values["weight_decay"]),
        epsilon=float(values["epsilon"]),
        beta_1=float(values["beta_1"]),
        beta_2=float(values["beta_2"]),
    )
    variables = [keras.Variable(values["w"][0]), keras.Variable(values["b"][0])]
    optimizer = AdaMax(variables, config)
    for step, gradients in enumerate(zip(values["w_grad"], values["b_grad"])):
        optimizer.apply(gradients, float(values["learning_rate"]))
        np.testing.assert_allclose(variables[0], values["w"][step + 1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variables[1], values["b"][step + 1], rtol=1e-5, atol=1e-6)


def test_variables_of_one_shape_do_not_mix():
    random = np.random.default_rng(0)
    starts = [random.normal(size=(2, 3)).astype(np.float32) for _ in range(3)]
    gradients = [random.normal(size=(2, 3)).astype(np.float32) for _ in range(3)]
    together = [keras.Variable(start) for start in starts]
    optimizer = AdaMax(together, OptimizerConfig())
    alone = [keras.Variable(start) for start in starts]
    optimizers = [AdaMax([variable], OptimizerConfig()) for variable in alone]
    for _ in range(3):
        optimizer.apply(gradients, 0.1)
        for single, gradient in zip(optimizers, gradients):
            single.apply([gradient], 0.1)
    for a, b in zip(together, alone):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_missing_gradients_are_named():
    variables = [keras.Variable([1.0], name="used"), keras.Variable([1.0, 2.0], name="unused")]
    optimizer = AdaMax(variables, OptimizerConfig())
    with pytest.raises(ValueError, match="does not depend on 'unused'"):
        optimizer.apply([tf.constant([1.0]), None], 0.1)
    with pytest.raises(ValueError, match="Expected 2 gradients, received 1"):
        optimizer.apply([tf.constant([1.0])], 0.1)


def test_learning_rate_rises_then_falls_as_a_cosine():
    config = OptimizerConfig(learning_rate=1e-2, learning_rate_min=1e-4)
    rates = {step: float(learning_rate_at(step, config, 100, 500)) for step in range(0, 501, 50)}
    assert rates[0] == 0
    np.testing.assert_allclose(rates[50], 5e-3, rtol=1e-5)
    np.testing.assert_allclose(rates[100], 1e-2, rtol=1e-5)
    np.testing.assert_allclose(rates[300], (1e-2 + 1e-4) / 2, rtol=1e-5)  # half-way
    np.testing.assert_allclose(rates[500], 1e-4, rtol=1e-4)
    falling = [rates[step] for step in range(100, 501, 50)]
    assert falling == sorted(falling, reverse=True)
