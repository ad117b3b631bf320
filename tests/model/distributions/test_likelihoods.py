"""Distributions over images: shapes, padding, ranges."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions import image_distribution
from nvae_tf.model.distributions.likelihoods import PixelNormal, num_likelihood_parameters
from tests.conftest import random_images

CASES = [
    {"likelihood": "bernoulli", "num_x_bits": 1},
    {"likelihood": "logistic_mixture", "num_x_bits": 5},
    {"likelihood": "normal", "num_x_bits": 8},
]


def model_config(case, channels=3, padding=0):
    return ModelConfig(
        image_shape=(8, 6, channels),
        padding=padding,
        num_latent_scales=1,
        num_mixture_dec=3,
        **case,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["likelihood"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_shapes_and_ranges(case, channels):
    config = model_config(case, channels)
    logits = tf.random.stateless_normal([2, 8, 6, num_likelihood_parameters(config)], (0, 1))
    distribution = image_distribution(config, logits)
    assert distribution.batch_shape == [2]
    assert distribution.event_shape == [8, 6, channels]
    assert distribution.log_prob(random_images(config, 2)).shape == [2]
    for images in (distribution.mean(), distribution.sample(seed=(0, 2))):
        assert images.shape == [2, 8, 6, channels]
        assert np.all((images >= 0) & (images <= 1))
    assert distribution.sample(4, seed=(0, 2)).shape == [4, 2, 8, 6, channels]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["likelihood"])
def test_padding_does_not_count(case):
    config = model_config(case, padding=2)
    logits = tf.random.stateless_normal([2, 8, 6, num_likelihood_parameters(config)], (0, 1))
    images = random_images(config, 2)
    inside = np.zeros((1, 8, 6, 1), np.float32)
    inside[:, 2:-2, 2:-2] = 1
    log_prob = image_distribution(config, logits).log_prob(images)
    changed_border = image_distribution(config, logits).log_prob(images * inside)
    np.testing.assert_array_equal(log_prob, changed_border)
    whole = image_distribution(model_config(case), logits).log_prob(images)
    assert np.all(np.abs(whole - log_prob) > 1e-3)
    cropped = image_distribution(model_config(case), logits[:, 2:-2, 2:-2]).log_prob(
        images[:, 2:-2, 2:-2]
    )
    np.testing.assert_allclose(log_prob, cropped, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["likelihood"])
def test_log_prob_is_the_sum_over_pixels_that_do_not_see_each_other(case):
    config = model_config(case, padding=1)
    images = random_images(config, 2)
    logits = tf.random.stateless_normal([2, 8, 6, num_likelihood_parameters(config)], (0, 1))
    distribution = image_distribution(config, logits)
    by_pixel = distribution.log_prob_by_pixel(images)
    assert by_pixel.shape == (2, 6, 4)
    np.testing.assert_allclose(
        tf.reduce_sum(by_pixel, [1, 2]), distribution.log_prob(images), rtol=1e-5
    )
    other = images.numpy()
    other[:, 3, 2] = 1 - other[:, 3, 2]  # (2, 1) without the padding
    changed = distribution.log_prob_by_pixel(other) != by_pixel
    assert np.argwhere(changed).tolist() == [[0, 2, 1], [1, 2, 1]]


def test_bernoulli_log_prob_is_the_cross_entropy():
    config = model_config(CASES[0], channels=1)
    logits = tf.random.stateless_normal([2, 8, 6, 1], (0, 1))
    images = random_images(config, 2)
    expected = -tf.reduce_sum(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits), [1, 2, 3]
    )
    np.testing.assert_allclose(
        image_distribution(config, logits).log_prob(images), expected, rtol=1e-5
    )


def test_deviations_of_normal_pixels_are_those_of_their_samples():
    pixels = PixelNormal(tf.zeros([2]), tf.constant([-2.0, -1.5]))  # far from 0 and 1
    samples = pixels.sample(20_000, seed=0)
    np.testing.assert_allclose(pixels.stddev(), tf.math.reduce_std(samples, 0), rtol=0.02)
    np.testing.assert_allclose(pixels.variance(), tf.math.reduce_variance(samples, 0), rtol=0.04)
