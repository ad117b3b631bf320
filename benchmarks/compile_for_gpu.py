"""Compiles what `compiled_step` wrote for an H100, on a machine without one.

`python -m benchmarks.compile_for_gpu steps/mnist`

It needs JAX with its CUDA plugin (`pip install jax[cuda13]`), of the version that will run it.
`run_compiled_step` and `train_compiled_step` load the result instead of compiling. Algorithms
cannot be chosen by measuring here: convolutions become products of matrices, for which cuBLAS
chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

# Read when JAX starts. Without a GPU, nothing can be tuned by measuring.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_gpu_autotune_level=0",
        "--xla_gpu_enable_triton_gemm=false",
    ]
)

from jax.experimental import topologies
from jaxlib import _jax, xla_client

from benchmarks.compiled_module import count_operations, module_context, read_module
from benchmarks.matrix_products import replace_convolutions

# XLA's description of the chip.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def _write(path: pathlib.Path, content: bytes) -> None:
    """Does what `nvae_tf.files.write_atomically` does, which is out of reach without TensorFlow."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="what `compiled_step` wrote")
    directory = parser.parse_args().directory

    facts = json.loads((directory / "facts.json").read_text())
    topology = topologies.get_topology_desc("h100", "cuda", target_config=_H100, topology="1x1x1")
    device = topology.devices[0]
    for path in sorted(directory.glob("*.mlirbc")):
        start = time.perf_counter()
        with module_context():
            module = read_module(directory, path.stem)
            facts["modules"][path.stem]["operations"] = count_operations(module)
            count = replace_convolutions(module)
            executable = device.client.compile(
                module, _jax.DeviceList((device,)), xla_client.CompileOptions()
            )
        code = executable.serialize()
        _write(path.with_suffix(".gpu"), code)
        seconds = time.perf_counter() - start
        _write(directory / "facts.json", (json.dumps(facts) + "\n").encode())
        print(f"{path.stem}: {count} convolutions, {seconds:.0f} s, {len(code) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
