"""The divergence between the posteriors of images and their views."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf import NVAE
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.stacks import read_values
from nvae_tf.training.consistency import infer_with_views
from tests.conftest import random_images, tiny_model_config


@pytest.fixture(scope="module")
def model():
    return NVAE(tiny_model_config(arch_instance="res_elu"))  # no batch statistics


def twice(images):
    return tf.concat([images, images], axis=0)


def test_an_image_is_consistent_with_itself(model):
    images = twice(random_images(model.config))
    noise = model.draw_noise(6, (0, 0))
    _, divergences = infer_with_views(model, images, noise)
    assert divergences.shape == [3, model.config.num_groups]
    np.testing.assert_allclose(divergences, 0, atol=1e-5)


def test_the_divergence_is_that_of_the_hierarchies(model):
    images, views = random_images(model.config, seed=0), random_images(model.config, seed=1)
    noise = model.draw_noise(6, (0, 0))
    output, divergences = infer_with_views(model, tf.concat([images, views], 0), noise)
    alone = model.infer(views, [part[3:] for part in noise], training=True)
    np.testing.assert_allclose(output.logits[3:], alone.logits, atol=1e-5)
    np.testing.assert_allclose(output.kl_per_group[3:], alone.kl_per_group, rtol=1e-4, atol=1e-5)
    # By replaying what was drawn for the views, with the features of either.
    features = [model.bottom_up(x, training=True) for x in (images, views)]
    expected = []

    def replay(group, top_down):
        of_image, of_view = (model.posterior(group, f[group], top_down) for f in features)
        expected.append(tf.reduce_sum(tfd.kl_divergence(of_view, of_image), [1, 2, 3]))
        return alone.latents[group]

    model.top_down(3, replay, training=True)
    np.testing.assert_allclose(divergences, tf.stack(expected, 1), rtol=1e-4, atol=1e-5)
    assert np.all(divergences.numpy() > 0)


def test_the_gradient_is_that_of_the_divergence(model):
    images = tf.concat([random_images(model.config, seed=s) for s in (0, 1)], axis=0)
    noise = model.draw_noise(6, (0, 0))
    values = read_values(model.variables)
    weights = {v.path: values[v.path] for v in model.trainable_variables}

    def divergence(weights):
        with functional_call(model, values | weights):
            return tf.reduce_sum(infer_with_views(model, images, noise)[1])

    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = divergence(weights)
    gradients = {p: g for p, g in tape.gradient(value, weights).items() if g is not None}
    assert any("posterior" in path for path in gradients)
    size = float(tf.linalg.global_norm(list(gradients.values())))
    step = 1e-2 / size

    def moved(sign):
        return float(
            divergence(weights | {p: weights[p] + sign * step * g for p, g in gradients.items()})
        )

    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(size**2, rel=0.02)
