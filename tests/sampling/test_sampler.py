"""Temperatures, per-row noise, and images that depend on their seed alone."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.sampling.images import to_uint8
from nvae_tf.sampling.sampler import Sampler, group_temperatures, row_noise, row_samples
from tests.conftest import tiny_model_config


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    model = NVAE(tiny_model_config(image_shape=(12, 12, 1), padding=2))
    model.image_head.log_scale.assign(model.image_head.log_scale + 3)  # for images that differ
    return model


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model, batch_size=3)


def draw(sampler, *arguments, **options):
    return np.concatenate(list(sampler.batches(*arguments, **options))).astype(int)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.7, [0.7, 0.7, 0.7]),
        ([0.7], [0.7, 0.7, 0.7]),
        (["0.5", "0.9"], [0.5, 0.9, 0.9]),  # the top scale has one group, the next one two
        ([0.5, 0.9, 1.0], [0.5, 0.9, 1.0]),
        (0, [0, 0, 0]),
    ],
)
def test_temperatures_of_the_groups(temperature, expected):
    values = group_temperatures(tiny_model_config(), temperature)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-7)


def test_as_many_scales_as_groups_is_no_ambiguity():
    config = tiny_model_config(num_groups_per_scale=1)
    assert config.num_groups == config.num_latent_scales == 2
    assert group_temperatures(config, [0.25, 0.5]).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("wrong", [[], [1.0] * 4, -0.1, [0.5, np.nan], np.inf, "a", [[0.7]]])
def test_temperatures_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match=r"the 2 scales or one for each of the 3 groups.*received"):
        group_temperatures(tiny_model_config(), wrong)


def test_the_images_of_a_call_are_drawn_with_its_moment_s_weights(model, sampler):
    before = draw(sampler, 6, seed=1)
    first = sampler.batches(6, seed=1)
    bias, own = model.image_head.bias, tf.identity(model.image_head.bias)
    bias.assign(own + 1)
    second = sampler.batches(6, seed=1)
    changed = next(second)
    np.testing.assert_array_equal(np.concatenate(list(first)), before)
    assert np.abs(changed - before[:3]).max() > 10
    bias.assign(own)


def test_noise_of_a_row_is_that_of_its_seed(model):
    seeds = tf.constant([[5, 0], [5, 1], [5, 0]], tf.int64)
    noise = row_noise(model, seeds)
    for group, alone in enumerate(model.draw_noise(1, seeds[1])):
        np.testing.assert_array_equal(noise[group][1], alone[0])
        np.testing.assert_array_equal(noise[group][0], noise[group][2])
        assert np.abs(noise[group][0] - noise[group][1]).max() > 0.1


def test_an_image_depends_on_its_seed_and_number_alone(model, sampler):
    images = draw(sampler, 7, seed=4)
    assert images.shape == (7, 8, 8, 1)
    assert len({image.tobytes() for image in images}) == 7
    np.testing.assert_array_equal(draw(sampler, 4, seed=4), images[:4])
    other_size = draw(Sampler(model, batch_size=5), 7, seed=4)
    assert np.abs(other_size - images).max() <= 1  # kernels may round differently
    assert np.abs(draw(sampler, 7, seed=5) - images).max() > 1


def test_images_are_what_the_model_generates(model, sampler):
    temperatures = [0.5, 0.9, 0.9]
    for number in (0, 4):
        noise = model.draw_noise(1, tf.constant([2, number], tf.int64))
        logits = model.generate(1, temperatures, noise)
        expected = to_uint8(model.crop_padding(model.likelihood(logits).mean())).astype(int)
        image = draw(sampler, 5, temperature=[0.5, 0.9], seed=2)[number]
        assert np.abs(image - expected[0]).max() <= 1


def test_batches_come_one_by_one(sampler):
    endless = sampler.batches(10**12)
    assert next(endless).shape == (3, 8, 8, 1)
    assert [len(batch) for batch in sampler.batches(7)] == [3, 3, 1]
    assert list(sampler.batches(0)) == []


def test_samples_of_the_likelihood_are_binary_and_do_not_depend_on_the_batch(model):
    images = draw(Sampler(model, "sample", batch_size=3), 5, seed=1)
    assert set(np.unique(images)) == {0, 255}
    other_size = draw(Sampler(model, "sample", batch_size=4), 5, seed=1)
    assert np.mean(images != other_size) < 0.01  # a uniform draw may lie on the rounding's edge


def test_samples_of_the_likelihood_differ_from_seed_to_seed(model):
    logits = tf.zeros([2, 12, 12, 1])
    seeds = tf.constant([[0, 45520], [0, 47586]], tf.int64)  # which are one, folded as 32 bits
    first, second = row_samples(model, logits, seeds)
    assert np.any(first != second)


def test_samples_of_the_likelihood_have_its_mean(model):
    count = 400
    logits = tf.random.stateless_normal([1, 12, 12, 1], (0, 0))
    seeds = tf.stack([tf.zeros([count], tf.int64), tf.range(count, dtype=tf.int64)], axis=1)
    graph = tf.function(lambda seeds: row_samples(model, tf.repeat(logits, count, 0), seeds))
    samples = graph(seeds).numpy()
    probability = tf.sigmoid(logits)[0].numpy()
    deviations = (samples.mean(0) - probability) / np.sqrt(probability * (1 - probability) / count)
    assert np.abs(deviations).max() < 4.5  # of 144 normal values: once in 1000 seeds
    assert 0.85 < deviations.std() < 1.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": -1}, "at least 0, received -1"),
        ({"number": 1, "seed": -1}, "seed must be at least 0.*received -1"),
        ({"number": 1, "temperature": [1, 1, 1, 1]}, "for each of the 3 groups"),
    ],
)
def test_wrong_requests_are_refused_at_once(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler.batches(**options)


def test_wrong_samplers(model):
    with pytest.raises(ValueError, match="one of mean, sample; received 'mode'"):
        Sampler(model, "mode")
    with pytest.raises(ValueError, match="at least 1, received 0"):
        Sampler(model, batch_size=0)
