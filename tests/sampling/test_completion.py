"""Completions: what was seen stays, what was not seen says nothing, and the bound rises."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf import NVAE
from nvae_tf.sampling.completion import Completer, _Noise
from tests.conftest import random_images, tiny_model_config

ROWS = 3


@pytest.fixture(scope="module")
def model():
    """With a padding, and weights of which the images differ."""
    tf.keras.utils.set_random_seed(0)
    model = NVAE(tiny_model_config(image_shape=(12, 12, 1), padding=2))
    model.image_head.log_scale.assign(model.image_head.log_scale + 3)
    return model


@pytest.fixture(scope="module")
def images(model):
    return random_images(model.config, ROWS)


def half():
    holes = np.zeros((ROWS, 8, 8), bool)
    holes[:, :, 4:] = True
    return holes


def complete(model, images, holes, completions=2, seed=0, **options):
    batches = Completer(model, **options).batches(images, holes, completions, seed)
    return [np.concatenate(part) for part in zip(*batches)]


def test_seen_pixels_never_change(model, images):
    content = model.crop_padding(images).numpy()
    completed, _, _ = complete(model, images, half(), steps=3)
    assert completed.shape == (ROWS, 2, 8, 8, 1)
    np.testing.assert_array_equal(completed[:, :, :, :4], np.stack([content[:, :, :4]] * 2, 1))
    assert np.all(completed[:, :, :, 4:] % 1 > 0)  # means of a Bernoulli


def test_without_a_hole_the_image_comes_back(model, images):
    completed, hole, _ = complete(model, images, np.zeros((ROWS, 8, 8), bool), steps=2)
    content = model.crop_padding(images).numpy()
    np.testing.assert_array_equal(completed, np.stack([content] * 2, axis=1))
    np.testing.assert_array_equal(hole, 0)


def test_nothing_seen_leads_to_the_prior(model, images):
    holes, first = tf.constant(np.ones((ROWS, 8, 8), bool)), tf.constant(0, tf.int64)
    bound = []
    for steps in (0, 200):
        completer = Completer(model, steps)
        noise = completer._fit(completer._model.weights(), images, holes, 0, first, None)
        seed = tf.constant([0, steps], tf.int64)
        bound.append(completer._bound(images, holes, noise, seed, first))
    assert np.all(bound[0] < -0.1) and np.all(bound[1] > -0.01)  # it is -KL from the prior
    np.testing.assert_array_equal(complete(model, images, holes.numpy(), steps=2)[2], 0)


def test_the_beginning_is_the_posterior_in_terms_of_the_prior_s_noise(model, images):
    completer = Completer(model)
    noise = completer._encode(completer._model.weights(), images)
    for value in (0.0, 1.0):
        latents = []

        def draw(group, top_down, value=value, latents=latents):
            loc, scale = noise.loc[group], tf.exp(noise.log_scale[group])
            prior = model.prior(group, top_down, tf.shape(loc))
            latents.append(prior.loc + prior.scale * (loc + value * scale))
            return prior.loc + prior.scale * loc

        model.top_down(ROWS, draw)
        posterior = []

        def infer(group, top_down, value=value, posterior=posterior):
            zeros, features = tf.zeros_like(noise.loc[group]), model.bottom_up(images)[group]
            posterior.append(model.infer_group(group, features, top_down, zeros + value).latent)
            return model.infer_group(group, features, top_down, zeros).latent

        model.top_down(ROWS, infer)
        for latent, expected in zip(latents, posterior):
            np.testing.assert_allclose(latent, expected, atol=1e-4)


def test_what_the_hole_hides_says_nothing(model, images):
    border = model.config.padding
    other = images.numpy()
    other[:, border:-border, border + 4 : -border] = (
        1 - other[:, border:-border, border + 4 : -border]
    )
    first, hole, seen = complete(model, images, half(), steps=5)
    second, other_hole, other_seen = complete(model, other, half(), steps=5)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(seen, other_seen)
    assert np.all(hole != other_hole)


def test_log_probs_of_hole_and_rest_are_those_of_the_image(model, images):
    completer = Completer(model)
    weights = completer._model.weights()
    noise = completer._encode(weights, images)
    seed, first = tf.constant([1, 0], tf.int64), tf.constant(0, tf.int64)
    _, hole, seen = completer._complete(weights, images, tf.constant(half()), noise, seed, first)
    drawn = [
        m + tf.exp(s) * n
        for m, s, n in zip(noise.loc, noise.log_scale, model.draw_noise(ROWS, (1, 0)))
    ]
    whole = model.likelihood(model.generate(ROWS, noise=drawn)).log_prob(images)
    np.testing.assert_allclose(hole + seen, whole, rtol=1e-4)


def test_steps_make_the_seen_pixels_more_likely(model, images):
    seen = [complete(model, images, half(), 32, steps=steps)[2].mean() for steps in (0, 40)]
    assert seen[0] + 1 < seen[1]


def test_more_steps_raise_the_bound(model, images):
    holes, first = tf.constant(half()), tf.constant(0, tf.int64)
    bounds = []
    for steps in (0, 10, 80):
        completer = Completer(model, steps)
        noise = completer._fit(completer._model.weights(), images, holes, 0, first, None)
        draws = [
            completer._bound(images, holes, noise, tf.constant([7, seed], tf.int64), first)
            for seed in range(50)
        ]
        bounds.append(np.mean(draws))
    assert bounds[0] + 0.5 < bounds[1] and bounds[1] + 0.1 < bounds[2]


def test_the_bound_is_the_seen_pixels_likelihood_less_the_kl(model, images):
    completer = Completer(model)
    holes = tf.constant(half())
    shapes = model.config.latent_shapes
    loc = [tf.random.stateless_normal([ROWS, *s], (0, 1)) for s in shapes]
    log_scale = [0.3 * tf.random.stateless_normal([ROWS, *s], (0, 2)) for s in shapes]
    first = tf.constant(0, tf.int64)
    noise = _Noise(loc, log_scale)
    seed = tf.constant([0, 1], tf.int64)
    bound = completer._bound(images, holes, noise, seed, first)
    standard = tfd.Normal(0.0, 1.0)
    kl = sum(
        tf.reduce_sum(tfd.kl_divergence(tfd.Normal(m, tf.exp(s)), standard), [1, 2, 3])
        for m, s in zip(loc, log_scale)
    )
    draws = model.draw_noise(2 * ROWS, seed)
    latents = [
        tf.repeat(m, 2, axis=0) + tf.exp(tf.repeat(s, 2, axis=0)) * n
        for m, s, n in zip(loc, log_scale, draws)
    ]
    likelihood = model.likelihood(model.generate(2 * ROWS, noise=latents))
    by_pixel = likelihood.log_prob_by_pixel(tf.repeat(images, 2, axis=0))
    seen = tf.reduce_sum(by_pixel[:, :, :4], [1, 2])
    expected = tf.reduce_mean(tf.reshape(seen, [ROWS, 2]), axis=1) - kl
    np.testing.assert_allclose(bound, expected, rtol=1e-4)


def test_completions_depend_on_seed_and_number_alone(model, images):
    whole = complete(model, images, half(), 3, steps=4)
    for other in (
        complete(model, images, half(), 3, steps=4, batch_size=2),
        complete(model, images, half(), 3, steps=4, batch_size=1),
    ):
        for part, expected in zip(other, whole):
            np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-4)
    fewer, _, _ = complete(model, images, half(), 2, steps=4)
    np.testing.assert_array_equal(fewer, whole[0][:, :2])
    again, _, _ = complete(model, images, half(), 3, steps=4)
    np.testing.assert_array_equal(again, whole[0])
    another, _, _ = complete(model, images, half(), 3, steps=4, seed=1)
    assert np.abs(another - whole[0]).max() > 1e-3
    assert np.abs(whole[0][:, 0] - whole[0][:, 1]).max() > 1e-3


def test_refusals(model, images):
    for wrong, message in (
        ({"steps": -1}, "Steps must not be negative"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"learning_rate": float("nan")}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Completer(model, **wrong)
    completer = Completer(model)
    with pytest.raises(ValueError, match=r"of shape \(3, 8, 8\); received \(3, 12, 12\)"):
        completer.batches(images, np.zeros((3, 12, 12), bool))
    with pytest.raises(ValueError, match="completions must be at least 1"):
        completer.batches(images, half(), 0)
