"""The inference form answers like the model, with the weights that it was given."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.layers.context import current_call, functional_call
from tests.conftest import random_images, tiny_model_config


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return NVAE(tiny_model_config(num_nf=1))


def values_of(model, factor=1.0):
    return {v.path: factor * tf.convert_to_tensor(v) for v in model.variables}


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs)):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-5} | tolerance))


def test_it_answers_like_the_model(model):
    inference, images = InferenceModel(model), random_images(model.config)
    noise = model.draw_noise(3, (0, 1))
    assert_same(inference.infer(images, noise), model.infer(images, noise))
    features = model.bottom_up(images)
    assert_same(inference.bottom_up(images), features)
    assert_same(
        inference.infer_from_features(features, noise), model.infer_from_features(features, noise)
    )
    assert_same(
        inference.infer_group(0, features[0], None, noise[0]),
        model.infer_group(0, features[0], None, noise[0]),
    )
    assert_same(inference.generate(3, 0.7, noise), model.generate(3, 0.7, noise))
    posteriors = [m.posterior(0, features[0], None) for m in (inference, model)]
    assert_same(posteriors[0].stddev(), posteriors[1].stddev())
    assert current_call(model) is None


def test_a_traced_function_follows_the_weights_without_a_new_trace(model):
    inference, noise = InferenceModel(model), model.draw_noise(2, (0, 1))
    traces = []

    def generate():
        traces.append(None)
        return inference.generate(2, 1.0, noise)

    traced, before = inference.function(generate), inference.weights()
    own = model.generate(2, 1.0, noise)
    assert_same(traced(before), own)
    other = values_of(model, 0.5)
    with functional_call(model, other):
        expected = model.generate(2, 1.0, noise)
    assert_same(traced(inference.weights(other)), expected)
    assert_same(traced(before), own)
    assert len(traces) == 1
    with inference.scope(inference.weights(other)):
        assert_same(inference.generate(2, 1.0, noise), expected)
        assert_same(model.generate(2, 1.0, noise), expected)
        with inference.scope(before):
            assert_same(inference.generate(2, 1.0, noise), own)


def test_many_functions_are_not_taken_for_one_that_is_traced_again(model, caplog):
    inference = InferenceModel(model)
    weights = inference.weights()
    for factor in range(8):
        scaled = inference.function(lambda x, factor=factor: factor * x)
        assert int(scaled(weights, tf.constant(2))) == 2 * factor
    assert "retracing" not in caplog.text


def test_another_model_does_not_see_the_scope(model):
    keras.utils.set_random_seed(1)
    other, noise = NVAE(model.config), model.draw_noise(2, (0, 1))
    images, structure = random_images(model.config), NVAE.structure(model.config)
    expected = other.generate(2, 1.0, noise)
    half = values_of(model, 0.5)
    with functional_call(model, half):
        halved = model.generate(2, 1.0, noise)
    assert np.abs(halved - model.generate(2, 1.0, noise)).max() > 1e-3
    for part, scope in (
        (model, functional_call(model, half)),
        (model, InferenceModel(model, half).scope()),
        (structure, functional_call(structure, half)),
        (structure, InferenceModel(structure, half).scope()),
    ):
        with scope:
            assert_same(other.generate(2, 1.0, noise), expected)
            assert_same(InferenceModel(other).generate(2, 1.0, noise), expected)
            for inner in (InferenceModel(other).scope(), functional_call(other, values_of(other))):
                with inner:
                    assert_same(part.generate(2, 1.0, noise), halved)
                    assert_same(other.generate(2, 1.0, noise), expected)
            assert_same(part.generate(2, 1.0, noise), halved)
    with functional_call(model, half), pytest.raises(RuntimeError, match="structure alone"):
        structure.generate(2, 1.0, noise)
    averages = [average.numpy() for average in other.moving_averages()]
    with functional_call(model):
        other.infer(images, training=True)
    assert any(np.any(a != b.numpy()) for a, b in zip(averages, other.moving_averages()))


def test_it_answers_with_the_weights_of_the_moment(model):
    inference, noise = InferenceModel(model), model.draw_noise(2, (0, 1))
    bias, own = model.image_head.bias, tf.identity(model.image_head.bias)
    for value in (own, own + 1):
        bias.assign(value)
        assert_same(inference.generate(2, 1.0, noise), model.generate(2, 1.0, noise))
    # In a graph that is being traced, they are constants of that moment.
    traced = tf.function(lambda: inference.generate(2, 1.0, noise))
    assert_same(traced(), model.generate(2, 1.0, noise))
    bias.assign(own)


def test_variables_hold_the_weights_of_an_export(model):
    inference, noise = InferenceModel(model), model.draw_noise(2, (0, 1))
    held = inference.in_variables()
    assert all(isinstance(v, tf.Variable) for v in held.weights())
    before = model.generate(2, 1.0, noise)
    assert_same(held.generate(2, 1.0, noise), before)
    bias, own = model.image_head.bias, tf.identity(model.image_head.bias)
    bias.assign(own + 1)  # an export stays as it was
    assert_same(held.generate(2, 1.0, noise), before)
    bias.assign(own)


def test_a_structure_has_the_values_that_it_is_given(model):
    keras.utils.set_random_seed(0)
    structure = NVAE.structure(model.config)
    assert [v.path for v in structure.variables] == [v.path for v in model.variables]
    for variable, own in zip(structure.variables, model.variables):
        np.testing.assert_array_equal(tf.convert_to_tensor(variable), own, err_msg=own.path)
    images, noise = random_images(model.config), model.draw_noise(3, (0, 1))
    with pytest.raises(RuntimeError, match="structure alone"):
        structure.infer(images, noise)
    with pytest.raises(RuntimeError, match="structure alone"), functional_call(structure):
        structure.generate(3, 1.0, noise)
    waiting = InferenceModel(structure)
    for answer in (lambda: waiting.infer(images, noise), waiting.weights):
        with pytest.raises(RuntimeError, match="`weights` needs the values"):
            answer()
    inference = InferenceModel(structure, values_of(model))
    assert_same(inference.infer(images, noise), model.infer(images, noise))
    assert not [v for v in structure.variables if v._value is not None]  # no memory of their own


def test_a_model_inside_of_another_answers_with_its_own_weights(model):
    first = InferenceModel(model, values_of(model))
    second = InferenceModel(model, values_of(model, factor=0.5))
    noise = model.draw_noise(2, (0, 1))
    own = second.generate(2, 0.7, noise)
    assert np.any(np.abs(own - first.generate(2, 0.7, noise)) > 1e-3)
    with first.scope():
        assert_same(second.generate(2, 0.7, noise), own)
    traced = first.function(lambda: (first.generate(2, 0.7, noise), second.generate(2, 0.7, noise)))
    assert_same(traced(first.weights()), (first.generate(2, 0.7, noise), own))
