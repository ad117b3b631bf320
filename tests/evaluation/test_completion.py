"""The score of completions, against what can be computed by hand."""

import math

import numpy as np
import pytest

from nvae_tf.evaluation.completion import PixelFrequencies, score
from tests.conftest import tiny_model_config

BINARY = tiny_model_config()
TWO_BITS = tiny_model_config(likelihood="logistic_mixture", num_x_bits=2, image_shape=(8, 8, 3))


def test_frequencies_of_binary_pixels():
    images = np.zeros((4, 1, 2, 1), np.uint8)
    images[0, 0, 0], images[1, 0, 0] = 255, 51  # one and a fifth of four
    log_prob = PixelFrequencies(images, BINARY).log_prob_by_pixel(np.array([[[[1.0], [0.0]]]]))
    np.testing.assert_allclose(np.exp(log_prob), [[[1.7 / 5, 4.5 / 5]]])


def test_frequencies_of_values():
    images = np.array([0, 63, 64, 255, 255], np.uint8).reshape(5, 1, 1, 1)
    images = np.concatenate([images, images, np.zeros_like(images)], axis=3)  # three channels
    frequencies = PixelFrequencies(images, TWO_BITS)
    first = np.array([0, 1, 2, 3]) / 3
    pixels = np.stack([first, np.ones(4), np.zeros(4)], axis=1).reshape(4, 1, 1, 3)
    by_hand = [np.log((n + 0.25) * 2.25 * 5.25 / 6**3) for n in (2, 1, 0, 2)]
    np.testing.assert_allclose(frequencies.log_prob_by_pixel(pixels).ravel(), by_hand)


def test_frequencies_sum_to_one_however_many_images_there_are():
    images = np.random.default_rng(0).integers(0, 256, (2500, 2, 2, 1), np.uint8)
    frequencies = PixelFrequencies(images, TWO_BITS)
    values = np.broadcast_to((np.arange(4) / 3)[:, None, None, None], (4, 2, 2, 1))
    np.testing.assert_allclose(np.exp(frequencies.log_prob_by_pixel(values)).sum(axis=0), 1)


def test_a_density_is_not_compared():
    config = tiny_model_config(likelihood="normal", num_x_bits=8)
    with pytest.raises(ValueError, match="normal likelihood gives densities"):
        PixelFrequencies(np.zeros((1, 8, 8, 1), np.uint8), config)


def test_score():
    frequencies = PixelFrequencies(np.zeros((1, 2, 2, 1), np.uint8), BINARY)  # 1/4 and 3/4
    images = np.zeros((2, 2, 2, 1))
    images[0, 0, 0] = 1
    holes = np.zeros((2, 2, 2), bool)
    holes[:, 0] = True
    hole_log_prob = np.log([[0.1, 0.3, 0.5], [0.2, 0.2, 0.8]])
    result = score(hole_log_prob, images, holes, frequencies)
    assert (result.num_images, result.hole_pixels) == (2, 2.0)
    assert list(result.mixture) == [1, 2, 3]
    assert result.mixture[1] == pytest.approx(-np.log([0.1, 0.2]).mean())
    assert result.mixture[2] == pytest.approx(-np.log([0.2, 0.2]).mean())
    assert result.mixture[3] == pytest.approx(-np.log([0.3, 0.4]).mean())
    assert result.pixel_frequencies == pytest.approx(-np.log([3 / 16, 9 / 16]).mean())
    spread = abs(math.log(0.3 / 0.4)) / 2  # of two values, over the root of two
    assert result.mixture_standard_error[3] == pytest.approx(spread)
