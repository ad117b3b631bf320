"""Convolutions of StableHLO as products of matrices, against XLA's own convolutions."""

import numpy as np
import pytest

# ruff: noqa: E402 (what follows needs JAX)
jax = pytest.importorskip("jax", reason="JAX is not installed")

from jax._src.interpreters import mlir
from jax.extend import backend
from jaxlib import _jax, xla_client
from jaxlib.mlir import ir

from benchmarks.compiled_module import count_operations, module_context
from benchmarks.matrix_products import replace_convolutions

pytestmark = pytest.mark.slow


def execute(module, arguments):
    client = backend.get_backend()
    devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
    options = xla_client.CompileOptions()
    executable = client.compile_and_load(mlir.module_to_bytecode(module), devices, options)
    return [np.asarray(output) for output in executable.execute(arguments)]


def convolution_and_gradients(strides, padding, image_dilation, kernel_dilation, groups):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            image_dilation,
            kernel_dilation,
            ("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def function(x, w):
        y = convolve(x, w)
        if groups > 1:  # whose filter gradients have groups of the batch
            return (y,)
        return y, *jax.grad(lambda x, w: jax.numpy.sin(convolve(x, w)).sum(), (0, 1))(x, w)

    return function


@pytest.mark.parametrize(
    "strides, padding, image_dilation, kernel_dilation, groups",
    [
        ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
        ((2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
        ((1, 1), ((2, 3), (2, 3)), (2, 2), (1, 1), 1),
        ((1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2), 1),
        ((2, 1), ((1, 1), (2, 0)), (1, 1), (1, 1), 6),
    ],
)
def test_products_are_the_convolutions(strides, padding, image_dilation, kernel_dilation, groups):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 9, 8, 6)).astype(np.float32)
    w = random.normal(size=(3, 3, 6 // groups, 6)).astype(np.float32)
    function = convolution_and_gradients(strides, padding, image_dilation, kernel_dilation, groups)
    arguments = [jax.device_put(x), jax.device_put(w)]
    with module_context():
        module = ir.Module.parse(str(jax.jit(function).lower(x, w).compiler_ir("stablehlo")))
        expected = execute(module, arguments)
        assert replace_convolutions(module) == (1 if groups > 1 else 4)
        assert "stablehlo.convolution" not in str(module)
        received = execute(module, arguments)
    assert len(received) == len(expected)
    for ours, theirs in zip(received, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_groups_that_are_not_channels_are_an_error():
    function = convolution_and_gradients((1, 1), "SAME", (1, 1), (1, 1), 3)
    x, w = np.zeros((2, 9, 8, 6), np.float32), np.zeros((3, 3, 2, 6), np.float32)
    with module_context():
        module = ir.Module.parse(str(jax.jit(function).lower(x, w).compiler_ir("stablehlo")))
        with pytest.raises(ValueError, match="not depthwise"):
            replace_convolutions(module)


def test_operations_are_counted():
    def function(x, w, a):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y @ a

    shapes = [(2, 8, 8, 4), (3, 3, 4, 5), (5, 7)]
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    with module_context():
        text = str(jax.jit(function).lower(*arguments).compiler_ir("stablehlo"))
        count = count_operations(ir.Module.parse(text))
    assert count == 2 * 2 * 64 * (9 * 4 * 5 + 5 * 7)
