"""Runs what `compiled_step` wrote, with JAX's runtime and without TensorFlow.

`python benchmarks/run_compiled_step.py steps/mnist [--steps=20] [--peak_tflops=67]`

It compiles the step for the first accelerator that JAX finds, else for the CPU, takes the median
time of some steps, and prints XLA's own figures for memory and floating-point operations. The
same arguments go into every step: the weights stay as they are, which changes no time.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.extend import backend
from jaxlib import _jax, xla_client


def compile_module(module: bytes) -> Any:
    """Compiles StableHLO bytecode for the first device."""
    client = backend.get_backend()
    devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
    return client.compile_and_load(module, devices, xla_client.CompileOptions())


def load_arguments(directory: pathlib.Path, facts: dict[str, Any]) -> list[np.ndarray]:
    """Reads the step's arguments; makes up small random ones if only their shapes are known."""
    shapes = facts.pop("arguments")
    path = directory / "arguments.npz"
    if path.exists():
        with np.load(path) as arrays:
            return [arrays[name] for name in arrays.files]
    generator = np.random.default_rng(0)
    return [
        generator.normal(0, 0.05, shape).astype(dtype)
        if dtype == "float32" and shape
        else np.ones(shape, dtype)
        for shape, dtype in shapes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="what `compiled_step` wrote")
    parser.add_argument("--steps", type=int, default=20, help="steps whose median counts")
    parser.add_argument("--peak_tflops", type=float, help="the chip's peak, for a share of it")
    flags = parser.parse_args()

    jax.config.update("jax_enable_x64", True)  # the step's number has 64 bits
    facts = json.loads((flags.directory / "facts.json").read_text())
    start = time.perf_counter()
    executable = compile_module((flags.directory / "step.mlirbc").read_bytes())
    compilation = time.perf_counter() - start
    arguments = [jax.device_put(array) for array in load_arguments(flags.directory, facts)]

    def step() -> list[Any]:
        outputs = executable.execute(arguments)
        for output in outputs:
            output.block_until_ready()
        return outputs

    outputs = [np.asarray(output, np.float32) for output in step()]
    times = []
    for _ in range(flags.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    memory = executable.get_compiled_memory_stats()
    operations = executable.cost_analysis().get("flops", float("nan"))
    rows = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "loss here": float(outputs[facts.pop("loss_output")]),
        "all results are finite": all(np.isfinite(output).all() for output in outputs),
        "compilation, s": round(compilation, 1),
        "step, ms": round(1e3 * seconds, 2),
        "images/s": round(facts["replica_batch"] / seconds, 1),
        "arguments, GB": round(memory.argument_size_in_bytes / 1e9, 3),
        "outputs, GB": round(memory.output_size_in_bytes / 1e9, 3),
        "temporary, GB": round(memory.temp_size_in_bytes / 1e9, 3),
        "TFLOP/s": round(operations / seconds / 1e12, 3),
    }
    if flags.peak_tflops:
        rows["share of the peak"] = round(operations / seconds / 1e12 / flags.peak_tflops, 4)
    for name, value in [*facts.items(), *rows.items()]:
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
