"""Bounds with the groups next to the pixels from the prior, and what is made of them."""

import csv
import io

import keras
import numpy as np
import pytest

from nvae_tf import NVAE
from nvae_tf.data import ImageSet
from nvae_tf.evaluation import HierarchyEvaluator, LikelihoodEvaluator, NoveltyEvaluator
from nvae_tf.evaluation.detection import ScoreSeparation, Separation
from nvae_tf.evaluation.novelty import ImageNovelty
from nvae_tf.evaluation.novelty_suite import NoveltyStudy, ScoredSet, Selection
from tests.conftest import random_images, tiny_model_config


@pytest.fixture(scope="module", params=[0, 1], ids=["analytic_kl", "flows"])
def model(request):
    keras.utils.set_random_seed(0)
    model = NVAE(tiny_model_config(padding=1, num_nf=request.param))
    # A fresh posterior says next to nothing about the image.
    for group in model.groups:
        for variable in group.posterior_head.trainable_variables:
            variable.assign(20 * variable)
    return model


@pytest.fixture(scope="module")
def evaluator(model):
    return NoveltyEvaluator(model)


def test_nothing_replaced_is_the_elbo(model, evaluator):
    images = random_images(model.config, 5)
    novelty = evaluator.per_image([images], seed=4)
    expected = LikelihoodEvaluator(model).per_image([images], seed=4)
    assert novelty.bounds.shape == (5, 4)
    np.testing.assert_allclose(novelty.bound, -expected.negative_elbo, rtol=1e-5)
    np.testing.assert_array_equal(novelty.bounds[:, 0], novelty.bound)
    np.testing.assert_array_equal(novelty.llr, novelty.bound[:, None] - novelty.bounds[:, 1:])
    np.testing.assert_array_equal(novelty.scores[:, 0], -novelty.bound)
    np.testing.assert_array_equal(novelty.scores[:, 1:], novelty.llr)


def test_bounds_of_the_images_have_the_hierarchy_s_means(model, evaluator):
    images = random_images(model.config, 5)
    novelty = evaluator.per_image([images], seed=4)
    hierarchy = HierarchyEvaluator(model).evaluate([images], seed=4)
    # There, the first groups are counted; here, the last ones.
    means = -novelty.bounds.mean(axis=0)[::-1]
    np.testing.assert_allclose(means, hierarchy.negative_elbo, rtol=1e-4)
    assert np.ptp(means) > 1


def test_everything_replaced_is_a_sample_s_likelihood(model, evaluator):
    images = random_images(model.config, 5)
    likelihood = model.likelihood(model.generate(5, 1.0, model.draw_noise(5, [4, 0])))
    bounds = evaluator.per_image([images], seed=4).bounds
    np.testing.assert_allclose(bounds[:, -1], likelihood.log_prob(images), rtol=1e-4)


def test_several_draws_weigh_the_bound_and_average_the_others(model, evaluator):
    images = random_images(model.config, 4)
    novelty = evaluator.per_image([images], num_iw_samples=3, seed=2)
    expected = LikelihoodEvaluator(model).per_image([images], 3, seed=2)
    np.testing.assert_allclose(novelty.bound, -expected.iw_bound, rtol=1e-5)
    np.testing.assert_allclose(novelty.bounds[:, 0], -expected.negative_elbo, rtol=1e-5)
    logits = [model.generate(4, 1.0, model.draw_noise(4, [2, draw])) for draw in range(3)]
    samples = np.mean([model.likelihood(values).log_prob(images) for values in logits], axis=0)
    np.testing.assert_allclose(novelty.bounds[:, -1], samples, rtol=1e-4)


def test_neither_batches_nor_devices_make_a_difference(model, evaluator):
    images = random_images(model.config, 5)
    seen = []
    whole = evaluator.per_image([images], 2, seed=3)
    split = evaluator.per_image([images[:2], images[2:4], images[4:]], 2, 3, seen.append)
    assert seen == [2, 2, 1]
    two = NoveltyEvaluator(model, ["/CPU:0", "/CPU:1"]).per_image([images[:3], images[3:]], 2, 3)
    for other in (split, two):
        np.testing.assert_allclose(other.bounds, whole.bounds, rtol=1e-4)
        np.testing.assert_allclose(other.bound, whole.bound, rtol=1e-4)
    another = evaluator.per_image([images], 2, seed=4)
    assert np.all(np.abs(another.bounds - whole.bounds) > 1e-3)


def test_nothing_to_score(evaluator):
    with pytest.raises(ValueError, match="no images"):
        evaluator.per_image([])
    with pytest.raises(ValueError, match="at least 1, received 0"):
        evaluator.per_image([], num_iw_samples=0)


def test_weights_of_no_use_are_refused():
    model = NVAE(tiny_model_config())
    variable = model.groups[0].posterior_head.trainable_variables[0]
    variable.assign(variable * np.nan)
    with pytest.raises(ValueError, match="bounds of 3 of 3 images are not finite"):
        NoveltyEvaluator(model).per_image([random_images(model.config, 3)])


def test_metrics_of_scores_that_one_can_count():
    pytest.importorskip("sklearn", reason="needs the extra detect")
    # In order: novel 9, known 8, novel 7, 6, 5, known 4, novel 3, known 2, 1.
    separation = Separation.of(np.array([1.0, 2, 4, 8]), np.array([3.0, 5, 6, 7, 9]))
    # Pairs in which the novel one is larger: 2 + 3 + 3 + 3 + 4 of 20.
    assert separation.auroc == pytest.approx(15 / 20)
    # Precision at each novel image: 1/1, 2/3, 3/4, 4/5, 5/7.
    assert separation.auprc == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 5 + 5 / 7) / 5)
    # Four of five novel ones are at least 5, as is one of four known ones.
    assert separation.fpr_at_80_tpr == pytest.approx(1 / 4)
    perfect = Separation.of(np.arange(3.0), np.arange(3.0) + 3)
    assert (perfect.auroc, perfect.auprc, perfect.fpr_at_80_tpr) == (1, 1, 0)


def test_the_least_of_the_best_ks_is_chosen():
    pytest.importorskip("sklearn", reason="needs the extra detect")
    known = np.array([[1.0, 5, 0, 0], [2.0, 6, 1, 1]])
    novel = np.array([[0.0, 5, 2, 2], [0.5, 6, 3, 3]])
    result = ScoreSeparation.of(known, novel)
    assert (result.bound.auroc, [llr.auroc for llr in result.llr]) == (0, [0.5, 1, 1])
    assert result.best_k == 2


def test_metrics_need_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'nvae-tf\[detect\]'"):
        Separation.of(np.zeros(1), np.ones(1))


def test_a_selection_is_drawn_once_and_divided():
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    files = [f"{number}.png" for number in range(50)]
    known = ImageSet(images, files)
    selection = Selection.draw(known, 20, 0.3, seed=1)
    assert selection.files == [f"{number}.png" for number in selection.numbers]
    np.testing.assert_array_equal(selection.images[:, 0, 0, 0], selection.numbers)
    assert len(set(selection.numbers)) == 20 and np.all(np.diff(selection.numbers) > 0)
    assert selection.validation.sum() == 6
    again, another = (Selection.draw(ImageSet(images), 20, 0.3, seed) for seed in (1, 2))
    np.testing.assert_array_equal(selection.numbers, again.numbers)
    np.testing.assert_array_equal(selection.validation, again.validation)
    assert list(selection.numbers) != list(another.numbers)
    whole = Selection.draw(known, None, 0.0, seed=1)
    assert whole.numbers.tolist() == list(range(50)) and not whole.validation.any()
    assert whole.images is images  # and no copy of what may be a mapped file
    assert whole.files == files and again.files is None
    for fraction in (1e-9, 1 - 1e-9):  # neither part is empty
        assert Selection.draw(known, 2, fraction, 0).validation.sum() == 1
    with pytest.raises(ValueError, match="set of one image cannot be divided"):
        Selection.draw(known.first(1), None, 0.2, 0)


def scored(name, offset, files=None):
    """Ten images with four validation images, and a novelty of two groups."""
    images = np.zeros((10, 4, 4, 1), np.uint8)
    validation = np.arange(10) < 4
    bound = np.linspace(-20, -10, 10)
    llr = np.stack([np.zeros(10), np.arange(10.0), np.arange(10.0)], axis=1)
    llr[validation, 1] += offset  # what separates validation images only
    llr[~validation, 2] += offset
    novelty = ImageNovelty(1, bound, bound[:, None] - llr)
    return ScoredSet(name, Selection(images, np.arange(10) * 3, validation, files), novelty)


def test_k_is_chosen_on_validation_images_alone():
    pytest.importorskip("sklearn", reason="needs the extra detect")
    study = NoveltyStudy(scored("known", 0), scored("novel", 100))
    result = study.result()
    assert study.chosen_k == result["chosen_k"] == 1
    assert [llr["auroc"] for llr in result["validation"]["llr"]] == [1, 0.5]
    assert [llr["auroc"] for llr in result["test"]["llr"]] == [0.5, 1]
    assert result["validation"]["bound"]["auroc"] == 0.5
    assert result["known"]["num_images"] == 10 and result["known"]["num_validation_images"] == 4
    rows = list(csv.DictReader(io.StringIO(study.to_csv())))
    assert len(rows) == 20 and "file" not in rows[0]
    assert [row["part"] for row in rows[:10]] == 4 * ["validation"] + 6 * ["test"]
    assert [int(row["image"]) for row in rows[10:]] == list(range(0, 30, 3))
    for row in rows:
        assert float(row["bound"]) - float(row["bound_02"]) == pytest.approx(float(row["llr_02"]))
    page = study.page("<1>")
    assert page.count("data:image/png") == 5 and "chosen" not in page.split("<h2>")[0]


@pytest.mark.parametrize("first_has_them", [False, True])
def test_the_table_names_the_files_of_those_that_have_them(first_has_them):
    pytest.importorskip("sklearn", reason="needs the extra detect")
    files = [f'a "b", {number}.png' for number in range(10)]
    of_set = {"known": files if first_has_them else None, "novel": files}
    study = NoveltyStudy(*(scored(name, 0, named) for name, named in of_set.items()))
    rows = list(csv.DictReader(io.StringIO(study.to_csv())))
    assert [row["file"] for row in rows] == (files if first_has_them else [""] * 10) + files


def test_one_set_has_scores_only():
    study = NoveltyStudy(scored("known", 0))
    assert study.chosen_k is None
    assert set(study.result()) == {"num_groups", "num_iw_samples", "known"}
    assert study.page("one").count("data:image/png") == 3
