"""Views of images: what they keep and how far they go."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_tf.data import preprocess, training_input, training_seed
from nvae_tf.data.views import random_views
from nvae_tf.noise import uniform_rows
from tests.conftest import tiny_experiment_config


def square(size, count, channels=1):
    """White squares of a quarter of the height in the middle."""
    images = np.zeros((count, size, size, channels), np.uint8)
    quarter = size // 4
    middle = slice(size // 2 - quarter // 2, size // 2 + quarter // 2)
    images[:, middle, middle] = 255
    return images


@settings(max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), channels=st.sampled_from([1, 3]))
def test_rows_are_those_of_a_larger_batch(seed, count, channels):
    images = np.random.default_rng(seed).integers(256, size=(9, 6, 8, channels), dtype=np.uint8)
    seed = tf.constant([seed, 1], tf.int64)
    whole = random_views(images, seed)
    assert whole.dtype == tf.uint8 and whole.shape == images.shape
    rows = random_views(images[-count:], seed, 9 - count)
    np.testing.assert_array_equal(rows, whole[-count:])


def test_the_geometry_is_independent_of_the_binarisation():
    config = tiny_experiment_config()
    images = np.full((64, *config.model.content_shape), 128, np.uint8)
    seed = training_seed(config, tf.constant(0), of_views=True)
    expected = preprocess(random_views(images, seed + 2), config.model, seed)
    views = training_input(tf.constant(images), config, tf.constant(0), as_views=True)
    np.testing.assert_array_equal(views, expected)
    # The numbers that a view is made of are not those that decide its pixels.
    angles = uniform_rows(64, [4, 1, 1], seed + 2)[:, 0, 0, 0].numpy()
    coins = uniform_rows(64, config.model.content_shape, seed).numpy().ravel()
    assert np.isin(angles, coins).mean() < 0.1  # by chance


def test_extents():
    size, count = 56, 512
    views = random_views(square(size, count), tf.constant([0, 0], tf.int64)).numpy()[..., 0] / 255.0
    area = views.sum(axis=(1, 2))
    places = np.arange(size) - (size - 1) / 2
    down = (views.sum(axis=2) @ places) / area
    right = (views.sum(axis=1) @ places) / area
    for shift in (down, right):  # up to 4 pixels of 56, uniformly
        assert 3.8 < abs(shift).max() < 4.1
        assert abs(shift.mean()) < 5 * 4 / np.sqrt(3 * count)
    side = np.sqrt(area) / 14
    assert 0.89 < side.min() < 0.91 and 1.09 < side.max() < 1.11
    # The angle from the second moments of a bar, around its own centre.
    bar = square(size, count)
    bar[:, :, size // 2 - 14 : size // 2 + 14] = bar[:, :, size // 2 - 1 : size // 2]
    turned = random_views(bar, tf.constant([0, 0], tf.int64)).numpy()[..., 0] / 255.0
    total = turned.sum(axis=(1, 2))
    y = places[:, None] - ((turned.sum(axis=2) @ places) / total)[:, None, None]
    x = places[None, :] - ((turned.sum(axis=1) @ places) / total)[:, None, None]
    moments = [(turned * product).sum(axis=(1, 2)) for product in (x * y, x * x, y * y)]
    angle = np.degrees(0.5 * np.arctan2(2 * moments[0], moments[1] - moments[2]))
    assert 14 < abs(angle).max() < 15.5
    assert abs(angle.mean()) < 5 * 15 / np.sqrt(3 * count)


def test_nothing_stays_nothing():
    assert not np.any(random_views(np.zeros((3, 5, 5, 3), np.uint8), tf.constant([0, 0], tf.int64)))


def test_input_and_views_have_noise_of_their_own():
    config = tiny_experiment_config()
    gray = np.full((64, 8, 8, 1), 128, np.uint8)
    images, views = (training_input(gray, config, 0, as_views=views) for views in (False, True))
    inside = (slice(None), slice(3, 5), slice(3, 5))  # which no view moves out of the image
    assert 0.3 < np.mean(images[inside] == views[inside]) < 0.7
    assert 0.3 < np.mean(views[inside]) < 0.7
