"""What the groups are used for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.evaluation import HierarchyEvaluator, LikelihoodEvaluator
from nvae_tf.evaluation.hierarchy import ACTIVE_VARIANCE
from tests.conftest import random_images, tiny_model_config


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = NVAE(tiny_model_config(padding=1))
    # A fresh posterior says next to nothing about the image.
    for group in model.groups[:2]:
        for variable in group.posterior_head.trainable_variables:
            variable.assign(20 * variable)
    return model


@pytest.fixture(scope="module")
def evaluator(model):
    return HierarchyEvaluator(model)


def test_everything_from_the_posterior_is_the_elbo(model, evaluator):
    images = random_images(model.config, 5)
    batches = [images[:3], images[3:]]
    result = evaluator.evaluate(batches, seed=4)
    bound = LikelihoodEvaluator(model).evaluate(batches, seed=4)
    assert result.num_images == 5
    assert result.negative_elbo[-1] == pytest.approx(bound.negative_elbo, rel=1e-5)
    np.testing.assert_allclose(result.kl_per_group, bound.kl_per_group, rtol=1e-4)
    np.testing.assert_allclose(np.sum(result.kl_per_channel, 1), result.kl_per_group, rtol=1e-6)
    np.testing.assert_allclose(np.diff(result.rate), result.kl_per_group, rtol=1e-6)
    assert result.rate[0] == 0


def test_nothing_from_the_posterior_is_a_sample(model, evaluator):
    images = random_images(model.config, 5)
    logits = model.generate(5, 1.0, model.draw_noise(5, [4, 0]))
    likelihood = model.likelihood(logits)
    distortion = evaluator.evaluate([images], seed=4).distortion
    assert distortion[0] == pytest.approx(-np.mean(likelihood.log_prob(images)), rel=1e-5)
    strips = evaluator.strips(images, seed=4)
    assert strips.shape == (4, 5, 6, 6, 1)
    np.testing.assert_allclose(strips[0], model.crop_padding(likelihood.mean()), atol=1e-5)
    whole = model.likelihood(model.infer(images, model.draw_noise(5, [4, 0])).logits).mean()
    np.testing.assert_allclose(strips[-1], model.crop_padding(whole), atol=1e-5)


def test_active_units_are_those_whose_mean_varies(model, evaluator):
    images = random_images(model.config, 7)
    result = evaluator.evaluate([images[:4], images[4:]])
    zeros = [tf.zeros([7, *shape]) for shape in model.config.latent_shapes]
    means = model.infer(images, zeros).latents
    variances = [np.var(mean, axis=0, dtype=np.float64) for mean in means]
    assert result.units == [variance.size for variance in variances]
    assert result.active_units == [int((v > ACTIVE_VARIANCE).sum()) for v in variances]
    assert 0 < sum(result.active_units) < sum(result.units)


def test_nothing_to_evaluate(evaluator):
    with pytest.raises(ValueError, match="no images"):
        evaluator.evaluate([])
