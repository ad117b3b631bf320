"""The evaluation of a run: what it keeps of a long computation."""

import dataclasses
import os

import numpy as np
import pytest

from nvae_tf import NVAE
from nvae_tf.data import describe
from nvae_tf.evaluation import LikelihoodEvaluator
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.evaluation.suite import Evaluation
from tests.conftest import tiny_experiment_config


@pytest.fixture
def parts():
    """The arguments of an `Evaluation` of twelve images, by name."""
    config = tiny_experiment_config()
    shape = config.model.content_shape
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    return {
        "config": config,
        "model": NVAE(config.model),
        "split": "test",
        "images": images,
        "batch_size": 4,
        "seed": 0,
    }


def test_bounds_are_kept_for_the_same_evaluation_only(parts, tmp_path, monkeypatch):
    def keep(draws=1, **changes):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(LikelihoodEvaluator, "per_image", lambda *rest: found.append(rest[-1]))
            Evaluation(**{**parts, **changes}).measure_likelihood(draws, str(tmp_path))
        (kept,) = found
        count = kept.count
        if not count:
            kept.add((np.zeros(4), np.zeros((4, 3)), np.zeros(4)))
            kept.write()
        return count

    assert keep() == 0
    assert keep() == 4
    assert keep(draws=2) == 0
    assert keep(seed=1) == 0
    assert keep(batch_size=3) == 4  # which makes no difference to the bounds
    assert keep(images=parts["images"][:-1]) == 0
    assert keep(images=255 - parts["images"]) == 0
    many = np.zeros((2000, *parts["images"].shape[1:]), np.uint8)
    other = many.copy()
    other[2] = 1  # which `describe`, that looks at half of so many images, does not see
    assert describe(many) == describe(other)
    assert keep(images=many) == keep(images=other) == 0
    model = dataclasses.replace(parts["config"].model, smooth_scales=True)
    assert keep(config=dataclasses.replace(parts["config"], model=model)) == 0
    moving_mean = parts["model"].batch_normalizations()[0].moving_mean
    own = moving_mean.numpy()
    moving_mean.assign(own + 1)
    assert keep() == 0
    moving_mean.assign(own)
    assert keep() == 4


def test_the_images_after_those_that_were_kept_are_evaluated(parts, tmp_path, monkeypatch):
    whole = Evaluation(**parts).measure_likelihood(2, str(tmp_path))

    class Stopped(Exception):
        pass

    add = KeptRows.add

    def stop(self, arrays):
        add(self, arrays)
        self.write()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "add", stop)
        with pytest.raises(Stopped):
            Evaluation(**parts).measure_likelihood(2, str(tmp_path))
    assert len(os.listdir(tmp_path)) == 1
    sizes = []

    def observe(self, arrays):
        sizes.append(len(arrays[0]))
        add(self, arrays)

    monkeypatch.setattr(KeptRows, "add", observe)
    evaluation = Evaluation(**{**parts, "batch_size": 5})
    resumed = evaluation.measure_likelihood(2, str(tmp_path))
    assert sizes == [5, 3]  # after 4 of 12
    np.testing.assert_allclose(resumed.iw_bound, whole.iw_bound, rtol=1e-5)
    np.testing.assert_allclose(resumed.kl_per_group, whole.kl_per_group, rtol=1e-4, atol=1e-5)
    evaluation.forget()
    assert os.listdir(tmp_path) == []
