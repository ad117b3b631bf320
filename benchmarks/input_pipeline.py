"""Reads training batches from a mapped file of random images, and nothing else.

`python -m benchmarks.input_pipeline --preset=celebahq256 --batch=96 --images=600`

It prints what a batch takes, how many images a second are read, and by how much the process's own
memory grew; the mapped file is no part of that.
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks.workloads import print_table, process_memory
from nvae_tf import presets
from nvae_tf.command_line import config_changes, define_config_flag, usage_errors, use_devices
from nvae_tf.data import training_batches

_PRESET = flags.DEFINE_string("preset", "mnist", "Configuration of the run.")
_BATCH = flags.DEFINE_integer("batch", 200, "Images in a batch.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 2000, "Images in the file.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 100, "Batches to read.", lower_bound=1)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        changes = {"train.global_batch_size": _BATCH.value}
        config = config_changes(presets.get(_PRESET.value)).override(changes)
        if _IMAGES.value < _BATCH.value:
            raise ValueError(f"--images must be at least --batch, received {_IMAGES.value}.")
    use_devices(training=True)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "images"
        shape = (_IMAGES.value, *config.model.content_shape)
        random = np.random.default_rng(0)
        with path.open("wb") as file:
            for _ in range(_IMAGES.value):
                file.write(random.bytes(int(np.prod(shape[1:]))))
        images = np.memmap(path, np.uint8, "r", shape=shape)
        before = process_memory("RssAnon")  # without mapped files
        batches = iter(training_batches(images, config))
        size = next(batches).numpy().nbytes
        start, largest = time.perf_counter(), 0
        for _ in range(_BATCHES.value):
            next(batches)
            largest = max(largest, process_memory("RssAnon"))
        seconds = time.perf_counter() - start
    rows = [
        ("bytes of a batch", f"{size:,}"),
        ("images/s", f"{_BATCHES.value * _BATCH.value / seconds:,.0f}"),
        ("more memory", f"{(largest - before) / 1e6:.0f} MB"),
    ]
    print_table((f"{_PRESET.value}, {_BATCH.value} images", ""), rows)


if __name__ == "__main__":
    define_config_flag("Changes to the preset's fields, such as --config.data.flip=true.")
    app.run(main)
