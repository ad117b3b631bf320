"""AdaMax and the learning rate."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import OptimizerConfig
from nvae_tf.training.optimizer import AdaMax, learning_rate_at


def adamax(variables, config):
    """A function that takes one step after the other."""
    slots = [[tf.Variable(tf.zeros(v.shape)) for v in variables] for _ in range(2)]
    return functools.partial(
        AdaMax(config).apply, variables, *slots, tf.Variable(0, dtype=tf.int64)
    )


def test_steps_are_the_reference_s(golden):
    values = golden("adamax.npz")
    config = OptimizerConfig(
        weight_decay=float(values["weight_decay"]),
        epsilon=float(values["epsilon"]),
        beta_1=float(values["beta_1"]),
        beta_2=float(values["beta_2"]),
    )
    variables = [tf.Variable(values["w"][0]), tf.Variable(values["b"][0])]
    apply = adamax(variables, config)
    for step, gradients in enumerate(zip(values["w_grad"], values["b_grad"])):
        apply(gradients, float(values["learning_rate"]))
        np.testing.assert_allclose(variables[0], values["w"][step + 1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variables[1], values["b"][step + 1], rtol=1e-5, atol=1e-6)


def test_the_multiplier_is_of_the_gradients():
    config = OptimizerConfig(weight_decay=0.1)
    variables = [tf.Variable([1.0, -2.0]), tf.Variable([1.0, -2.0])]
    adamax(variables[:1], config)([tf.constant([0.5, 1.0])], 0.1, tf.constant(0.5))
    adamax(variables[1:], config)([tf.constant([0.25, 0.5])], 0.1)
    np.testing.assert_array_equal(variables[0], variables[1])


def test_each_variable_needs_its_gradient():
    apply = adamax([tf.Variable([1.0]), tf.Variable([1.0, 2.0])], OptimizerConfig())
    with pytest.raises(ValueError, match="Expected 2 gradients, received 1"):
        apply([tf.constant([1.0])], 0.1)


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
