"""Normals of the latent groups, against the reference and against Monte Carlo."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf.model.distributions import PixelNormal, ResidualNormal


@pytest.fixture
def values(golden):
    return golden("residual_normal.npz")


@pytest.fixture
def prior(values):
    return ResidualNormal(values["prior_mean_raw"], values["prior_log_scale_raw"])


@pytest.fixture
def posterior(values):
    return ResidualNormal(
        values["prior_mean_raw"],
        values["prior_log_scale_raw"],
        values["delta_mean_raw"],
        values["delta_log_scale_raw"],
    )


def test_parameters_and_log_probabilities_are_the_reference_s(values, prior, posterior):
    for name, distribution in (("prior", prior), ("posterior", posterior)):
        np.testing.assert_allclose(distribution.loc, values[f"{name}_loc"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(distribution.scale, values[f"{name}_scale"], rtol=1e-5)
        np.testing.assert_allclose(distribution.mean(), values[f"{name}_loc"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            distribution.log_prob(values["z"]), values[f"{name}_log_prob_z"], rtol=1e-5
        )


def test_kl_is_the_reference_s(values, prior, posterior):
    np.testing.assert_allclose(
        tfd.kl_divergence(posterior, prior), values["kl_posterior_prior"], rtol=1e-5, atol=1e-6
    )


def test_temperature_multiplies_the_scale(values):
    cold = ResidualNormal(values["prior_mean_raw"], values["prior_log_scale_raw"], temperature=0.6)
    np.testing.assert_allclose(cold.scale, values["prior_scale_temperature_0.6"], rtol=1e-5)


def test_kl_agrees_with_monte_carlo():
    posterior = ResidualNormal(tf.constant([0.3]), tf.constant([-0.2]), [1.1], [-0.7])
    prior = ResidualNormal(tf.constant([0.3]), tf.constant([-0.2]))
    z = posterior.sample(200_000, seed=(1, 2))
    ratio = (posterior.log_prob(z) - prior.log_prob(z)).numpy()[:, 0]
    error = ratio.std() / np.sqrt(len(ratio))
    # Five standard errors: a false alarm in 1.7 million.
    assert abs(ratio.mean() - float(tfd.kl_divergence(posterior, prior)[0])) < 5 * error


def test_the_clamp_keeps_any_parameter_finite():
    wild = ResidualNormal(tf.constant([1e4, -1e4]), tf.constant([-1e4, 1e4]))
    np.testing.assert_allclose(wild.loc, [5, -5])
    np.testing.assert_allclose(wild.scale, [np.exp(-5) + 0.01, np.exp(5) + 0.01], rtol=1e-5)
    assert np.all(np.isfinite(wild.log_prob(0.0)))


def test_smooth_scales_and_their_gradient():
    raw = tf.linspace(-20.0, 20.0, 41)
    with tf.GradientTape() as tape:
        tape.watch(raw)
        scale = ResidualNormal(tf.zeros(41), raw, smooth=True).scale
    clamped = 5 * np.tanh(raw.numpy().astype(np.float64) / 5)
    np.testing.assert_allclose(scale, np.log2(1 + 2**clamped) + 0.01, rtol=1e-5)
    # d softplus(c ln 2) / ln 2 = sigmoid(c ln 2) dc, with the clamp's own derivative.
    expected = (1 - (clamped / 5) ** 2) / (1 + 2**-clamped)
    gradient = tape.gradient(scale, raw)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert np.max(gradient) < 1
    unit = ResidualNormal(tf.zeros([1]), tf.zeros([1]), smooth=True)
    np.testing.assert_allclose(unit.scale, 1.01)


def test_shapes_and_copies():
    normal = ResidualNormal(tf.zeros([4, 3]), tf.zeros([4, 3]), temperature=tf.ones([4, 1]))
    assert normal.batch_shape == [4, 3]
    assert normal.sample(2, seed=(0, 0)).shape == [2, 4, 3]
    assert normal.copy(temperature=2.0).scale[0, 0] == 2 * normal.scale[0, 0]


def test_normal_decoder_is_the_reference_s(golden):
    values = golden("normal_decoder.npz")
    pixels = PixelNormal(*np.split(values["params"], 2, axis=-1))
    np.testing.assert_allclose(
        pixels.log_prob(values["x"]), values["log_prob"], rtol=1e-5, atol=1e-5
    )
    assert np.all((pixels.sample(seed=(0, 1)) >= 0) & (pixels.sample(seed=(0, 1)) <= 1))
    assert np.all((pixels.mean() >= 0) & (pixels.mean() <= 1))
