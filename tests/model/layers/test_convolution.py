"""Convolutions: padding, weight normalisation, masks, shared kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.convolution import (
    Convolution,
    MaskedConvolution,
    WeightNormConvolution,
)
from nvae_tf.model.layers.kernels import KernelBank
from nvae_tf.model.layers.masks import autoregressive_mask


def direct_convolution(x, kernel, strides, dilation, groups):
    """Cross-correlation with a symmetric border of zeros, by its definition, in NumPy."""
    size = kernel.shape[0]
    border = dilation * (size - 1) // 2
    x = np.pad(x, [(0, 0), (border, border), (border, border), (0, 0)])
    span = dilation * (size - 1)
    rows = (x.shape[1] - span - 1) // strides + 1
    columns = (x.shape[2] - span - 1) // strides + 1
    per_group_in, per_group_out = kernel.shape[2], kernel.shape[3] // groups
    y = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            top, left = dilation * i, dilation * j
            patch = x[
                :, top : top + strides * rows : strides, left : left + strides * columns : strides
            ]
            for g in range(groups):
                out = slice(g * per_group_out, (g + 1) * per_group_out)
                source = patch[..., g * per_group_in : (g + 1) * per_group_in]
                y[..., out] += source @ kernel[i, j, :, out]
    return y


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_padding_is_symmetric(kernel_size, strides, groups):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 8)).astype(np.float32)
    layer = Convolution(8, kernel_size, strides, groups=groups, use_bias=False)
    y = layer(x)
    expected = direct_convolution(x, layer.kernel.numpy(), strides, 1, groups)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2])
def test_dilation(strides):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 4)).astype(np.float32)
    layer = Convolution(5, 3, strides, dilation=2, use_bias=False)
    expected = direct_convolution(x, layer(x) is not None and layer.kernel.numpy(), strides, 2, 1)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("strides", [1, 2])
def test_gradients_exist_on_this_device(groups, strides):
    x = tf.random.stateless_normal([1, 4, 4, 8], (0, 0))
    layer = Convolution(8, 3, strides, dilation=1, groups=groups)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.square(layer(x)))
    gradients = tape.gradient(loss, [x, layer.kernel.value, layer.bias.value])
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradients)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="3 groups must divide.*received 8 and 6"):
        Convolution(6, 3, groups=3).build((None, 4, 4, 8))


def test_weight_normalisation():
    layer = WeightNormConvolution(6, 3)
    layer.build((None, 4, 4, 5))
    norm = np.sqrt(np.sum(np.square(layer.kernel.numpy()), axis=(0, 1, 2)))
    # At the start g = log(|v| + 0.01): the effective norm is |v| + 0.01, but for the 1e-5.
    effective = np.sqrt(np.sum(np.square(layer.effective_kernel()), axis=(0, 1, 2)))
    np.testing.assert_allclose(effective, (norm + 0.01) * norm / (norm + 1e-5), rtol=1e-5)
    layer.log_scale.assign(np.log(np.arange(1.0, 7.0)))
    effective = np.sqrt(np.sum(np.square(layer.effective_kernel()), axis=(0, 1, 2)))
    np.testing.assert_allclose(effective, np.arange(1.0, 7.0), rtol=1e-4)


def test_initial_distribution():
    layer = WeightNormConvolution(400, 3)
    layer.build((None, 4, 4, 20))
    limit = 1 / np.sqrt(9 * 20)
    for values in (layer.kernel.numpy(), layer.bias.numpy()):
        assert np.abs(values).max() <= limit
        assert np.abs(values).max() > 0.95 * limit
        np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.1)


def test_data_dependent_initialisation():
    x = 3 + 2 * tf.random.stateless_normal([16, 8, 8, 4], (0, 0))
    layer = WeightNormConvolution(6, 3, data_init=True)
    layer(x)
    with functional_call(layer, initialize=True):
        layer(x)
    mean, variance = tf.nn.moments(layer(x), [0, 1, 2])
    np.testing.assert_allclose(mean, np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(np.sqrt(variance), np.full(6, 0.2), rtol=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_what_a_masked_convolution_leaves_out_is_hidden(mirror, size):
    layer = MaskedConvolution(6, size, strict=False, mirror=mirror)
    x = tf.random.stateless_normal([2, 7, 5, 3], (0, 0))
    y = layer(x)
    expected = tf.nn.conv2d(x, layer.effective_kernel(), 1, "SAME") + layer.bias
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("channels", "filters"), [(2, 6), (6, 2), (3, 3)])
def test_gradients_show_the_order_of_a_masked_convolution(strict, mirror, channels, filters):
    layer = MaskedConvolution(filters, 3, strict=strict, mirror=mirror)
    x = tf.random.stateless_normal([1, 3, 3, channels], (0, 0))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)[0]
    jacobian = np.abs(tape.jacobian(y, x).numpy())[:, :, :, 0] > 0  # [h, w, out, h, w, in]
    blocks = min(channels, filters)
    order = np.arange(9).reshape(3, 3)
    order = -order if mirror else order
    for (h, w, out, i, j, c), depends in np.ndenumerate(jacobian):
        before = out * blocks // filters - c * blocks // channels  # blocks in between
        if abs(h - i) > 1 or abs(w - j) > 1:
            allowed = False
        elif (h, w) == (i, j):
            allowed = before > 0 if strict else before >= 0
        else:
            allowed = order[i, j] < order[h, w]
        assert depends == allowed, (h, w, out, i, j, c)


def test_depthwise_mask():
    mask = autoregressive_mask(5, 4, 4, groups=4, strict=False, mirror=False)
    assert mask.shape == (5, 5, 1, 4)
    np.testing.assert_array_equal(mask[2, :, 0, 0], [1, 1, 1, 0, 0])
    assert mask[:2].all() and not mask[3:].any()
    strict = autoregressive_mask(5, 4, 4, groups=4, strict=True, mirror=False)
    np.testing.assert_array_equal(strict[2, :, 0, 0], [1, 1, 0, 0, 0])


def test_mask_needs_channels_that_divide():
    with pytest.raises(ValueError, match="received 4 and 6"):
        autoregressive_mask(3, 4, 6, 1, False, False)


def test_kernel_bank_gives_every_layer_its_own_kernel():
    layers = [
        WeightNormConvolution(4, 3),
        WeightNormConvolution(4, 3),
        Convolution(4, 3),
        WeightNormConvolution(5, 3),
        MaskedConvolution(4, 3, strict=True, mirror=True),
    ]
    for layer in layers:
        layer.build((None, 4, 4, 4))
    bank = KernelBank(layers)
    alone = [layer.effective_kernel() for layer in layers]
    stacks = bank.compute()
    with functional_call(keras.Sequential(layers), kernels=bank.split(stacks)):
        shared = [layer.effective_kernel() for layer in layers]
    assert [stack.shape[0] for stack in stacks] == [2, 1, 1, 1]
    for a, b in zip(alone, shared):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    layers[0].kernel.assign(2 * layers[0].kernel)
    assert np.abs(layers[2].effective_kernel() - alone[2]).max() == 0


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(4, 3, 2, groups=2, use_bias=False),
        WeightNormConvolution(4, 3, dilation=2, data_init=True, log_scale_shift=-1.0),
        MaskedConvolution(6, 3, strict=True, mirror=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_serialisation(layer):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
