"""The whole network: every option through build, a training step, saving and loading."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE, ModelConfig, OptimizerConfig, presets
from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.model.layers.context import functional_call
from nvae_tf.training.objective import objective_terms
from nvae_tf.training.optimizer import AdaMax
from nvae_tf.training.regularization import Regularizer
from tests.conftest import random_images, tiny_model_config

OPTIONS = {
    **{arch: {"arch_instance": arch} for arch in ARCHITECTURES},
    "no_se": {"use_se": False},
    "no_res_dist": {"res_dist": False},
    "flows": {"num_nf": 1},
    "two_flow_pairs": {"num_nf": 2, "num_latent_scales": 1},
    "vanilla": {"num_latent_scales": 1, "num_groups_per_scale": 1},
    "vanilla_with_flow": {"num_latent_scales": 1, "num_groups_per_scale": 1, "num_nf": 1},
    "wider_decoder": {"num_channels_dec": 16},
    "wider_encoder": {"num_channels_enc": 16},
    "uneven_widths": {"num_channels_enc": 6, "num_channels_dec": 10},
    "not_square": {"image_shape": (8, 20, 1), "num_preprocess_blocks": 1},
    "three_scales": {
        "image_shape": (16, 16, 1),
        "num_latent_scales": 3,
        "num_groups_per_scale": 4,
        "min_groups_per_scale": 2,
    },
    "no_preprocess_block": {"num_preprocess_blocks": 0, "num_postprocess_blocks": 0},
    "more_cells": {
        "num_preprocess_cells": 2,
        "num_postprocess_cells": 3,
        "num_cell_per_cond_enc": 2,
        "num_cell_per_cond_dec": 2,
    },
    "8_bit_colour": {
        "image_shape": (8, 8, 3),
        "likelihood": "logistic_mixture",
        "num_x_bits": 8,
        "num_mixture_dec": 3,
    },
    "5_bit_two_channels": {
        "image_shape": (8, 8, 2),
        "likelihood": "logistic_mixture",
        "num_x_bits": 5,
    },
    "normal_decoder": {"image_shape": (8, 8, 3), "likelihood": "normal", "num_x_bits": 8},
    "padded": {"padding": 1},
}


# Combinations of what the others cover one by one, and operation lists that differ in one word.
SLOW = {
    *(set(ARCHITECTURES) - {"res_mbconv", "res_elu"}),
    "5_bit_two_channels",
    "two_flow_pairs",
    "vanilla_with_flow",
    "wider_decoder",
    "wider_encoder",
    "uneven_widths",
    "three_scales",
    "no_preprocess_block",
    "more_cells",
}


def cases(names):
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


@pytest.fixture(params=cases(OPTIONS))
def config(request):
    return tiny_model_config(**OPTIONS[request.param])


def test_build_train_save_load(config, tmp_path):
    model = NVAE(config)
    images = random_images(config)
    regularizer = Regularizer(model)  # its spectral part has tests of its own, and takes longest
    noise = model.draw_noise(len(images), (0, 1))
    model.initialize_from_batch(images)
    before = [variable.numpy() for variable in model.trainable_variables]

    with tf.GradientTape() as tape:
        kernels = regularizer.kernels.split(regularizer.kernels.compute())
        with functional_call(model, kernels=kernels):
            output = model.infer(images, noise, training=True)
        terms = objective_terms(model, images, output, kl_coefficient=0.5)
        loss = tf.reduce_mean(terms.reconstruction + terms.balanced_kl)
        loss += 0.1 * regularizer.batch_norm()
    gradients = tape.gradient(loss, model.trainable_variables)
    assert np.isfinite(loss)
    slots = [[tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables] for _ in range(2)]
    variables = [variable.value for variable in model.trainable_variables]
    AdaMax(OptimizerConfig()).apply(
        variables, *slots, tf.Variable(0, dtype=tf.int64), gradients, 1e-3
    )
    for variable, old in zip(model.trainable_variables, before):
        assert np.any(variable.numpy() != old), f"{variable.path} did not move"

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.config == config
    np.testing.assert_array_equal(
        loaded.infer(images, noise).logits, model.infer(images, noise).logits
    )


@pytest.mark.parametrize("name", cases(name for name in OPTIONS if name not in ARCHITECTURES))
def test_shapes(name):
    config = tiny_model_config(**OPTIONS[name])
    model = NVAE(config)
    images = random_images(config)
    output = model.infer(images)
    groups = config.num_groups
    assert output.logits.shape[:3] == images.shape[:3]
    assert output.kl_per_group.shape == [3, groups]
    assert output.kl_per_channel.shape == [3, groups, config.num_latent_per_group]
    assert [tuple(z.shape[1:]) for z in output.latents] == list(config.latent_shapes)
    assert output.log_q.shape == output.log_p.shape == [3]
    np.testing.assert_allclose(
        output.kl_per_group, np.sum(output.kl_per_channel, axis=2), rtol=1e-4
    )
    logits = model.generate(5, temperature=0.7)
    assert logits.shape == [5, *output.logits.shape[1:]]
    likelihood = model.likelihood(logits)
    assert likelihood.mean().shape == [5, *config.image_shape]
    assert likelihood.log_prob(random_images(config, 5)).shape == [5]
    assert model.crop_padding(likelihood.mean()).shape == [5, *config.content_shape]


def test_the_paper_s_mnist_model_has_its_parameters():
    assert NVAE(presets.get("mnist").model).num_trainable_parameters == 33_363_134


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {
                "image_shape": (32, 32, 1),
                "padding": 2,
                "likelihood": "bernoulli",
                "num_x_bits": 1,
                "num_latent_scales": 2,
            },
            159_214,
        ),
        ({"num_latent_scales": 3, "num_nf": 1}, 404_044),
    ],
    ids=["mnist_tiny", "cifar10_flow_tiny"],
)
def test_the_tiny_checkpoints_configurations_have_their_parameters(changes, expected):
    config = ModelConfig(
        num_groups_per_scale=4,
        ada_groups=True,
        num_latent_per_group=4,
        num_channels_enc=8,
        num_channels_dec=8,
        num_cell_per_cond_enc=1,
        num_cell_per_cond_dec=1,
        **changes,
    )
    assert NVAE(config).num_trainable_parameters == expected


def test_rows_do_not_depend_on_each_other():
    config = tiny_model_config(num_nf=1)
    model = NVAE(config)
    images, noise = random_images(config, 4), model.draw_noise(4, (0, 1))
    together = model.infer(images, noise)
    for row in range(4):
        alone = model.infer(images[row : row + 1], [n[row : row + 1] for n in noise])
        np.testing.assert_allclose(together.logits[row], alone.logits[0], atol=1e-5)
        np.testing.assert_allclose(together.kl_per_group[row], alone.kl_per_group[0], atol=1e-4)


def test_first_group_s_prior_is_the_offset_normal():
    # Zero parameters through the formula: mean 0, scale 1 + 0.01.
    model = NVAE(tiny_model_config(num_latent_scales=1, num_groups_per_scale=1))
    seen = []
    model.top_down = lambda n, draw, training=False: seen.append(draw(0, None)) or tf.zeros([n])
    noise = model.draw_noise(2, (0, 1))
    model.generate(2, temperature=0.5, noise=noise)
    np.testing.assert_allclose(seen[0], 0.5 * 1.01 * noise[0], rtol=1e-6)


def test_temperature_by_group_and_by_row():
    model = NVAE(tiny_model_config())
    noise = model.draw_noise(3, (0, 1))
    scalar = model.generate(3, 0.6, noise)
    by_group = model.generate(3, [0.6, 0.6, 0.6], noise)
    by_row = model.generate(3, tf.constant([[0.6], [1.0], [0.6]]), noise)
    np.testing.assert_array_equal(scalar, by_group)
    np.testing.assert_array_equal(scalar[0], by_row[0])
    assert np.abs(scalar[1] - by_row[1]).max() > 1e-4
    for wrong in ([0.6, 0.6], [[0.6], [1.0]]):
        shape = re.escape(str(np.shape(wrong)))
        with pytest.raises(ValueError, match=rf"the 3 groups.*the shape {shape} for 3 samples"):
            model.generate(3, wrong, noise)


def test_wrong_images_and_noise_are_named():
    model = NVAE(tiny_model_config())
    with pytest.raises(ValueError, match=r"\(batch, 8, 8, 1\).*received \(2, 8, 6, 1\)"):
        model.infer(tf.zeros([2, 8, 6, 1]))
    with pytest.raises(ValueError, match="floats in .*received uint8"):
        model.infer(tf.zeros([2, 8, 8, 1], tf.uint8))
    for value in (255.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=rf"in \[0, 1\], received values from {value:g} to"):
            model.infer(tf.fill([2, 8, 8, 1], value))
    model.infer(tf.fill([2, 8, 8, 1], 1.001))  # as resizing may make it
    with pytest.raises(ValueError, match="one tensor for each of the 3 groups"):
        model.infer(tf.zeros([2, 8, 8, 1]), noise=model.draw_noise(2, (0, 0))[:2])
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"each of the 2 images, received {rows}"):
            model.infer(tf.zeros([2, 8, 8, 1]), noise=model.draw_noise(rows, (0, 0)))


def test_the_same_seed_draws_the_same_noise():
    model = NVAE(tiny_model_config())
    first, again = model.draw_noise(2, (3, 4)), model.draw_noise(2, (3, 4))
    other = model.draw_noise(2, (3, 5))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 0.1
    assert np.abs(first[0].numpy().ravel()[:4] - first[1].numpy().ravel()[:4]).max() > 0.1


def test_data_dependent_initialisation_happens_in_res_elu_models_only():
    for arch, changes in (("res_elu", True), ("res_bnelu", False)):
        model = NVAE(tiny_model_config(arch_instance=arch))
        before = [variable.numpy() for variable in model.trainable_variables]
        model.initialize_from_batch(random_images(model.config, 8))
        changed = [np.any(v.numpy() != old) for v, old in zip(model.trainable_variables, before)]
        assert any(changed) == changes


def test_data_dependent_initialisation_is_in_float32():
    config = tiny_model_config(arch_instance="res_elu")
    images = random_images(config, 8)
    values = [
        NVAE(config, dtype=precision).data_dependent_values(images, (0, 0))
        for precision in ("float32", "mixed_bfloat16")
    ]
    biases = [np.concatenate([v.numpy().ravel() for v in value.values()]) for value in values]
    assert np.all(np.isfinite(biases[1]))
    assert np.corrcoef(biases)[0, 1] > 0.7  # what is rounded grows from layer to layer


def test_every_variable_has_a_path_of_its_own():
    model = NVAE(tiny_model_config(num_nf=2))
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)
    named = NVAE(tiny_model_config(num_nf=2), name="mine")
    assert [variable.path for variable in named.variables] == paths


def test_what_trains_does_not_depend_on_the_flag():
    model = NVAE(tiny_model_config(arch_instance="res_elu"))
    learned, parameters = model.learned_variables(), model.num_trainable_parameters
    assert [v.path for v in learned] == [v.path for v in model.trainable_variables]
    assert [v.path for v in model.moving_averages()] == [
        v.path for v in model.non_trainable_variables
    ]
    model.trainable = False
    assert [v.path for v in model.learned_variables()] == [v.path for v in learned]
    assert model.num_trainable_parameters == parameters > 0
    before = [variable.numpy() for variable in learned]
    model.initialize_from_batch(random_images(model.config))
    assert any(np.any(a != b.numpy()) for a, b in zip(before, learned))


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"config": presets.get("quickstart")}, TypeError, "received ExperimentConfig"),
        ({"config": {}}, TypeError, "received dict"),
        ({"dtype": "float64"}, ValueError, "float32, float16, bfloat16; received float64"),
    ],
)
def test_what_is_no_model_is_refused(argument, error, message):
    with pytest.raises(error, match=message):
        NVAE(**({"config": tiny_model_config()} | argument))


@pytest.mark.parametrize("temperature", [-1.0, np.nan, [1.0, np.inf, 1.0]])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(ValueError, match="finite and not negative"):
        NVAE(tiny_model_config()).generate(1, temperature)


def test_samples_must_be_some():
    model = NVAE(tiny_model_config())
    with pytest.raises(ValueError, match="at least 1, received 0"):
        model.generate(0)
    assert len(model.generate(np.int64(2))) == 2


def test_keras_does_not_train_without_the_kl():
    model, images = NVAE(tiny_model_config()), random_images(tiny_model_config())
    model.compile("adam", "mse")
    for method in (model.fit, model.evaluate):
        with pytest.raises(NotImplementedError, match="leave out the KL"):
            method(images, images, verbose=0)


def test_keras_exports_what_reconstructs(tmp_path):
    model, images = NVAE(tiny_model_config()), random_images(tiny_model_config())
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    answer = saved.serve(images)
    assert answer.shape == model(images).shape and np.all(np.isfinite(answer))
