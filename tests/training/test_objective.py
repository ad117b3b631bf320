"""Warm-up, balancing and annealing, against the reference."""

import math

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE, TrainConfig
from nvae_tf.training.objective import (
    bits_per_dimension,
    group_importance,
    kl_balance,
    kl_warmup,
    negative_elbo,
    objective_terms,
    regularization_coefficient,
)
from tests.conftest import random_images, tiny_model_config


def test_warmup_is_the_reference_s(golden):
    for case in golden("schedules.json")["kl_coefficient"]:
        beta = kl_warmup(case["step"], case["anneal_steps"], case["constant_steps"])
        np.testing.assert_allclose(beta, case["value"], rtol=1e-5)


def test_importance_is_the_reference_s(golden):
    cases = [
        c for c in golden("schedules.json")["kl_balancer_coefficients"] if c["fun"] == "square"
    ]
    assert len(cases) >= 4
    for case in cases:
        importance = group_importance(case["groups_per_scale"])
        np.testing.assert_allclose(importance, case["value"], rtol=1e-5)


def test_balancing_is_the_reference_s(golden):
    for case in golden("schedules.json")["kl_balancer"]:
        kl = tf.constant(case["kl_per_group"])
        beta = case["kl_coefficient"]
        balance = kl_balance(kl, group_importance(case["groups_per_scale"]), beta)
        np.testing.assert_allclose(balance, case["group_coefficients"], rtol=1e-5)
        balanced = beta * tf.linalg.matvec(kl, balance)
        np.testing.assert_allclose(balanced, case["balanced_kl"], rtol=1e-5)


def test_no_gradient_flows_through_the_balance():
    kl = tf.constant([[1.0, 2.0], [3.0, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(kl)
        balance = kl_balance(kl, np.ones(2, np.float32), 0.5)
    assert tape.gradient(balance, kl) is None


def test_lambda_anneals_between_logarithms():
    config = TrainConfig(weight_decay_norm=1e-2, weight_decay_norm_anneal=True)
    for beta, expected in ((0.0, 1.0), (0.5, 0.1), (1.0, 0.01)):
        penalty = regularization_coefficient(config, tf.constant(beta))
        np.testing.assert_allclose(penalty, expected, rtol=1e-5)
    assert regularization_coefficient(TrainConfig(), tf.constant(0.3)) == 1e-2


def test_terms_add_up():
    model = NVAE(tiny_model_config())
    images = random_images(model.config)
    output = model.infer(images, model.draw_noise(3, (0, 0)))
    terms = objective_terms(model, images, output, kl_coefficient=1.0)
    np.testing.assert_allclose(
        negative_elbo(terms), terms.reconstruction + terms.balanced_kl, rtol=1e-5
    )


@pytest.mark.parametrize(("padding", "dimensions"), [(0, 64), (2, 16)])
def test_bits_per_dimension_leave_the_padding_out(padding, dimensions):
    config = tiny_model_config(padding=padding)
    assert bits_per_dimension(dimensions * math.log(2), config) == pytest.approx(1.0)
