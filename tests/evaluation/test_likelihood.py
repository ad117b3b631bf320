"""Bounds on the likelihood."""

import csv
import io

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from nvae_tf import NVAE
from nvae_tf.evaluation import LikelihoodEvaluator
from nvae_tf.evaluation import likelihood as MODULE
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.training.objective import negative_elbo, objective_terms
from tests.conftest import random_images, tiny_model_config


@pytest.fixture(params=[0, 1], ids=["analytic_kl", "flows"])
def model(request):
    return NVAE(tiny_model_config(num_nf=request.param, padding=1))


def test_one_sample_equals_the_objective_s_terms(model):
    images = random_images(model.config, 6)
    result = LikelihoodEvaluator(model).evaluate([images], num_iw_samples=1, seed=5)
    output = model.infer(images, model.draw_noise(6, [5, 0]))
    terms = objective_terms(model, images, output, kl_coefficient=1.0)
    elbo = negative_elbo(terms).numpy()
    assert result.negative_elbo == pytest.approx(elbo.mean(), rel=1e-5)
    assert result.negative_elbo_standard_error == pytest.approx(
        elbo.std(ddof=1) / np.sqrt(6), rel=1e-4
    )
    assert result.negative_elbo_bits_per_dim == pytest.approx(elbo.mean() / (36 * np.log(2)))
    np.testing.assert_allclose(result.kl_per_group, np.mean(output.kl_per_group, 0), rtol=1e-4)
    bound = -np.mean(output.log_p - output.log_q - terms.reconstruction)
    assert result.iw_bound == pytest.approx(bound, rel=1e-5)


def test_importance_weighting_is_running_the_whole_model_k_times(model):
    images = random_images(model.config, 4)
    result = LikelihoodEvaluator(model).evaluate([images], num_iw_samples=7, seed=2)
    weights, elbos = [], []
    for k in range(7):
        output = model.infer(images, model.draw_noise(4, [2, k]))
        terms = objective_terms(model, images, output, kl_coefficient=1.0)
        weights.append(output.log_p - output.log_q - terms.reconstruction)
        elbos.append(negative_elbo(terms))
    bound = np.log(7) - tf.reduce_logsumexp(tf.stack(weights), axis=0)
    assert result.iw_bound == pytest.approx(float(tf.reduce_mean(bound)), rel=1e-5)
    assert result.negative_elbo == pytest.approx(float(tf.reduce_mean(elbos)), rel=1e-5)
    # By Jensen's inequality, on the same draws.
    assert result.iw_bound <= -float(tf.reduce_mean(weights)) + 1e-4


@pytest.mark.parametrize("draws", [1, 7, 33, 64])
def test_draws_are_the_same_in_any_company(monkeypatch, draws):
    model = NVAE(tiny_model_config())
    images = random_images(model.config, 3)
    together = LikelihoodEvaluator(model).per_image([images], draws, seed=4)
    monkeypatch.setattr(MODULE, "_ROWS", 1)
    alone = LikelihoodEvaluator(model).per_image([images], draws, seed=4)
    np.testing.assert_allclose(together.iw_bound, alone.iw_bound, rtol=1e-5)
    np.testing.assert_allclose(together.kl_per_group, alone.kl_per_group, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.reconstruction, alone.reconstruction, rtol=1e-5)


@hypothesis.given(st.integers(1, 300), st.integers(1, 5000))
def test_passes_are_as_few_as_rows_allow_and_nearly_full(batch, draws):
    together = MODULE._draws_per_pass(batch, draws)
    passes = -(-draws // together)
    assert together == 1 or together * batch <= MODULE._ROWS
    assert passes == -(-draws // max(MODULE._ROWS // batch, 1))
    assert together * passes - draws < passes


def test_the_size_of_the_batches_makes_no_difference(monkeypatch):
    traced = []
    draw = LikelihoodEvaluator._draw_together
    monkeypatch.setattr(
        LikelihoodEvaluator,
        "_draw_together",
        lambda self, images, *rest: traced.append(images.shape[0]) or draw(self, images, *rest),
    )
    model = NVAE(tiny_model_config())
    images = random_images(model.config, 5)
    seen = []
    evaluator = LikelihoodEvaluator(model)
    split = evaluator.per_image([images[:4], images[4:]], 3, after_batch=seen.append)
    assert seen == [4, 1] and traced == [4]
    whole = evaluator.per_image([images], 3)
    np.testing.assert_allclose(split.negative_elbo, whole.negative_elbo, rtol=1e-5)
    np.testing.assert_allclose(split.iw_bound, whole.iw_bound, rtol=1e-5)
    summary = split.summary(model.config)
    assert summary.num_images == 5
    assert summary.negative_elbo == pytest.approx(whole.negative_elbo.mean(), rel=1e-5)


def test_evaluations_follow_the_model_s_weights():
    model = NVAE(tiny_model_config())
    images, evaluator = random_images(model.config), LikelihoodEvaluator(model)
    before = evaluator.per_image([images])
    model.image_head.bias.assign(model.image_head.bias + 1)
    after = evaluator.per_image([images])
    assert np.abs(after.reconstruction - before.reconstruction).min() > 0.1
    again = LikelihoodEvaluator(model).per_image([images])
    np.testing.assert_array_equal(after.reconstruction, again.reconstruction)


def test_means_over_draws_lose_no_digits():
    found = LikelihoodEvaluator(NVAE(tiny_model_config())).per_image(
        [random_images(tiny_model_config())], 2
    )
    for values in (found.reconstruction, found.kl_per_group, found.iw_bound):
        assert values.dtype == np.float64


def test_a_table_has_a_line_for_each_image():
    found = LikelihoodEvaluator(NVAE(tiny_model_config())).per_image(
        [random_images(tiny_model_config(), 3)]
    )
    files = ["a.png", "b, c.png", 'd"e".png']
    rows = list(csv.DictReader(io.StringIO(found.to_csv(files))))
    assert list(rows[0])[:4] == ["image", "file", "negative_elbo", "iw_bound"]
    assert [(row["image"], row["file"]) for row in rows] == list(zip("012", files))
    bounds = [float(row["iw_bound"]) for row in rows]
    np.testing.assert_allclose(bounds, found.iw_bound, atol=1e-6)
    without = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert without == [{k: v for k, v in row.items() if k != "file"} for row in rows]


def test_nothing_to_evaluate():
    evaluator = LikelihoodEvaluator(NVAE(tiny_model_config()))
    with pytest.raises(ValueError, match="no images"):
        evaluator.evaluate([])
    with pytest.raises(ValueError, match="at least 1, received 0"):
        evaluator.evaluate([], num_iw_samples=0)


def test_rows_of_earlier_images_are_part_of_the_result():
    model = NVAE(tiny_model_config())
    images = random_images(model.config, 7)
    evaluator = LikelihoodEvaluator(model)
    whole = evaluator.per_image([images[:2], images[2:4], images[4:6], images[6:]], 3, seed=1)
    kept = KeptRows()
    kept.add((whole.reconstruction[:4], whole.kl_per_group[:4], whole.iw_bound[:4]))
    seen = []
    resumed = evaluator.per_image([images[4:6], images[6:]], 3, 1, seen.append, kept)
    assert seen == [2, 1]
    np.testing.assert_array_equal(resumed.iw_bound, whole.iw_bound)
    np.testing.assert_array_equal(resumed.reconstruction, whole.reconstruction)
    np.testing.assert_array_equal(resumed.kl_per_group, whole.kl_per_group)
    complete = evaluator.per_image([], 3, 1, kept=kept)  # which stopped after the last image
    np.testing.assert_array_equal(complete.iw_bound, whole.iw_bound)
