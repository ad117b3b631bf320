"""Start-up of a step on several replicas: `python -m benchmarks.replicas --preset=cifar10`.

The replicas are logical devices of the CPU, so what is measured is what the host does before the
first step on as many GPUs: it builds the model, traces the step and prints how large it became.
With `--steps`, it takes some, and prints their losses, which depend on the global batch alone.
"""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.workloads import peak_resident_gigabytes, print_table
from nvae_tf import presets
from nvae_tf.command_line import config_changes, define_config_flag, usage_errors, use_devices
from trainers.run.strategies import make_strategy
from trainers.run.traced_step import Batches
from trainers.run.trainer import Trainer

_PRESET = flags.DEFINE_string("preset", "cifar10", "Configuration of the run.")
_REPLICAS = flags.DEFINE_integer("replicas", 8, "Number of logical devices.", lower_bound=1)
_BATCH = flags.DEFINE_integer("replica_batch", 2, "Images on each replica.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps to take.", lower_bound=0)


def main(argv: list[str]) -> None:
    replicas = _REPLICAS.value
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        replicas * [tf.config.LogicalDeviceConfiguration()],
    )
    use_devices(training=True)
    with usage_errors(argv):
        config = config_changes(presets.get(_PRESET.value)).override(
            {"train.global_batch_size": replicas * _BATCH.value}
        )
    images = np.random.default_rng(0).integers(
        256, size=(2 * replicas * _BATCH.value, *config.model.content_shape), dtype=np.uint8
    )
    strategy = "mirrored" if replicas > 1 else "one_device"
    start = time.perf_counter()
    trainer = Trainer(config, make_strategy(strategy), len(images))
    batches = trainer.batches(images)
    built = time.perf_counter()
    trainer.trace(batches)
    traced = time.perf_counter()
    rows = [
        ("build", f"{built - start:.1f} s"),
        ("trace", f"{traced - built:.1f} s"),
        ("operations", f"{count_operations(trainer, batches):,}"),
        ("peak memory after tracing", f"{peak_resident_gigabytes():.2f} GB"),
    ]
    iterator = iter(batches)
    for step in range(1, _STEPS.value + 1):
        start = time.perf_counter()
        loss = float(trainer.step(iterator).batch.loss)
        rows.append((f"step {step}", f"{time.perf_counter() - start:.1f} s, loss {loss:.4f}"))
    if _STEPS.value:
        rows.append(("peak memory after these steps", f"{peak_resident_gigabytes():.2f} GB"))
    print_table((f"{_PRESET.value}, {replicas} replicas", ""), rows)


def count_operations(trainer: Trainer, batches: Batches) -> int:
    """Returns the number of operations in the graph of a step and in all functions it calls."""
    definition = trainer.traced_step().concrete_functions(batches)[0].graph.as_graph_def()
    functions = sum(len(function.node_def) for function in definition.library.function)
    return len(definition.node) + functions


if __name__ == "__main__":
    define_config_flag("Changes to the preset's fields, such as --config.train.jit_compile=none.")
    app.run(main)
