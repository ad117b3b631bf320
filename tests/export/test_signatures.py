"""What the signatures of a SavedModel answer, against the functions of the library."""

import numpy as np
import pytest
import tensorflow as tf

from export.portable_names import PORTABLE_NAMES
from export.signatures import make_signatures
from nvae_tf import NVAE
from nvae_tf.data.pipeline import preprocess
from nvae_tf.evaluation import NoveltyEvaluator
from nvae_tf.sampling import latents
from nvae_tf.sampling.images import to_uint8
from nvae_tf.sampling.sampler import Sampler
from nvae_tf.training.objective import bits_per_dimension, negative_elbo, objective_terms
from tests.conftest import tiny_model_config
from tests.export.exported import (
    SIGNATURES,
    as_png,
    pictures,
    requests,
    small_model,
    small_signatures,
)


def ask(name, **inputs):
    return {key: value.numpy() for key, value in small_signatures()[name](**inputs).items()}


def assert_same_pictures(images, others):
    """Kernels may round differently for another batch size: at most one grey level."""
    assert np.abs(images.astype(int) - np.asarray(others).astype(int)).max() <= 1


def assert_same(answer, other):
    """All outputs, pictures to one grey level."""
    assert set(answer) == set(other)
    for name in set(answer) - {"image", "image_bytes", "error"}:
        np.testing.assert_allclose(answer[name], other[name], rtol=1e-4, atol=1e-4)
    if "image" in answer:
        assert_same_pictures(answer["image"], other["image"])


def as_shown(images):
    return to_uint8(small_model().crop_padding(images))


def model_input(count):
    return preprocess(tf.constant(pictures(count)), small_model().config, [0, 0])


def noise_of(seeds):
    """As `sample` draws it, one row after the other."""
    rows = [small_model().draw_noise(1, [seed, 0]) for seed in seeds]
    return [tf.concat(group, 0) for group in zip(*rows)]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_row_depends_on_its_own_request_alone(name):
    inputs = requests(5)[name]
    together = ask(name, **inputs)
    # Reversed, and merged with dummies: copies of the first row, with which servers fill up.
    rows = [4, 3, 2, 1, 0, 0, 0, 0]
    padded = ask(name, **{key: tf.gather(value, rows) for key, value in inputs.items()})
    assert_same({key: value[[4, 3, 2, 1, 0]] for key, value in padded.items()}, together)
    alone = ask(name, **{key: value[1:2] for key, value in inputs.items()})
    assert_same(alone, {key: value[1:2] for key, value in together.items()})
    if "image" in together:
        assert len({image.tobytes() for image in together["image"]}) == 5
        for image, png in zip(together["image"], together["image_bytes"]):
            np.testing.assert_array_equal(tf.io.decode_png(png), image)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_same_request_has_the_same_answer(name):
    inputs = requests(5)[name]
    first, second = ask(name, **inputs), ask(name, **inputs)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


@pytest.mark.parametrize("seed, temperature", [(5, 0.7), (2**40, 1.0), (-3, 1.0)])
def test_sample_is_what_the_model_generates(seed, temperature):
    answer = ask("sample", seed=tf.constant([seed], tf.int64), temperature=[temperature])
    model = small_model()
    logits = model.generate(1, temperature, noise_of([seed]))
    assert_same_pictures(answer["image"], as_shown(model.likelihood(logits).mean()))


def test_sample_is_the_first_image_of_the_sampler():
    answer = ask("sample", seed=tf.constant([11], tf.int64), temperature=[0.8])
    first = next(Sampler(small_model(), batch_size=1).batches(1, 0.8, seed=11))
    assert_same_pictures(answer["image"], first)


def test_serving_default_is_sample():
    inputs = requests(4)
    for answer, expected in (
        (ask("serving_default", **inputs["serving_default"]), ask("sample", **inputs["sample"])),
        (
            ask("serving_default", examples=tf.constant([b""])),
            ask("sample", seed=tf.constant([0], tf.int64), temperature=[1.0]),
        ),
    ):
        assert not any(answer.pop("error"))
        assert_same(answer, expected)


def test_a_bad_example_answers_for_itself():
    good = requests(4)["serving_default"]["examples"]

    def example(**features):
        feature = {
            name: tf.train.Feature(float_list=tf.train.FloatList(value=value))
            for name, value in features.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    bad = [b"\xff", example(seed=[1.0]), example(temperature=[0.5, 0.6])]
    mixed = ask("serving_default", examples=tf.concat([good, bad], axis=0))
    assert_same(
        {name: value[:4] for name, value in mixed.items()}, ask("serving_default", examples=good)
    )
    assert [bool(error) for error in mixed["error"]] == 4 * [False] + 3 * [True]
    assert all(error.startswith(b"not a tf.Example") for error in mixed["error"][4:])
    assert not mixed["image"][4:].any()


def test_decode():
    inputs = requests(3)["decode"]
    expected = latents.decode(small_model(), [inputs[name] for name in sorted(inputs)])
    assert_same_pictures(ask("decode", **inputs)["image"], as_shown(expected))


def test_reconstruct():
    answer = ask("reconstruct", image_bytes=as_png(pictures(3)))
    expected = latents.reconstruct(small_model(), model_input(3))
    assert_same_pictures(answer["image"], as_shown(expected))


def test_encode_and_then_decode_is_reconstruct():
    answer = ask("encode", image_bytes=as_png(pictures(3)))
    model = small_model()
    means = latents.encode(model, model_input(3))
    zeros = [tf.zeros_like(mean) for mean in means]
    for group, mean in enumerate(means):
        np.testing.assert_allclose(answer[f"z_{group:02}"], mean, rtol=1e-4, atol=1e-4)
    kl = model.infer(model_input(3), zeros).kl_per_group
    np.testing.assert_allclose(answer.pop("kl"), kl, rtol=1e-4, atol=1e-3)
    assert not any(answer.pop("error"))
    decoded = ask("decode", **{key: tf.constant(value) for key, value in answer.items()})
    again = ask("reconstruct", image_bytes=as_png(pictures(3)))
    assert_same_pictures(decoded["image"], again["image"])


def test_vary():
    inputs = requests(4)["vary"]
    answer = ask("vary", **inputs)["image"]
    model = small_model()
    expected = latents.vary(
        model,
        model_input(4),
        inputs["keep_groups"],
        noise_of(inputs["seed"].numpy()),
        inputs["temperature"][:, None],
    )
    assert_same_pictures(answer, as_shown(expected))


def test_vary_goes_from_sample_to_reconstruct():
    inputs = requests(3)["vary"]
    groups = small_model().config.num_groups
    for keep, other in (
        (0, ask("sample", seed=inputs["seed"], temperature=inputs["temperature"])),
        (groups, ask("reconstruct", image_bytes=inputs["image_bytes"])),
        (groups + 9, ask("reconstruct", image_bytes=inputs["image_bytes"])),
    ):
        varied = ask("vary", **(inputs | {"keep_groups": tf.fill([3], keep)}))
        assert_same_pictures(varied["image"], other["image"])


def test_log_likelihood_is_the_negative_of_the_objective():
    inputs = requests(3)["log_likelihood"]
    answer = ask("log_likelihood", **inputs)
    model = small_model()
    output = model.infer(model_input(3), noise_of(inputs["seed"].numpy()))
    expected = negative_elbo(objective_terms(model, model_input(3), output, 1.0))
    np.testing.assert_allclose(-answer["elbo"], expected, rtol=1e-4)
    np.testing.assert_allclose(answer["kl"], output.kl_per_group, rtol=1e-4, atol=1e-3)
    bits = bits_per_dimension(expected, model.config)
    np.testing.assert_allclose(answer["bits_per_dim"], bits, rtol=1e-4)


def test_novelty_is_the_evaluator_s_first_image_of_each_seed():
    inputs = requests(3)["novelty"]
    answer = ask("novelty", **inputs)["llr"]
    evaluator = NoveltyEvaluator(small_model())
    for row, seed in enumerate(inputs["seed"].numpy()):
        expected = evaluator.per_image([model_input(3)[row : row + 1]], seed=int(seed))
        np.testing.assert_allclose(answer[row], expected.llr[0], rtol=1e-3, atol=1e-2)
    assert np.ptp(answer) > 1


@pytest.mark.parametrize("wrong", [np.inf, 1e30])
def test_an_absurd_temperature_spoils_its_own_row_alone(wrong):
    seed = tf.constant([1, 2, 3], tf.int64)
    answer = ask("sample", seed=seed, temperature=[0.7, wrong, 1.0])["image"]
    expected = ask("sample", seed=seed, temperature=[0.7, 1.0, 1.0])["image"]
    assert_same_pictures(answer[[0, 2]], expected[[0, 2]])


def test_wrong_temperatures_are_moved_into_the_range():
    seed = tf.constant([1, 2], tf.int64)
    answer = ask("sample", seed=seed, temperature=[np.nan, -2.0])["image"]
    expected = ask("sample", seed=seed, temperature=[1.0, 0.0])["image"]
    assert_same_pictures(answer, expected)


@pytest.fixture(scope="module")
def binary_model():
    tf.keras.utils.set_random_seed(0)
    return NVAE(tiny_model_config(num_latent_scales=1, arch_instance="res_bnswish"))


def test_binary_images_are_drawn_by_the_rows_seed(binary_model):
    log_likelihood = make_signatures(binary_model)["log_likelihood"]
    contents = tf.repeat(as_png(pictures(1, 8, 8)[..., :1]), 3)
    answer = log_likelihood(contents, tf.constant([1, 2, 1], tf.int64))
    assert answer["elbo"][0] == answer["elbo"][2] != answer["elbo"][1]
    alone = log_likelihood(contents[:1], tf.constant([2], tf.int64))
    np.testing.assert_allclose(alone["elbo"][0], answer["elbo"][1], rtol=1e-4)


@pytest.fixture(scope="module")
def signatures_without_png():
    config = tiny_model_config(
        image_shape=(8, 8, 2), likelihood="normal", num_x_bits=8, num_latent_scales=1
    )
    return make_signatures(NVAE(config))


def test_channels_that_no_png_holds(signatures_without_png):
    signatures = signatures_without_png
    assert set(signatures) == {"sample", "serving_default", "decode", *PORTABLE_NAMES}
    for name, outputs in (("sample", {"image"}), ("serving_default", {"image", "error"})):
        assert set(signatures[name].get_concrete_function().structured_outputs) == outputs


def test_a_lone_output_is_the_image(signatures_without_png):
    """TensorFlow Serving leaves out its name over REST, and `RestTransport` puts it back."""
    found = {
        name: set(signature.get_concrete_function().structured_outputs)
        for name, signature in signatures_without_png.items()
    }
    found |= {name: set(small_signatures()[name].structured_outputs) for name in SIGNATURES}
    lone = [outputs for outputs in found.values() if len(outputs) == 1]
    assert len(lone) >= 2 and all(outputs == {"image"} for outputs in lone)
