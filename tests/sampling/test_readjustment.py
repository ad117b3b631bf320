"""Readjusted batch normalisation: exact moments, of the generative path only, never NaN."""

import os

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.model.layers.normalization import BatchNormalization
from nvae_tf.sampling import readjustment as batch_norm_readjustment
from nvae_tf.sampling.readjustment import (
    PooledMoments,
    apply_statistics,
    generative_statistics,
    readjusted,
    stored_statistics,
)
from tests.conftest import random_images, tiny_model_config

BATCH = 4


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    return NVAE(tiny_model_config())


@pytest.fixture(scope="module")
def statistics(model):
    return generative_statistics(model, 0.6, passes=3, samples_per_pass=BATCH, seed=2)


def moving_averages(model):
    return {v.path: v.numpy() for v in model.non_trainable_variables}


def test_pooled_moments_are_those_of_all_values_together():
    rng = np.random.default_rng(0)
    batches = [
        1e4 + rng.normal(shift, 0.1, size=(count, 5)).astype(np.float32)
        for count, shift in ((7, 0.0), (1, 3.0), (20, -2.0))
    ]
    pooled = PooledMoments()
    for batch in batches:
        unbiased = batch.astype(np.float64).var(0, ddof=1) if len(batch) > 1 else np.zeros(5)
        pooled.add(batch.astype(np.float64).mean(0), unbiased, len(batch))
    together = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(pooled.mean, together.mean(0), rtol=1e-14)
    np.testing.assert_allclose(pooled.variance, together.var(0, ddof=1), rtol=1e-9)


def test_constant_channels_have_variance_zero_whatever_the_kernel_reports():
    pooled = PooledMoments()
    for _ in range(3):
        pooled.add(np.full(2, 0.3, np.float32), np.array([-1e-12, 0], np.float32), 64.0)
    assert pooled.variance.tolist() == [0, 0]


def test_statistics_are_the_moments_of_everything_that_went_in(model, statistics, monkeypatch):
    # The inputs of every normalisation, collected eagerly over the same three passes.
    inputs = {}
    original = BatchNormalization._normalize_batch

    def collect(layer, x, gamma, beta):
        values = x.numpy().astype(np.float64).reshape(-1, x.shape[-1])
        inputs.setdefault(layer, []).append(np.repeat(values, layer.repeats, axis=0))
        return original(layer, x, gamma, beta)

    monkeypatch.setattr(BatchNormalization, "_normalize_batch", collect)
    averages = moving_averages(model)
    for number in range(3):
        noise = model.draw_noise(BATCH, tf.constant([2, number], tf.int64))
        model.generate(BATCH, 0.6, noise, training=True)
    apply_statistics(model, averages)
    assert {layer.repeats for layer in inputs} == {1, 4}
    assert len(statistics) == 2 * len(inputs) > 0
    for layer, batches in inputs.items():
        values = np.concatenate(batches)
        mean, variance = values.mean(0), values.var(0, ddof=1)
        scale = np.sqrt(variance.max() + mean.max() ** 2)
        np.testing.assert_allclose(
            statistics[layer.moving_mean.path], mean, rtol=1e-5, atol=1e-6 * scale
        )
        np.testing.assert_allclose(
            statistics[layer.moving_variance.path], variance, rtol=1e-4, atol=1e-9 * scale**2
        )


def test_only_the_generative_path_changes_and_comes_back(model, statistics):
    before = moving_averages(model)
    with readjusted(model, statistics):
        within = moving_averages(model)
    for path, values in before.items():
        is_generative = "decoder" in path or "postprocess" in path
        assert np.any(within[path] != values) == is_generative, path
        assert (path in statistics) == is_generative
    for path, values in statistics.items():
        np.testing.assert_array_equal(within[path], values.astype(np.float32))
    after = moving_averages(model)
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_they_come_back_after_an_error_too(model, statistics):
    before = moving_averages(model)
    with pytest.raises(RuntimeError, match="inside"), readjusted(model, statistics):
        raise RuntimeError("inside")
    after = moving_averages(model)
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_computing_them_changes_nothing(model, eager):
    before = moving_averages(model)
    generative_statistics(model, 0.3, passes=1, samples_per_pass=2)
    after = moving_averages(model)
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_a_model_that_is_not_to_train_is_readjusted_too(model, eager):
    expected = generative_statistics(model, 0.3, passes=1, samples_per_pass=2)
    model.trainable = False
    found = generative_statistics(model, 0.3, passes=1, samples_per_pass=2)
    model.trainable = True
    assert found.keys() == expected.keys() and len(found) > 0
    for path, values in expected.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)


@pytest.fixture
def eager():
    """Functions run eagerly: a few passes take less time than tracing one."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("temperature", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_never_nan_even_where_channels_are_constant(temperature, eager):
    model = NVAE(tiny_model_config())
    cells = [cell for group in model.groups for cell in (*group.decoder_cells, group.up_cell)]
    cells = [cell for cell in (*cells, *model.postprocess_cells) if cell]
    for cell in cells:
        expand, first = cell.branch[0].pointwise[1], cell.branch[0].pointwise[0]
        first.gamma.assign(tf.concat([tf.zeros([2]), first.gamma[2:]], axis=0))
        kernel = expand.kernel.numpy()
        kernel[..., ::2] = 0  # every other channel is constant
        expand.kernel.assign(kernel)
    statistics = generative_statistics(model, temperature, passes=3, samples_per_pass=4)
    for cell in cells:
        variance = statistics[cell.branch[0].pointwise[2].moving_variance.path]
        assert np.all(variance[::2] == 0) and np.all(variance >= 0)
    noise = model.draw_noise(4, (1, 0))
    with readjusted(model, statistics):
        logits = model.generate(4, temperature, noise).numpy()
    assert np.isfinite(logits).all() and np.abs(logits).max() < 100
    assert logits.std() > 0


def test_a_result_is_computed_once_for_all_that_it_depends_on(model, tmp_path, monkeypatch, caplog):
    calls = []

    def compute(model, temperatures, *arguments):
        calls.append((temperatures.tolist(), *arguments))
        return {"layer/moving_mean": np.full(3, len(calls) / 3)}

    monkeypatch.setattr(batch_norm_readjustment, "generative_statistics", compute)

    def get(temperature=0.5, **options):
        return stored_statistics(tmp_path / "below", model, temperature, **options)

    first = get()
    again = get([0.5, 0.5, 0.5])
    assert calls == [([0.5, 0.5, 0.5], 500, 16, 0, None)]  # the paper's passes
    assert again.keys() == first.keys()
    np.testing.assert_array_equal(again["layer/moving_mean"], first["layer/moving_mean"])
    weight = model.groups[0].decoder_combiner.convolution.bias
    changes = [{"temperature": [0.5, 0.75]}, {"seed": 1}, {"passes": 7}, {"samples_per_pass": 8}]
    for number, change in enumerate(changes):
        get(**change)
        assert len(calls) == number + 2
    own = weight.numpy()
    weight.assign(own + 1)
    get()
    assert len(calls) == 6
    weight.assign(own)
    get()
    assert len(calls) == 6
    model.trainable = False  # which changes no weight
    get()
    assert len(calls) == 6
    weight.assign(own + 1)
    get()
    assert len(calls) == 6
    weight.assign(own)
    model.trainable = True
    names = os.listdir(tmp_path / "below")
    assert len(names) == 6 and all(name.endswith(".npz") for name in names)
    for path in (tmp_path / "below").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    assert get().keys() == first.keys()
    assert len(calls) == 7 and "damaged" in caplog.text


def test_a_place_that_cannot_be_written_costs_no_result(model, tmp_path, monkeypatch, caplog):
    statistics = {"layer/moving_mean": np.ones(3)}
    monkeypatch.setattr(
        batch_norm_readjustment, "generative_statistics", lambda *_: dict(statistics)
    )
    (tmp_path / "file").touch()
    found = stored_statistics(tmp_path / "file/below", model, 0.5)
    np.testing.assert_array_equal(found["layer/moving_mean"], np.ones(3))
    assert "cannot be kept, so it will be computed again" in caplog.text


def test_wrong_requests(model, statistics):
    with pytest.raises(ValueError, match="received 0 of 16"):
        generative_statistics(model, passes=0)
    with pytest.raises(ValueError, match="each of the 3 groups"):
        generative_statistics(model, [1, 1, 1, 1])
    half = NVAE(tiny_model_config(), dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="computes in bfloat16"):
        generative_statistics(half)
    before = moving_averages(model)
    with pytest.raises(ValueError, match="no moving average 'nonesuch'"):
        apply_statistics(model, {**statistics, "nonesuch": np.zeros(3)})
    after = moving_averages(model)
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_weights_that_are_not_finite_are_named(eager):
    model = NVAE(tiny_model_config())
    weight = model.groups[0].decoder_combiner.convolution.bias
    weight.assign(tf.fill(weight.shape, np.inf))
    with pytest.raises(ValueError, match="not finite at the input of .*decoder_1_0"):
        generative_statistics(model, passes=1, samples_per_pass=2)


def test_images_of_the_encoder_do_not_change(model, statistics):
    images = random_images(model.config)
    before = model.bottom_up(images)
    with readjusted(model, statistics):
        for a, b in zip(before, model.bottom_up(images)):
            np.testing.assert_array_equal(a, b)
