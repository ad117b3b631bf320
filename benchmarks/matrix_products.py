"""Convolutions of a StableHLO module as products of matrices.

The code that a machine without a GPU compiles for one has no algorithms for cuDNN's convolutions:
they are chosen by measuring. Products of matrices need no such choice.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func

from benchmarks.compiled_module import operations


def replace_convolutions(module: ir.Module) -> int:
    """Replaces all convolutions of a module, in place; returns how many there were.

    Args:
      module: StableHLO; its context is entered.

    Raises:
      ValueError: A convolution has groups that are not channels, or groups of the batch.
    """
    found = operations(module, "stablehlo.convolution")
    names: dict[str, str] = {}
    for operation in found:
        text = str(operation)
        signature = text[text.index("dim_numbers") :]
        if signature not in names:
            names[signature] = f"convolution_as_products_{len(names)}"
            _add_function(module, names[signature], operation, signature)
        with ir.InsertionPoint(operation), operation.location:
            call = func.CallOp(
                [result.type for result in operation.results],
                ir.FlatSymbolRefAttr.get(names[signature]),
                list(operation.operands),
            )
        operation.results[0].replace_all_uses_with(call.results[0])
        operation.erase()
    return len(found)


def _add_function(module: ir.Module, name: str, operation: Any, signature: str) -> None:
    """Adds a private function to the module that computes what a convolution does."""
    convolve = _Convolution(signature)
    operands = [
        jax.ShapeDtypeStruct(tuple(t.shape), _DTYPES[str(t.element_type)])
        for t in (ir.RankedTensorType(value.type) for value in operation.operands)
    ]
    lowered = jax.jit(convolve).lower(*operands).compiler_ir("stablehlo")
    text = str(lowered).replace("@main", f"@{name}").replace("func.func public", "func.func")
    # Functions that jax calls from it would need names of their own.
    for private in set(re.findall(r"func\.func private @(\w+)", text)):
        text = re.sub(rf"@{private}\b", f"@{name}_{private}", text)
    for function in ir.Module.parse(text).body.operations:
        copy = function.operation.clone(ip=ir.InsertionPoint(module.body))
        copy.attributes["sym_visibility"] = ir.StringAttr.get("private")


_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


class _Convolution:
    """What an operation computes, from the text of its attributes."""

    def __init__(self, signature: str):
        dimensions = re.search(r"dim_numbers = \[(.*?)\]x\[(.*?)\]->\[(.*?)\]", signature)
        assert dimensions
        self._images, self._kernel, self._output = (d.split(", ") for d in dimensions.groups())
        self._strides = self._numbers("stride", signature, [1, 1])
        padding = re.search(r"pad = \[\[(.*?)\], \[(.*?)\]\]", signature)
        self._padding = [[0, 0], [0, 0]]
        if padding:
            self._padding = [[int(n) for n in side.split(", ")] for side in padding.groups()]
        self._image_dilation = self._numbers("lhs_dilate", signature, [1, 1])
        self._kernel_dilation = self._numbers("rhs_dilate", signature, [1, 1])
        reverse = re.search(r"reverse = \[(\w+), (\w+)\]", signature)
        self._reverse = [word == "true" for word in reverse.groups()] if reverse else [False] * 2
        self._groups = int(re.search(r"feature_group_count = (\d+)", signature)[1])  # type: ignore
        if "batch_group_count = 1 " not in signature:
            raise ValueError(f"Groups of the batch are not supported: {signature}")

    @staticmethod
    def _numbers(name: str, signature: str, default: list[int]) -> list[int]:
        found = re.search(rf"\b{name} = \[(\d+), (\d+)\]", signature)
        return [int(n) for n in found.groups()] if found else default

    def __call__(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        x = jnp.transpose(images, [self._images.index(d) for d in "b01f"])
        w = jnp.transpose(kernel, [self._kernel.index(d) for d in "01io"])
        depthwise = self._groups > 1
        if depthwise and (self._groups != x.shape[3] or w.shape[2:] != (1, self._groups)):
            raise ValueError(f"{self._groups} groups of {x.shape} and {w.shape}: not depthwise.")
        for axis, reverse in enumerate(self._reverse):
            w = jnp.flip(w, axis) if reverse else w
        dilated = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(self._padding, self._image_dilation)
        ]
        x = jax.lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *dilated, (0, 0, 0)])
        window, gaps = w.shape[:2], self._kernel_dilation
        size = [
            (side - (taps - 1) * gap - 1) // stride + 1
            for side, taps, gap, stride in zip(x.shape[1:3], window, gaps, self._strides)
        ]
        if np.prod(window) <= np.prod(size):
            y = self._by_taps(x, w, size, depthwise)
        else:
            y = self._by_places(x, w, size, depthwise)
        order = ["b01f".index(d) for d in self._output]
        return jnp.transpose(y, order).astype(images.dtype)

    def _by_taps(self, x: Any, w: Any, size: list[int], depthwise: bool) -> jax.Array:
        """Multiplies the pixels under each tap of the kernel with it, and sums over the taps."""
        moved = []
        for tap in itertools.product(*map(range, w.shape[:2])):
            start = [t * gap for t, gap in zip(tap, self._kernel_dilation)]
            moved.append((_every(x, start, size, self._strides), w[tap]))
        if depthwise:
            return sum(m.astype(jnp.float32) * tap[0].astype(jnp.float32) for m, tap in moved)
        columns = jnp.concatenate([m for m, _ in moved], axis=3)
        return jnp.einsum(
            "bijc,co->bijo",
            columns,
            w.reshape([-1, w.shape[3]]),
            preferred_element_type=jnp.float32,
        )

    def _by_places(self, x: Any, w: Any, size: list[int], depthwise: bool) -> jax.Array:
        """Multiplies the whole kernel with the pixels under it, for each place of the output."""
        rows = []
        for place in itertools.product(*map(range, size)):
            start = [p * s for p, s in zip(place, self._strides)]
            taken = _every(x, start, w.shape[:2], self._kernel_dilation)
            form = "bijc,ijc->bc" if depthwise else "bijc,ijco->bo"
            factor = w[:, :, 0] if depthwise else w
            rows.append(jnp.einsum(form, taken, factor, preferred_element_type=jnp.float32))
        return jnp.stack(rows, axis=1).reshape([x.shape[0], *size, -1])


def _every(x: jax.Array, start: list[int], count: Any, steps: list[int]) -> jax.Array:
    """Returns pixels (B, *count, C) of images, from a place on, with steps between them."""
    rows, columns = (slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, count, steps))
    return x[:, rows, columns]
