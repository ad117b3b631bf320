"""Batches as functions of seed and number."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_tf import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from nvae_tf.data import (
    Division,
    evaluation_batches,
    preprocess,
    training_batches,
    training_input,
)
from nvae_tf.data.pipeline import quantize


def experiment(batch_size=4, seed=0, flip=False):
    return ExperimentConfig(
        model=ModelConfig(image_shape=(2, 2, 1)),
        data=DataConfig(flip=flip),
        train=TrainConfig(global_batch_size=batch_size, seed=seed),
    )


def numbered_images(count):
    """Images that tell their number by their first pixel."""
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def take(dataset, count):
    return np.concatenate([batch.numpy() for batch in dataset.take(count)])


def numbers(stored):
    return stored[:, 0, 0, 0].tolist()


def test_no_thread_tunes_batches():
    config = experiment(2)
    for batches in (
        training_batches(numbered_images(4), config),
        evaluation_batches(numbered_images(4), config.model, 2),
    ):
        assert not batches.options().autotune.enabled


def test_images_are_freed_with_their_dataset():
    config = experiment(2)
    for make in (
        lambda images: training_batches(images, config),
        lambda images: evaluation_batches(images, config.model, 2),
    ):
        images = numbered_images(6)
        freed = weakref.ref(images)
        batches = iter(make(images).map(tf.identity))
        del images
        gc.collect()
        assert [len(next(batches)) for _ in range(3)] == [2, 2, 2]
        del batches
        gc.collect()
        assert freed() is None


@settings(max_examples=10)
@given(count=st.integers(3, 40), batch_size=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_shows_every_image_once(count, batch_size, seed):
    dataset = training_batches(numbered_images(count), experiment(batch_size, seed))
    seen = numbers(take(dataset, -(-2 * count // batch_size)))
    assert sorted(seen[:count]) == list(range(count))
    assert sorted(seen[count : 2 * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    images = numbered_images(32)
    first = numbers(take(training_batches(images, experiment()), 16))
    other = numbers(take(training_batches(images, experiment(seed=1)), 8))
    assert first[:32] != first[32:] and first[:32] != other


def test_a_batch_depends_on_its_number_alone():
    images = numbered_images(20)
    whole = take(training_batches(images, experiment()), 8)
    resumed = take(training_batches(images, experiment(), start=5), 3)
    np.testing.assert_array_equal(whole[20:], resumed)


@settings(max_examples=10)
@given(parts=st.integers(1, 3), workers=st.integers(1, 3), local=st.integers(1, 2))
def test_workers_share_a_global_batch(parts, workers, local):
    images, replicas = numbered_images(50), workers * local
    config = experiment(2 * parts * replicas)
    whole = take(training_batches(images, config, start=3), 2)
    shares = []
    for worker in range(workers):
        division = Division(parts, replicas, worker * local, local)
        elements = training_batches(images, config, 3, division).take(2 * parts * local)
        shares.append(np.reshape([element.numpy() for element in elements], [2, parts, local, -1]))
    # Of each batch, every part in turn, and of a part, every worker's replicas in turn.
    together = np.stack(shares, axis=2)
    np.testing.assert_array_equal(together.reshape(whole.shape), whole)


def test_rows_of_a_batch_become_rows_of_its_input():
    images = np.random.default_rng(0).integers(256, size=(20, 2, 2, 1), dtype=np.uint8)
    config = experiment(flip=True).override(
        {"model.likelihood": "bernoulli", "model.num_x_bits": 1}
    )
    whole = training_input(tf.constant(images), config, 7)
    assert np.any(whole != training_input(tf.constant(images), config, 8))
    for first in (0, 3, 16):
        rows = training_input(tf.constant(images[first:]), config, 7, first)
        np.testing.assert_array_equal(rows, whole[first:])


def test_flips_are_left_to_right_and_about_half():
    images = np.zeros((256, 2, 2, 1), np.uint8)
    images[:, 0, 0] = 255
    flipped = training_input(tf.constant(images), experiment(flip=True), 0).numpy()
    left, right = flipped[:, 0, 0, 0], flipped[:, 0, 1, 0]
    np.testing.assert_array_equal(left + right, np.ones(256))
    assert 90 < right.sum() < 166  # 128 ± 4.7 standard deviations
    assert flipped[:, 1].max() == 0


def test_a_view_is_flipped_if_its_image_is():
    images = np.zeros((64, 16, 16, 1), np.uint8)
    images[:, :, :6] = 255
    config = experiment(flip=True).override({"model.image_shape": (16, 16, 1)})

    def brighter_on_the_left(as_views):
        shown = training_input(tf.constant(images), config, 3, as_views=as_views).numpy()
        return shown[:, :, :8].mean(axis=(1, 2, 3)) > shown[:, :, 8:].mean(axis=(1, 2, 3))

    assert 0 < brighter_on_the_left(False).sum() < 64
    np.testing.assert_array_equal(brighter_on_the_left(True), brighter_on_the_left(False))


def test_quantisation_is_the_reference_s(golden):
    values = golden("schedules.json")["bit_depth"]
    expected = np.array(values["x5"], np.float32)
    x = np.arange(256, dtype=np.float32)
    # The reference's inputs k / 255 are those of torch.linspace, which rounds eight multiples of 8
    # down: there it lands one level lower than the exact value, and so do we from such an input.
    rounded_down = [128, 136, 144, 152, 160, 168, 176, 184]
    x[rounded_down] = np.nextafter(x[rounded_down], np.float32(0))
    np.testing.assert_allclose(quantize(tf.constant(x), 5), expected, rtol=1e-6)
    exact = np.arange(256) // 8 / 31
    np.testing.assert_allclose(quantize(tf.range(256, dtype=tf.float32), 5), exact, rtol=1e-6)
    assert np.flatnonzero(np.abs(exact - expected) > 1e-6).tolist() == rounded_down
    eight = quantize(tf.range(256, dtype=tf.float32), 8)
    np.testing.assert_allclose(eight, np.arange(256) / 255, rtol=1e-6)


def test_binarisation_follows_the_intensities():
    config = ModelConfig(image_shape=(2, 2, 1), likelihood="bernoulli", num_x_bits=1)
    images = np.tile(np.array([0, 64, 128, 255], np.uint8).reshape(1, 2, 2, 1), (10_000, 1, 1, 1))
    binary = preprocess(images, config, (0, 1)).numpy()
    assert set(np.unique(binary)) == {0.0, 1.0}
    frequency = binary.reshape(-1, 4).mean(0)
    np.testing.assert_allclose(frequency, np.array([0, 64, 128, 255]) / 255, atol=0.025)
    assert frequency[0] == 0 and frequency[3] == 1
    again, other = preprocess(images, config, (0, 1)), preprocess(images, config, (0, 2))
    np.testing.assert_array_equal(binary, again)
    assert np.any(binary != other)


def test_padding_is_zero():
    config = ModelConfig(image_shape=(4, 4, 1), padding=1)
    padded = preprocess(np.full((1, 2, 2, 1), 255, np.uint8), config, (0, 0)).numpy()
    assert padded.shape == (1, 4, 4, 1)
    assert padded.sum() == 4 and padded[0, 1:3, 1:3].min() == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((2, 2, 2, 1), np.float32), "received float32 of shape .2, 2, 2, 1"),
        (np.ones((2, 4, 4, 1), np.uint8), "uint8 of shape .B, 2, 2, 1.*received uint8 of shape"),
    ],
)
def test_only_stored_images_are_prepared(images, message):
    with pytest.raises(ValueError, match=message):
        preprocess(images, ModelConfig(image_shape=(4, 4, 1), padding=1), (0, 0))


def test_evaluation_sees_all_images_in_order():
    batches = list(evaluation_batches(numbered_images(10), experiment().model, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    seen = np.round(255 * np.concatenate(batches)).astype(int)
    assert numbers(seen) == list(range(10))
