"""Residual cells: every operation list in every kind of cell."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.model.layers.cells import (
    KINDS,
    DownSkip,
    InvertedBottleneck,
    ResidualCell,
    SqueezeExcitation,
    UpSkip,
    upsample_nearest,
)
from nvae_tf.model.layers.context import functional_call

OPERATION_LISTS = sorted(
    {operations for cells in ARCHITECTURES.values() for operations in dataclasses.astuple(cells)}
)


@pytest.mark.parametrize("operations", OPERATION_LISTS, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_shape_gradients_and_serialisation(operations, kind):
    cell = ResidualCell(operations, kind, use_se=True)
    x = tf.random.stateless_normal([2, 6, 4, 8], (0, 0))
    with tf.GradientTape() as tape:
        y = cell(x, training=True)
        loss = tf.reduce_sum(tf.square(y))
    expected = {"normal": (2, 6, 4, 8), "down": (2, 3, 2, 16), "up": (2, 12, 8, 4)}
    assert tuple(y.shape) == expected[kind]
    gradients = tape.gradient(loss, [v.value for v in cell.trainable_variables])
    assert all(g is not None and np.all(np.isfinite(g)) for g in gradients)

    copy = ResidualCell.from_config(cell.get_config())
    copy.build(x.shape)
    assert [v.path for v in copy.variables] == [v.path for v in cell.variables]
    copy.set_weights(cell.get_weights())
    np.testing.assert_array_equal(copy(x), cell(x))


def test_the_branch_is_scaled_by_a_tenth():
    cell = ResidualCell(["res_bnswish"], "normal", use_se=False)
    x = tf.random.stateless_normal([1, 4, 4, 8], (0, 0))
    y = cell(x)
    np.testing.assert_allclose(y, x + 0.1 * cell.branch[0](x), rtol=1e-6)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="normal, down, up; received 'side'"):
        ResidualCell(["res_bnswish"], "side", use_se=False)


def test_down_skip_reads_each_pixel_of_a_square_once():
    skip = DownSkip(9)
    x = tf.random.stateless_normal([1, 4, 6, 3], (0, 0))
    y = skip(x)
    assert [c.filters for c in skip.convolutions] == [2, 2, 2, 3]
    swish = tf.nn.silu(x)
    for i, (row, column) in enumerate([(0, 0), (1, 1), (0, 1), (1, 0)]):
        start, end = 2 * i, 2 * i + (2 if i < 3 else 3)
        expected = skip.convolutions[i](swish[:, row::2, column::2])
        np.testing.assert_allclose(y[..., start:end], expected, atol=1e-6)


def test_up_skip_is_bilinear_with_aligned_corners():
    skip = UpSkip(4)
    ramp = tf.reshape(tf.range(4, dtype=tf.float32), [1, 1, 4, 1]) * tf.ones([1, 2, 1, 8])
    y = skip(ramp)
    kernel = tf.reduce_sum(skip.convolution.effective_kernel(), axis=2)[0, 0]
    expected = np.linspace(0, 3, 8)[:, None] * kernel.numpy()  # first and last pixel stay put
    for row in range(4):
        np.testing.assert_allclose(y[0, row], expected, atol=1e-5)


def test_up_skip_in_xla_is_the_same_interpolation():
    skip = UpSkip(4)
    x = tf.random.stateless_normal([2, 3, 5, 8], (0, 0))
    y = skip(x)
    with functional_call(skip, jit_compile="step"):
        np.testing.assert_allclose(skip(x), y, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_an_up_bottleneck_equals_up_sampling_first(training):
    up = InvertedBottleneck("mconv_e3k5g0", 4, "up")
    x = tf.random.stateless_normal([2, 3, 4, 8], (0, 0))
    up.build(x.shape)
    plain = InvertedBottleneck("mconv_e3k5g0", 4, "normal")
    plain.build((2, 6, 8, 8))
    plain.set_weights(up.get_weights())
    np.testing.assert_allclose(
        up(x, training=training), plain(upsample_nearest(x), training=training), atol=1e-5
    )
    for ours, theirs in zip(up.non_trainable_variables, plain.non_trainable_variables):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_upsample_nearest():
    x = tf.constant([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    np.testing.assert_array_equal(upsample_nearest(x)[0, :, :, 0], expected)


def test_squeeze_and_excitation_gates_channels():
    layer = SqueezeExcitation()
    x = tf.random.stateless_normal([2, 3, 3, 80], (0, 0))
    y = layer(x)
    assert layer.squeeze.units == 5 and SqueezeExcitation.__name__ in str(layer)
    ratio = (y / x).numpy()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)
    assert ratio.min() > 0 and ratio.max() < 1
    assert keras.saving.get_registered_name(SqueezeExcitation) == "nvae_tf>SqueezeExcitation"
