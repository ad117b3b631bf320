"""FID, KID, precision and recall: against closed forms, plain sums and other libraries."""

import importlib
import logging
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvae_tf.evaluation.kernel_distance import kernel_distance
from nvae_tf.evaluation.moments import Moments, frechet_distance
from nvae_tf.evaluation.precision_recall import precision_recall

# Not by "from": the package may have a function of the same name.
MODULE = importlib.import_module("nvae_tf.evaluation.precision_recall")


def other_library(name):
    """A module of torch-fidelity or clean-fid; where it is not installed, the test is skipped.

    Both import torchvision, whose wheels from PyPI load their operators with a CUDA PyTorch only.
    None is used here: with a PyTorch for CPUs it is enough that they have been declared.
    """
    torch = pytest.importorskip("torch")
    try:
        pytest.importorskip("torchvision")
    except RuntimeError:
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", boxes)
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def correlated(count, dimension, seed, shift=0.0, scale=1.0):
    """Features (N, D) float32, skewed and correlated, as those of networks are."""
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / dimension**0.5
    values = np.random.default_rng(seed).gamma(2.0, size=(count, dimension)) @ mixing
    return (scale * values + shift).astype(np.float32)


def moments_of(features):
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def gaussian(mean, covariance, count=1000):
    moments = Moments(len(mean))
    moments.count, moments.mean = count, np.asarray(mean, np.float64)
    moments.scatter = (count - 1) * np.asarray(covariance, np.float64)
    return moments


@st.composite
def partitions(draw):
    """Borders of up to 8 parts of 40 vectors, empty ones too, and an order to merge them in."""
    borders = sorted(draw(st.lists(st.integers(0, 40), max_size=7)))
    return borders, draw(st.permutations(range(len(borders) + 1)))


@given(partitions(), st.sampled_from([0.0, 1e4]), st.booleans())
def test_moments_of_any_partition_in_any_order(partition, offset, as_replicas):
    borders, order = partition
    features = correlated(40, 6, seed=1, shift=offset)
    parts = [part for part in np.split(features, borders)]
    total = Moments(6)
    for index in order:
        if as_replicas:  # each has batches of its own
            replica = moments_of(parts[index][::2])
            replica.update(parts[index][1::2])
            total.merge(replica)
        else:
            total.update(parts[index])
    exact = features.astype(np.float64)
    assert total.count == 40
    np.testing.assert_allclose(total.mean, exact.mean(axis=0), rtol=1e-13, atol=1e-13)
    # Sums of squares, with a mean of 10 000, would be off by 1e-8.
    np.testing.assert_allclose(total.covariance(), np.cov(exact.T), rtol=1e-11, atol=1e-11)


def test_merging_leaves_the_other_one_alone():
    first, second = moments_of(correlated(5, 3, 0)), moments_of(correlated(7, 3, 1))
    mean, scatter = second.mean.copy(), second.scatter.copy()
    first.merge(second)
    first.update(correlated(2, 3, 2))
    assert (first.count, second.count) == (14, 7)
    np.testing.assert_array_equal(second.mean, mean)
    np.testing.assert_array_equal(second.scatter, scatter)


def test_moments_of_what_does_not_fit():
    moments = Moments(3)
    with pytest.raises(ValueError, match=r"\(N, 3\), received \(2, 4\)"):
        moments.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="finite"):
        moments.update(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="3 features cannot be merged with moments of 4"):
        moments.merge(Moments(4))
    with pytest.raises(ValueError, match="at least 2 samples, received 1"):
        frechet_distance(moments_of(np.ones((1, 3))), moments_of(np.ones((5, 3))))
    with pytest.raises(ValueError, match="3 features have no distance to moments of 4"):
        frechet_distance(Moments(3), Moments(4))


def test_frechet_distance_of_gaussians_with_common_axes():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    first, second = np.array([4.0, 1.0, 0.25, 0.0]), np.array([1.0, 9.0, 0.25, 0.01])
    distance = frechet_distance(
        gaussian([1, 2, 3, 4], rotation * first @ rotation.T),
        gaussian([1, 2, 0, 4], rotation * second @ rotation.T),
    )
    assert distance == pytest.approx(9 + ((first**0.5 - second**0.5) ** 2).sum(), rel=1e-7)


def test_frechet_distance_in_two_dimensions():
    first = np.array([[2.0, 0.7], [0.7, 1.0]])
    second = np.array([[1.0, -0.9], [-0.9, 3.0]])
    # Of a 2 x 2 matrix: (tr M^1/2)^2 = tr M + 2 (det M)^1/2.
    product = first @ second
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * cross
    moments = gaussian([0, 0], first), gaussian([0, 0], second)
    assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(*moments[::-1]) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_fewer_samples_than_features(caplog):
    x, y = correlated(5, 30, 0), correlated(7, 30, 1, shift=0.1, scale=2)
    with caplog.at_level(logging.WARNING, "absl"):
        distance = frechet_distance(moments_of(x), moments_of(y))
    assert "5 and 7 samples with 30 features" in caplog.text
    # With C = X^T X / (n - 1) the trace is the sum of the singular values of X Y^T.
    x_centered, y_centered = (v.astype(np.float64) - v.mean(0, np.float64) for v in (x, y))
    cross = np.linalg.svd(x_centered @ y_centered.T, compute_uv=False).sum() / np.sqrt(4 * 6)
    difference = x.mean(0, np.float64) - y.mean(0, np.float64)
    traces = (x_centered**2).sum() / 4 + (y_centered**2).sum() / 6
    assert distance == pytest.approx(difference @ difference + traces - 2 * cross, rel=1e-6)


@pytest.mark.parametrize("count", [20, 400], ids=["singular", "regular"])
def test_no_frechet_distance_to_itself(count):
    moments = moments_of(correlated(count, 100, 3, scale=30))
    assert frechet_distance(moments, moments) <= 1e-9 * np.trace(moments.covariance())


@pytest.mark.parametrize("counts", [(500, 400), (40, 30)], ids=["regular", "singular"])
def test_frechet_distance_of_other_libraries(counts):
    x, y = correlated(counts[0], 64, 0), correlated(counts[1], 64, 1, shift=0.05, scale=1.1)
    distance = frechet_distance(moments_of(x), moments_of(y))
    statistics = [
        {"mu": v.mean(0), "sigma": np.cov(v.T)} for v in (x.astype(np.float64), y.astype(float))
    ]
    fidelity = other_library("torch_fidelity.metric_fid")
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    assert distance == pytest.approx(theirs[fidelity.KEY_METRIC_FID], rel=1e-5)
    clean = other_library("cleanfid.fid")
    first, second = (tuple(s.values()) for s in statistics)
    assert distance == pytest.approx(clean.frechet_distance(*first, *second), rel=1e-5)


def test_kernel_distance_as_plain_sums():
    x, y = correlated(4, 3, 0).astype(np.float64), correlated(4, 3, 1).astype(np.float64)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [kernel(v[i], v[j]) for v in (x, y) for i in range(4) for j in range(4) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    mean, deviation = kernel_distance(x, y)
    assert mean == pytest.approx(sum(within) / 12 - 2 * np.mean(across), rel=1e-12)
    assert deviation == 0.0


def test_kernel_distance_is_unbiased():
    distances = [
        kernel_distance(correlated(10, 8, 2 * k), correlated(10, 8, 2 * k + 1))[0]
        for k in range(400)
    ]
    error = np.std(distances) / np.sqrt(len(distances))
    # A biased estimate is off by 34 standard errors. False alarm: 1 in 16 000, with fixed seeds.
    assert abs(np.mean(distances)) < 4 * error
    shifted = kernel_distance(correlated(200, 8, 0), correlated(200, 8, 1, shift=0.5))[0]
    assert shifted > 10 * error


def test_kernel_distance_over_subsets():
    x, y = correlated(300, 8, 0), correlated(200, 8, 1, shift=0.2)
    everything = kernel_distance(x[:200], y)[0]
    mean, deviation = kernel_distance(x, y, num_subsets=200, subset_size=50, seed=1)
    assert kernel_distance(x, y, num_subsets=200, subset_size=50, seed=1) == (mean, deviation)
    assert kernel_distance(x, y, num_subsets=200, subset_size=50, seed=2)[0] != mean
    assert deviation > 0 and abs(mean - everything) < 0.5 * deviation
    larger = kernel_distance(x, y, num_subsets=200, subset_size=150)
    assert larger[1] < deviation
    with pytest.raises(ValueError, match="1 and 200 samples"):
        kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match="num_subsets=0"):
        kernel_distance(x, y, num_subsets=0)
    with pytest.raises(ValueError, match=r"\(300, 8\) and \(200, 7\)"):
        kernel_distance(x, y[:, 1:])


def test_kernel_distance_of_other_libraries():
    x, y = correlated(150, 16, 0), correlated(150, 16, 1, shift=0.05)
    mean, _ = kernel_distance(x, y)
    torch = pytest.importorskip("torch")
    fidelity = other_library("torch_fidelity.metric_kid")
    theirs = fidelity.kid_features_to_metric(
        *(torch.tensor(v, dtype=torch.float64) for v in (x, y)),
        kid_subset_size=150,
        kid_subsets=1,
        verbose=False,
    )
    assert mean == pytest.approx(theirs[fidelity.KEY_METRIC_KID_MEAN], rel=1e-9)
    clean = other_library("cleanfid.fid")
    doubles = x.astype(np.float64), y.astype(np.float64)
    assert mean == pytest.approx(clean.kernel_distance(*doubles, num_subsets=1), rel=1e-9)


def plain_precision_recall(real, generated, k):
    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b, axis=-1)

    def covered(points, manifold):
        radii = np.sort(distances(manifold, manifold), axis=1)[:, k]  # the first one is itself
        return (distances(points, manifold) <= radii).any(axis=1).mean()

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("block", [1, 1000, 2**22])
def test_precision_and_recall_as_plain_distances(monkeypatch, block):
    monkeypatch.setattr(MODULE, "_BLOCK", block)
    real, generated = correlated(130, 5, 0), correlated(90, 5, 1, shift=0.2, scale=0.8)
    for k in (1, 3):
        expected = plain_precision_recall(real, generated, k)
        assert min(expected) > 0.05 and max(expected) < 0.95 and expected[0] != expected[1]
        assert precision_recall(real, generated, k) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_at_their_limits():
    features = correlated(60, 2048, 0, shift=100)
    shuffled = features[np.random.default_rng(0).permutation(60)]
    assert precision_recall(features, shuffled) == (1, 1)
    assert precision_recall(features, features + 1000) == (0, 0)
    # A generator that only ever draws one real image, or that only knows half of them.
    assert precision_recall(features, np.repeat(features[7:8], 50, axis=0)) == (1, 1 / 60)
    halves = np.concatenate([features, features + 1000])
    assert precision_recall(halves, features) == (1, 0.5)
    assert precision_recall(features, halves) == (0.5, 1)
    with pytest.raises(ValueError, match="60 and 3 samples, 3 neighbours"):
        precision_recall(features, features[:3])


@pytest.mark.parametrize("dimension", [30, 500])
def test_equal_images_are_in_each_other_s_balls_of_radius_zero(monkeypatch, dimension):
    monkeypatch.setattr(MODULE, "_BLOCK", 150)  # where rounding differs by block
    features = correlated(13, dimension, 0)
    repeated = np.repeat(features, 5, axis=0), np.tile(features, (4, 1))
    assert precision_recall(*repeated) == (1, 1)


def test_a_common_offset_changes_no_distance():
    x, y = (correlated(100, 5, k, shift=0.2 * k).astype(np.float64) for k in (0, 1))
    assert precision_recall(x / 1000 + 1e4, y / 1000 + 1e4) == precision_recall(x, y)


def test_precision_and_recall_in_little_memory(monkeypatch):
    monkeypatch.setattr(MODULE, "_BLOCK", 2**17)
    features = correlated(3000, 4, 0)
    tracemalloc.start()
    precision_recall(features, features + 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 8  # an eighth of one matrix of distances


def test_precision_and_recall_of_another_library():
    torch = pytest.importorskip("torch")
    fidelity = other_library("torch_fidelity.metric_prc")
    real, generated = correlated(300, 8, 0), correlated(200, 8, 1, shift=0.4, scale=0.7)
    theirs = fidelity.prc_features_to_metric(
        *(torch.tensor(v, dtype=torch.float64) for v in (generated, real)), verbose=False
    )
    expected = theirs[fidelity.KEY_METRIC_PRECISION], theirs[fidelity.KEY_METRIC_RECALL]
    assert min(expected) > 0.05 and max(expected) < 0.95 and expected[0] != expected[1]
    assert precision_recall(real, generated) == pytest.approx(expected, abs=1e-6)
