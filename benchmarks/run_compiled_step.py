"""Times what `compiled_step` wrote, with JAX's runtime and without TensorFlow.

`python -m benchmarks.run_compiled_step steps/mnist [--calls=20] [--peak_tflops=67]`

It compiles the step for the first accelerator that JAX finds, else for the CPU, takes the median
time of some calls, and prints XLA's figures for memory, and the floating-point operations of its
products and convolutions.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from benchmarks.compiled_module import CompiledModules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="what `compiled_step` wrote")
    parser.add_argument("--calls", type=int, default=20, help="calls whose median counts")
    parser.add_argument("--peak_tflops", type=float, help="the chip's peak, for a share of it")
    flags = parser.parse_args()

    modules = CompiledModules(flags.directory)
    operations = modules.operations("step")  # fails without the module's file: before the calls
    start = time.perf_counter()
    executable = modules.compile("step")
    compilation = time.perf_counter() - start
    shape, _ = modules.facts["modules"]["step"]["inputs"][0]
    images = jax.device_put(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
    first = np.asarray(modules.call("step", images))
    times = []
    for _ in range(flags.calls):
        start = time.perf_counter()
        last = modules.call("step", images).block_until_ready()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times) / shape[0]
    memory = executable.get_compiled_memory_stats()
    rows = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "batch": shape[1],
        "precision": modules.facts["config"]["train"]["precision"],
        "compilation, s": round(compilation, 1),
        "first": dict(zip(modules.facts["metrics"], first.tolist())),
        "last": dict(zip(modules.facts["metrics"], np.asarray(last).tolist())),
        "step, ms": round(1e3 * seconds, 2),
        "images/s": round(shape[1] / seconds, 1),
        "arguments, GB": round(memory.argument_size_in_bytes / 1e9, 3),
        "outputs, GB": round(memory.output_size_in_bytes / 1e9, 3),
        "temporary, GB": round(memory.temp_size_in_bytes / 1e9, 3),
        "TFLOP/s": round(operations / seconds / 1e12, 3),
    }
    if flags.peak_tflops:
        rows["share of the peak"] = round(operations / seconds / 1e12 / flags.peak_tflops, 4)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
