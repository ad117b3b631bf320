"""Normalisations as parts of the convolutions beside them."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.layers.cells import ResidualCell
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.folding import fold
from nvae_tf.model.layers.kernels import KernelBank
from nvae_tf.model.stacks import read_values
from tests.conftest import random_images, tiny_model_config


def random_values(variables):
    """Values with which every normalisation does something, and none of it the same."""
    random = np.random.default_rng(0)
    return {
        v.path: tf.constant(
            random.uniform(0.5, 2.0, v.shape)
            if v.path.endswith(("gamma", "moving_variance"))
            else random.normal(size=v.shape) * (0.3 if "kernel" in v.path else 0.5),
            tf.float32,
        )
        for v in variables
    }


def parts(cell):
    layers = list(cell._flatten_layers())
    return (
        [layer for layer in layers if hasattr(layer, "effective_kernel")],
        [layer for layer in layers if hasattr(layer, "moving_mean")],
    )


@pytest.mark.parametrize("kind", ["normal", "down", "up"])
@pytest.mark.parametrize(
    ("operations", "left"),  # normalisations that no convolution takes over
    [
        (["res_bnswish", "res_bnswish"], 1),
        (["res_bnelu", "res_bnelu"], 1),
        (["res_elu", "res_elu"], 0),
        (["mconv_e3k5g0"], 0),
        (["mconv_e6k5g8", "mconv_e6k3g0"], 0),
        (["mconv_e3k5g0", "res_bnswish"], 1),
        (["res_bnswish", "mconv_e3k5g0"], 1),
    ],
)
def test_a_folded_cell_computes_the_same(kind, operations, left):
    cell = ResidualCell(operations, kind, use_se=True)
    cell.build((None, 8, 8, 8))
    x = tf.random.stateless_normal([2, 8, 8, 8], (0, 0))
    values = random_values(cell.variables)
    with functional_call(cell, values):
        expected = cell(x)
        convolutions, normalizations = parts(cell)
        bank = KernelBank(convolutions)
        kernels = bank.split(bank.compute())
    folded = fold(convolutions, normalizations, cell.folds(), values, kernels)
    assert len(folded.scales) == left
    with functional_call(cell, values, folded=folded):
        actual = cell(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("arch_instance", ["res_mbconv", "res_bnswish", "res_bnelu", "res_elu"])
def test_a_folded_model_computes_the_same(arch_instance):
    model = NVAE(tiny_model_config(arch_instance=arch_instance, num_nf=1))
    for layer in model.batch_normalizations():
        values = random_values(layer.variables)
        for variable in layer.variables:
            variable.assign(values[variable.path])
    images, noise = random_images(model.config), model.draw_noise(3, (0, 1))
    expected = model.infer(images, noise)
    actual = InferenceModel(model).infer(images, noise)
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual.kl_per_group, expected.kl_per_group, rtol=1e-4, atol=1e-4)


def test_a_folded_layer_cannot_train():
    model = NVAE(tiny_model_config())
    with InferenceModel(model).scope(), pytest.raises(ValueError, match="is folded"):
        model.infer(random_images(model.config), training=True)


def test_everything_else_keeps_its_value():
    cell = ResidualCell(["res_bnswish"], "normal", use_se=False)
    cell.build((None, 4, 4, 4))
    convolutions, normalizations = parts(cell)
    values = read_values(cell.variables)
    kernels = {convolutions[0].kernel.path: convolutions[0].effective_kernel()}
    folded = fold(convolutions, normalizations, cell.folds(), values, kernels)
    (path,) = kernels
    np.testing.assert_array_equal(folded.kernels[path], kernels[path])
    np.testing.assert_array_equal(folded.biases[path], convolutions[0].bias)
