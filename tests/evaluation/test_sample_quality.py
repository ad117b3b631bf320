"""Sample quality of whole batches of images, and the cache of the reference."""

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import weakref

import numpy as np
import pytest

from nvae_tf.evaluation import reference as reference_module
from nvae_tf.evaluation import suite
from nvae_tf.evaluation.features import FeatureExtractor
from nvae_tf.evaluation.kernel_distance import kernel_distance
from nvae_tf.evaluation.moments import Moments, frechet_distance
from nvae_tf.evaluation.precision_recall import precision_recall
from nvae_tf.evaluation.reference import reference_features
from nvae_tf.evaluation.sample_quality import sample_quality
from tests.conftest import tiny_model_config

# The package has a function of the same name.
MODULE = importlib.import_module("nvae_tf.evaluation.sample_quality")


class Corners(FeatureExtractor):
    """Cheap features: the corner pixels; counts the images that it has seen."""

    def __init__(self, fingerprint="corners"):
        self.name, self.fingerprint, self.seen = "corners of images", fingerprint, 0

    def _extract(self, images):
        self.seen += len(images)
        corners = images.numpy()[:, :: images.shape[1] - 1, :: images.shape[2] - 1]
        return corners.reshape(len(images), -1)


def moments_of(features):
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def pictures(count, seed, high=256):
    return np.random.default_rng(seed).integers(high, size=(count, 4, 6, 1)).astype(np.uint8)


def assert_same(first, second):
    assert first.extractor_fingerprint == second.extractor_fingerprint
    assert first.images_sha256 == second.images_sha256
    assert first.moments.count == second.moments.count
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.moments.mean, second.moments.mean)
    np.testing.assert_array_equal(first.moments.scatter, second.moments.scatter)


def test_reference_features_are_computed_once(tmp_path):
    images, extractor, progress = pictures(25, 0), Corners(), []
    cache = tmp_path / "a" / "b"
    first = reference_features(images, extractor, cache, 10, progress.append)
    assert progress == [10, 10, 5] and extractor.seen == 26  # one more to learn D
    expected = images[:, [0, 0, 3, 3], [0, 5, 0, 5], 0].astype(np.float32) / 255
    np.testing.assert_array_equal(first.features, expected)
    np.testing.assert_allclose(first.moments.covariance(), np.cov(expected.T), rtol=1e-5)
    mapped = np.memmap(tmp_path / "images", np.uint8, "w+", shape=images.shape)
    mapped[:] = images
    for same in (images, images.copy(order="F"), mapped):
        assert_same(reference_features(same, extractor, cache), first)
    assert extractor.seen == 26 and len(os.listdir(cache)) == 1


def test_what_a_cached_file_is_for(tmp_path):
    images = pictures(24, 0)
    changed = images.copy()
    changed[-1, 0, 0, 0] ^= 1
    for number, (these, extractor) in enumerate(
        [
            (images, Corners()),
            (changed, Corners()),
            (images.reshape(24, 6, 4, 1), Corners()),
            (images[:20], Corners()),
            (images, Corners("others")),
        ]
    ):
        reference_features(these, extractor, tmp_path)
        assert extractor.seen == len(these) + 1 and len(os.listdir(tmp_path)) == number + 1


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "flipped", "other"])
def test_a_damaged_file_is_computed_again(tmp_path, caplog, damage):
    images = pictures(25, 0)
    first = reference_features(images, Corners(), tmp_path)
    path = tmp_path / os.listdir(tmp_path)[0]
    content = bytearray(path.read_bytes())
    if damage == "other":
        other = reference_features(pictures(7, 1), Corners(), tmp_path / "other")
        reference_module._keep(str(path), other.moments, other.features)
    else:
        content[content.index(first.features.tobytes()) + 5] ^= 4
        cut, garbage = content[:-30], b"no zip" * 9
        damaged = {"cut": cut, "garbage": garbage, "empty": b"", "flipped": content}
        path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING, "absl"):
        assert_same(reference_features(images, Corners(), tmp_path), first)
    assert "damaged" in caplog.text and path.name in caplog.text
    idle = Corners()
    assert_same(reference_features(images, idle, tmp_path), first)
    assert idle.seen == 0


def test_an_interrupted_computation_leaves_nothing(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference_features(pictures(25, 0), Corners(), tmp_path, after_batch=stop)
    assert os.listdir(tmp_path) == []


def test_features_are_kept_of_some_and_moments_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "MAX_KEPT_FEATURES", 9)
    monkeypatch.setattr(MODULE, "MAX_KEPT_FEATURES", 9)
    images = np.sort(pictures(40, 0), axis=0)
    reference = reference_features(images, Corners(), tmp_path, 7)
    every = images[:, [0, 0, 3, 3], [0, 5, 0, 5], 0].astype(np.float32) / 255
    np.testing.assert_allclose(reference.moments.mean, every.mean(0), rtol=1e-5)
    assert reference.moments.count == 40 and reference.features.shape == (9, 4)
    chosen = [int(np.flatnonzero((every == kept).all(axis=1))[0]) for kept in reference.features]
    assert len(set(chosen)) == 9 and max(chosen) > 20  # not the first ones of a sorted set
    drawn = pictures(30, 1)
    result = sample_quality(reference, np.split(drawn, [4, 11]), Corners())
    assert (result.num_real, result.num_real_kept) == (40, 9)
    assert (result.num_generated, result.num_generated_kept) == (30, 9)
    features = Corners()(drawn)
    assert result.fid == pytest.approx(frechet_distance(reference.moments, moments_of(features)))
    assert result.kid == pytest.approx(kernel_distance(reference.features, features[:9])[0])


def test_features_that_are_not_kept_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "MAX_KEPT_FEATURES", 9)
    seen, alive = [], []

    class Watched(Corners):
        def __call__(self, images):
            features = super().__call__(images).copy()
            seen.append(weakref.ref(features))
            return features

    reference = reference_features(pictures(9, 0), Corners(), tmp_path)
    sample_quality(
        reference,
        np.split(pictures(40, 1), 5),
        Watched(),
        after_batch=lambda _: alive.append(sum(ref() is not None for ref in seen)),
    )
    assert alive == [1] * 5  # the batch at hand


def test_references_are_prepared_by_the_batch(tmp_path):
    images = pictures(25, 0)
    sizes = []

    def prepare(some, first):
        np.testing.assert_array_equal(some, images[first : first + len(some)])
        sizes.append(len(some))
        return 255 - some

    prepared = reference_features(images, Corners(), tmp_path, 10, prepare=prepare)
    assert sizes == [25, 1, 10, 10, 5]  # for the key, for the features' number, for the features
    assert_same(prepared, reference_features(255 - images, Corners(), tmp_path / "other", 10))


@pytest.mark.parametrize("pixels", ["mean", "sample"])
def test_references_have_the_values_of_generated_images(pixels):
    images = np.random.default_rng(0).integers(256, size=(50, 8, 8, 1), dtype=np.uint8)
    binary = tiny_model_config()
    prepare = suite._as_generated(binary, pixels, seed=3)
    if pixels == "mean":
        assert prepare is None
    else:
        black_and_white = prepare(images, 0)
        assert set(np.unique(black_and_white)) == {0, 255}
        assert abs(black_and_white.mean() - images.mean()) < 5
        np.testing.assert_array_equal(prepare(images[20:], 20), black_and_white[20:])
    coarse = tiny_model_config(likelihood="logistic_mixture", num_x_bits=2)
    assert set(np.unique(suite._as_generated(coarse, pixels, 0)(images, 0))) == {0, 85, 170, 255}
    assert suite._as_generated(dataclasses.replace(coarse, num_x_bits=8), pixels, 0) is None


def test_reference_images_that_do_not_fit(tmp_path):
    for images in (pictures(3, 0), pictures(9, 0)[..., 0], pictures(9, 0) / 255):
        with pytest.raises(ValueError, match="at least 4, .N, h, w, C. uint8; received"):
            reference_features(images, Corners(), tmp_path)
    with pytest.raises(ValueError, match="batch_size must be at least 1, received 0"):
        reference_features(pictures(9, 0), Corners(), tmp_path, 0)


def test_sample_quality_is_its_four_parts(tmp_path):
    real, drawn, seen = pictures(60, 0), pictures(50, 1, high=200), []
    extractor = Corners()
    reference = reference_features(real, extractor, tmp_path)
    batches = (drawn[start : start + 16] for start in range(0, 50, 16))
    result = sample_quality(reference, batches, extractor, seed=3, after_batch=seen.append)
    assert seen == [16, 16, 16, 2]
    x, y = extractor(real), extractor(drawn)
    assert result.fid == pytest.approx(frechet_distance(moments_of(x), moments_of(y)), rel=1e-9)
    assert (result.kid, result.kid_standard_deviation) == kernel_distance(x, y, seed=3)
    assert (result.precision, result.recall) == precision_recall(x, y)
    assert 0 < result.recall < 1 and result.precision > 0
    fields = json.loads(json.dumps(dataclasses.asdict(result)))
    digest = hashlib.sha256(b"(60, 4, 6, 1)" + real.tobytes()).hexdigest()
    protocol = {"features": "corners of images", "features_fingerprint": "corners", "seed": 3}
    protocol |= {"real_sha256": digest}
    numbers = {"num_real": 60, "num_generated": 50, "num_real_kept": 60, "num_generated_kept": 50}
    assert fields.items() >= (protocol | numbers).items()


def test_sample_quality_of_what_does_not_compare(tmp_path):
    reference = reference_features(pictures(9, 0), Corners(), tmp_path)
    with pytest.raises(ValueError, match="same features: the reference has those of corners"):
        sample_quality(reference, iter([]), Corners("others"))
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"at least 4 generated images, received {count}"):
            sample_quality(reference, [pictures(count, 1)] if count else [], Corners())


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").touch()
    images = pictures(7, 0)
    found = reference_features(images, Corners(), tmp_path / "file/below")
    assert_same(found, reference_features(images, Corners(), tmp_path / "cache"))
    assert "cannot be kept, so it will be computed again" in caplog.text
