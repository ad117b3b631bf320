"""Spectral and batch-norm regularisation against their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.training.regularization import FIRST_ITERATIONS, ITERATIONS, Regularizer
from tests.conftest import tiny_model_config


def exact_spectral(model):
    total = 0.0
    for layer in model.convolutions():
        kernel = layer.effective_kernel().numpy().astype(np.float64)
        total += np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
    return total


def make_model(**changes):
    # Depthwise, raw, weight-normalised and masked kernels.
    return NVAE(tiny_model_config(num_nf=1, **changes))


def spectral(regularizer, vectors, iterations):
    """The sum of the singular values, and the vectors after the iterations."""
    kernels = regularizer.kernels.compute()
    values, vectors = regularizer.singular_values(kernels, vectors, iterations)
    return float(tf.reduce_sum(values)), vectors


def test_power_iteration_finds_the_largest_singular_values():
    model = make_model()
    regularizer = Regularizer(model)
    exact = exact_spectral(model)
    first, vectors = spectral(regularizer, regularizer.initial_vectors(0), FIRST_ITERATIONS)
    np.testing.assert_allclose(first, exact, rtol=5e-3)
    for _ in range(15):
        last, vectors = spectral(regularizer, vectors, ITERATIONS)
    np.testing.assert_allclose(last, exact, rtol=1e-4)
    # From below: u'Wv never exceeds the norm.
    assert first <= last * (1 + 1e-6) and last <= exact * (1 + 1e-6)


def test_vectors_persist_and_need_not_move():
    model = make_model()
    regularizer = Regularizer(model)
    first, vectors = spectral(regularizer, regularizer.initial_vectors(0), FIRST_ITERATIONS)
    again, same = spectral(regularizer, vectors, 0)
    np.testing.assert_allclose(again, first, rtol=1e-6)
    for before, after in zip(vectors, same):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_form_for_xla_is_the_same_iteration(iterations):
    regularizer = Regularizer(make_model())
    kernels, vectors = regularizer.kernels.compute(), regularizer.initial_vectors(0)
    expected = regularizer.singular_values(kernels, vectors, iterations)
    received = regularizer.singular_values(kernels, vectors, iterations, in_xla=True)
    np.testing.assert_allclose(received[0], expected[0], rtol=1e-5)
    for one, other in zip(received[1], expected[1]):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_gradient_is_that_of_the_singular_value():
    model = make_model()
    raw = next(layer for layer in model.convolutions() if layer.path.endswith("0/expand"))
    # A gap after the first singular value, so that the vectors converge.
    random = np.random.default_rng(0)
    left = random.normal(size=(*raw.kernel.shape[:3], 1))
    right = random.normal(size=raw.filters)
    raw.kernel.assign(left * right + 0.1 * raw.kernel.numpy())
    regularizer = Regularizer(model)
    with tf.GradientTape() as tape:
        values, _ = regularizer.singular_values(
            regularizer.kernels.compute(), regularizer.initial_vectors(0), FIRST_ITERATIONS
        )
        loss = tf.reduce_sum(values)
    gradient = tape.gradient(loss, raw.kernel.value)
    matrix = raw.kernel.numpy().reshape(-1, raw.filters)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    expected = np.outer(left[:, 0], right[0]).reshape(raw.kernel.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_batch_norm_sums_the_largest_scales():
    model = make_model()
    regularizer = Regularizer(model)
    norms = model.batch_normalizations()
    assert float(regularizer.batch_norm()) == len(norms)  # all gammas are 1
    norms[0].gamma.assign(-3 * tf.ones_like(norms[0].gamma))
    np.testing.assert_allclose(regularizer.batch_norm(), len(norms) + 2)


def test_a_model_without_batch_norm():
    assert float(Regularizer(make_model(arch_instance="res_elu")).batch_norm()) == 0
