"""The discretised logistic mixture, against the reference and against its own definition."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_tf.model.distributions import DiscretizedLogisticMixture
from nvae_tf.model.distributions.logistic_mixture import num_logistic_mixture_parameters


def random_mixture(channels, mixtures, bits, seed=0, scale=1.0, shape=()):
    size = (*shape, num_logistic_mixture_parameters(channels, mixtures))
    params = scale * np.random.default_rng(seed).normal(size=size)
    return DiscretizedLogisticMixture(tf.constant(params, tf.float32), channels, mixtures, bits)


@pytest.mark.parametrize("bits", [5, 8])
def test_log_prob_and_mean_are_the_reference_s(golden, bits):
    values = golden(f"logistic_mixture_{bits}bit.npz")
    mixture = DiscretizedLogisticMixture(values["params"], 3, 10, bits)
    np.testing.assert_allclose(mixture.log_prob(values["x"]), values["log_prob"], rtol=1e-5)
    np.testing.assert_allclose(mixture.mean(), values["mean"], rtol=1e-5, atol=1e-6)


def all_values(channels, bits):
    levels = np.arange(2**bits) / (2**bits - 1)
    return np.array(list(itertools.product(levels, repeat=channels)), np.float32)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    case=st.sampled_from([(1, 1), (1, 5), (1, 7), (2, 3), (3, 1), (3, 3), (4, 2)]),
)
def test_probabilities_sum_to_one(seed, case):
    channels, bits = case
    mixture = random_mixture(channels, 4, bits, seed)
    total = tf.reduce_sum(tf.exp(mixture.log_prob(all_values(channels, bits))))
    np.testing.assert_allclose(total, 1.0, atol=2e-4)


@pytest.mark.parametrize("seed", range(5))
def test_8_bit_probabilities_of_one_channel_sum_to_one_but_for_the_doubled_top_bin(seed):
    # 254/255 scales to 0.992, beyond the 0.99 from which a bin reaches to infinity.
    probabilities = tf.exp(random_mixture(1, 4, 8, seed).log_prob(all_values(1, 8)))
    np.testing.assert_allclose(tf.reduce_sum(probabilities[:-1]), 1.0, atol=1e-4)


def test_8_bit_probabilities_of_three_channels_sum_to_one_but_for_the_doubled_top_bin():
    # All 2^24 values are too many: sum over green and blue, for one red, and compare with red's own
    # distribution, which is a mixture of one channel.
    mixture = random_mixture(3, 2, 8, seed=3)
    red, lower = 40 / 255, np.arange(255) / 255
    green, blue = np.meshgrid(lower, lower, indexing="ij")
    values = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.float32)
    total = tf.reduce_logsumexp(mixture.log_prob(values))
    params = mixture.parameters["params"]
    only_red = DiscretizedLogisticMixture(params[:6], 1, 2, 8)  # 2 logits, 2 means, 2 log-scales
    expected = only_red.log_prob(np.array([red], np.float32))
    np.testing.assert_allclose(total, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_a_channel_s_mean_depends_on_the_channels_before_it_only(channels):
    mixture = random_mixture(channels, 1, 8, seed=1)
    x = tf.random.stateless_uniform([channels], (0, 1), 0.1, 0.9)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = [x[c, None] * 2 - 1 for c in range(channels)]
        means = tf.concat(
            [
                mixture._conditional_mean(c, mixture._means, mixture._coefficients, values[:c])
                for c in range(channels)
            ],
            axis=0,
        )
    depends = np.abs(tape.jacobian(means, x).numpy()) > 0
    np.testing.assert_array_equal(depends, np.tri(channels, k=-1, dtype=bool))


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_follow_the_probabilities(channels):
    bits, n = 2, 20_000
    mixture = random_mixture(channels, 3, bits, seed=4)
    samples = mixture.sample(n, seed=(0, 3)).numpy()
    assert samples.min() >= 0 and samples.max() <= 1
    values = all_values(1, bits)[:, 0]
    # The first channel, whose marginal is a mixture of its own, rounded into its bins.
    nearest = np.abs(samples[:, :1] - values).argmin(axis=1)
    observed = np.bincount(nearest, minlength=len(values)) / n
    stored = mixture.parameters["params"].numpy()
    blocks = 2 + channels // 2
    first = np.concatenate([stored[:3], stored[3 : 3 + 2 * 3]])
    assert len(stored) == 3 * (1 + channels * blocks)
    marginal = DiscretizedLogisticMixture(tf.constant(first), 1, 3, bits)
    expected = np.exp(marginal.log_prob(values[:, None]))
    # Five standard deviations of a binomial frequency.
    assert np.all(np.abs(observed - expected) < 5 * np.sqrt(expected / n))


def test_gradients_are_finite_where_the_mass_vanishes():
    params = tf.constant([[0.0, 5.0, -7.0]])  # one component far from the data, and narrow
    with tf.GradientTape() as tape:
        tape.watch(params)
        log_prob = DiscretizedLogisticMixture(params, 1, 1).log_prob([[0.1]])
    assert np.all(np.isfinite(log_prob)) and np.all(np.isfinite(tape.gradient(log_prob, params)))


def test_wrong_number_of_parameters_is_named():
    with pytest.raises(ValueError, match="take 100 parameters per pixel, received 99"):
        DiscretizedLogisticMixture(tf.zeros([99]), 3, 10)
    assert num_logistic_mixture_parameters(1, 10) == 30
