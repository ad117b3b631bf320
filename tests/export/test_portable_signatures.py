"""The signatures for other runtimes, against those for TensorFlow Serving."""

import numpy as np
import pytest
import tensorflow as tf

from export.portable_names import PORTABLE_NAMES
from export.seed_noise import noise_inputs, noise_of_seed
from export.signatures import make_signatures
from nvae_tf import NVAE
from nvae_tf.noise import normal_rows
from tests.conftest import tiny_model_config
from tests.export.exported import as_png, pictures, requests, small_model, small_signatures

# What ONNX has an equivalent of, or what disappears when the weights become constants.
FORBIDDEN = ("While", "Map", "TensorList", "TensorArray", "Random", "String", "Decode", "Encode")


def ask(name, **inputs):
    return {key: value.numpy() for key, value in small_signatures()[name](**inputs).items()}


def noise_of(*seeds):
    return tf.nest.map_structure(
        tf.constant, noise_inputs(seeds, small_model().config.latent_shapes)
    )


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, 2**63 - 1])
def test_the_noise_of_a_seed_is_tensorflow_s(seed):
    shapes = [(4, 4, 2), (5, 3, 3), (1, 1, 1)]
    for group, (ours, shape) in enumerate(zip(noise_of_seed(seed, shapes), shapes)):
        own = tf.random.experimental.stateless_fold_in(
            tf.constant([seed, 0], tf.int64), tf.constant(group, tf.int64)
        )
        np.testing.assert_allclose(ours, normal_rows(1, shape, own)[0], rtol=1e-5, atol=2e-6)


def test_the_noise_is_standard_normal():
    (values,) = noise_of_seed(3, [(100, 100, 10)])
    assert values.dtype == np.float32 and np.isfinite(values).all()
    # Five standard deviations of mean, variance and the share beyond two of them.
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)
    assert abs((np.abs(values) > 2).mean() - 0.0455) < 5 * np.sqrt(0.0455 / values.size)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_the_server_does_not_have(seed):
    with pytest.raises(ValueError, match="seed must be"):
        noise_of_seed(seed, [(1, 1, 1)])


def test_the_image_of_a_seed_is_that_of_sample():
    temperature = tf.constant([0.7, 1.0, 0.0])
    expected = ask("sample", seed=tf.constant([7, 2**40, 9], tf.int64), temperature=temperature)
    images = ask("sample_tensors", **noise_of(7, 2**40, 9), temperature=temperature)["image"]
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert np.abs(np.round(255 * images) - expected["image"]).max() <= 1


def test_decode_gives_the_same_image_as_floats():
    inputs = requests(3)["decode"]
    images = ask("decode_tensors", **inputs)["image"]
    assert np.abs(np.round(255 * images) - ask("decode", **inputs)["image"]).max() <= 1


def test_infer_is_the_likelihood_and_its_latents_decode():
    seeds = (5, 6, 7)
    expected = ask(
        "log_likelihood", image_bytes=as_png(pictures(3)), seed=tf.constant(seeds, tf.int64)
    )
    images = tf.constant(pictures(3) / 255, tf.float32)
    answer = ask("infer_tensors", image=images, **noise_of(*seeds))
    for name in ("elbo", "bits_per_dim", "kl"):
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-4, atol=1e-3)
    drawn = {name: tf.constant(v) for name, v in answer.items() if name.startswith("z_")}
    assert len(drawn) == small_model().config.num_groups
    assert np.isfinite(ask("decode_tensors", **drawn)["image"]).all()


def test_rows_are_independent():
    both = ask("sample_tensors", **noise_of(1, 2), temperature=tf.constant([0.5, 1.0]))
    one = ask("sample_tensors", **noise_of(2), temperature=tf.constant([1.0]))
    np.testing.assert_allclose(both["image"][1:], one["image"], atol=1e-4)


def test_binary_images_are_taken_as_they_are():
    model = NVAE(tiny_model_config(num_latent_scales=1, arch_instance="res_bnswish"))
    signatures = make_signatures(model)
    images = np.random.default_rng(0).integers(0, 2, [2, 8, 8, 1])
    noise = [noise_of_seed(seed, model.config.latent_shapes) for seed in (1, 2)]
    rows = [tf.constant(np.stack(group)) for group in zip(*noise)]
    answer = signatures["infer_tensors"](tf.constant(images, tf.float32), *rows)
    contents = as_png(np.uint8(255 * images))
    expected = signatures["log_likelihood"](contents, tf.constant([1, 2], tf.int64))
    np.testing.assert_allclose(answer["elbo"], expected["elbo"], rtol=1e-4)


@pytest.mark.parametrize("name", PORTABLE_NAMES)
def test_nothing_that_other_runtimes_lack(name):
    graph = small_signatures()[name].graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    kinds = {node.op for node in nodes}
    assert "Conv2D" in kinds
    assert not {kind for kind in kinds if any(word in kind for word in FORBIDDEN)}
    inputs = small_signatures()[name].structured_input_signature[1]
    assert {spec.dtype for spec in inputs.values()} == {tf.float32}
    assert {spec.shape[0] for spec in inputs.values()} == {None}
