"""What `compiled_step` wrote, in JAX's runtime; imports no TensorFlow."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax.extend import backend
from jaxlib import _jax, xla_client
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo


class CompiledModules:
    """The modules of a directory, and the variables that they share, on the first device.

    Args:
      directory: What `compiled_step` wrote. Without its `state.npz`, the variables have made-up
        values of their shapes, which is enough to take times.

    Attributes:
      facts: What `facts.json` says.
      state: The variables' values.
    """

    def __init__(self, directory: pathlib.Path):
        jax.config.update("jax_enable_x64", True)  # the step's number has 64 bits
        self._directory = directory
        self.facts: dict[str, Any] = json.loads((directory / "facts.json").read_text())
        path = directory / "state.npz"
        if path.exists():
            with np.load(path) as arrays:
                values = [arrays[str(i)] for i in range(len(arrays.files))]
        else:
            values = [_made_up(*variable) for variable in self.facts["variables"]]
        self.state = [jax.device_put(value) for value in values]
        self._executables: dict[str, Any] = {}

    def compile(self, name: str) -> Any:
        """Compiles a module, unless that was done before; returns XLA's executable.

        On a GPU, it loads what `compile_for_gpu` has compiled, if that is there.
        """
        if name not in self._executables:
            client = backend.get_backend()
            devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
            options = xla_client.CompileOptions()
            compiled = self._directory / f"{name}.gpu"
            if client.platform != "cpu" and compiled.exists():
                executable = client.deserialize_executable(compiled.read_bytes(), devices, options)
            else:
                with module_context():
                    module = mlir.module_to_bytecode(read_module(self._directory, name))
                executable = client.compile_and_load(module, devices, options)
            self._executables[name] = executable
        return self._executables[name]

    def call(self, name: str, *inputs: Any) -> Any:
        """Calls a module, which changes the state; returns its first output without waiting."""
        interface = self.facts["modules"][name]
        arguments = [*map(jax.device_put, inputs), *(self.state[i] for i in interface["state"])]
        outputs = self.compile(name).execute(arguments)
        for output, argument in interface["updates"]:
            self.state[interface["state"][argument - len(inputs)]] = outputs[output]
        return outputs[0]

    def operations(self, name: str) -> float:
        """Returns a module's floating-point operations, see `count_operations`.

        `compile_for_gpu` writes them down, so that its result does without the module itself.
        """
        facts = self.facts["modules"][name]
        if "operations" not in facts:
            with module_context():
                facts["operations"] = count_operations(read_module(self._directory, name))
        return facts["operations"]


def read_module(directory: pathlib.Path, name: str) -> ir.Module:
    """Reads StableHLO, and removes copies of what a function returns, which it cannot express.

    The caller must have entered the context that `module_context` returns.
    """
    module = ir.Module.parse((directory / f"{name}.mlirbc").read_bytes())
    for copy in operations(module, "mhlo.copy"):
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()
    return module


def operations(inside: Any, *names: str) -> list[Any]:
    """Returns the operations of these names inside of a module or of one of its functions."""
    found: list[Any] = []

    def collect(operation: Any) -> ir.WalkResult:
        if operation.name in names:
            found.append(operation.operation)
        return ir.WalkResult.ADVANCE

    inside.operation.walk(collect)
    return found


def count_operations(module: ir.Module) -> float:
    """Counts floating-point operations of products and convolutions; a loop counts as one turn."""
    functions = {f.name.value: f for f in module.body.operations if f.name.value}
    totals: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in totals:
            function = functions[name]
            products = operations(function, "stablehlo.dot_general", "stablehlo.dot")
            convolutions = operations(function, "stablehlo.convolution")
            calls = operations(function, "func.call")
            totals[name] = (
                sum(map(_of_product, products))
                + sum(map(_of_convolution, convolutions))
                + sum(total(call.attributes["callee"].value) for call in calls)
            )
        return totals[name]

    return total("main")


def _shape(value: Any) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _of_product(operation: Any) -> float:
    left = _shape(operation.operands[0])
    contracted = [len(left) - 1]
    if operation.name == "stablehlo.dot_general":
        numbers = stablehlo.DotDimensionNumbers(operation.attributes["dot_dimension_numbers"])
        contracted = list(numbers.lhs_contracting_dimensions)
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * math.prod(_shape(operation.results[0])) * inner


def _of_convolution(operation: Any) -> float:
    numbers = stablehlo.ConvDimensionNumbers(operation.attributes["dimension_numbers"])
    kernel = _shape(operation.operands[1])
    taps = math.prod(kernel) / kernel[numbers.kernel_output_feature_dimension]
    return 2.0 * math.prod(_shape(operation.results[0])) * taps


def module_context() -> ir.Context:
    """Returns the context that `read_module` needs."""
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    return context


def _made_up(shape: list[int], dtype: str, name: str, scalar: float | None) -> np.ndarray:
    """Returns a value with which a step is finite, so that it does all that a step does."""
    if scalar is not None:
        return np.asarray(scalar, dtype)
    if name in ("weights", "singular_vector"):
        return np.random.default_rng(0).normal(0, 0.05, shape).astype(dtype)
    return np.ones(shape, dtype) if name == "statistics" else np.zeros(shape, dtype)
