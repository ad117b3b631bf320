"""The evaluation of a run: what it keeps of a long computation."""

import dataclasses

import numpy as np
import pytest

from nvae_tf import NVAE
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


def test_bounds_are_kept_for_the_same_evaluation_only(parts, tmp_path):
    def keep(draws=1, **changes):
        kept = Evaluation(**{**parts, **changes}).kept_bounds(str(tmp_path), draws)
        found = kept.count
        if not found:
            kept.add((np.zeros(4), np.zeros((4, 3)), np.zeros(4)))
            kept.write()
        return found

    assert keep() == 0
    assert keep() == 4
    assert keep(draws=2) == 0
    assert keep(seed=1) == 0
    assert keep(batch_size=3) == 0
    assert keep(images=parts["images"][:-1]) == 0
    assert keep(images=255 - parts["images"]) == 0
    model = dataclasses.replace(parts["config"].model, smooth_scales=True)
    assert keep(config=dataclasses.replace(parts["config"], model=model)) == 0
    moving_mean = parts["model"].batch_normalizations()[0].moving_mean
    own = moving_mean.numpy()
    moving_mean.assign(own + 1)
    assert keep() == 0
    moving_mean.assign(own)
    assert keep() == 4
