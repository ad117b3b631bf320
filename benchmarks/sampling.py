"""Time of a batch of samples: `python -m benchmarks.sampling`."""

from __future__ import annotations

import statistics
import time

import tensorflow as tf
from absl import app, flags

from benchmarks.calibrate import calibrate
from benchmarks.workloads import (
    configurations,
    in_fresh_process,
    peak_resident_gigabytes,
    print_table,
)
from nvae_tf import NVAE
from nvae_tf.config import ExperimentConfig
from trainers.programs import use_devices

_WORKLOADS = flags.DEFINE_list("workloads", list(configurations()), "Which ones to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Batches whose median counts.", lower_bound=1)


def measure(config: ExperimentConfig, repeats: int) -> tuple[float, float, float, float]:
    """Seconds to the first batch, of a batch (median), of a calibration; peak memory in 10^9 B."""
    use_devices()
    start = time.perf_counter()
    model = NVAE(config.model)
    batch = config.train.global_batch_size

    @tf.function(autograph=False)
    def sample(seed):
        noise = model.draw_noise(batch, seed)
        return model.likelihood(model.generate(batch, 0.7, noise)).mean()

    sample(tf.constant([0, 0])).numpy()
    first = time.perf_counter() - start
    seconds = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        sample(tf.constant([0, i])).numpy()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    memory = peak_resident_gigabytes()
    return first, statistics.median(seconds), calibrate(), memory


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for name in _WORKLOADS.value:
        config = configurations()[name]
        first, seconds, calibration, memory = in_fresh_process(measure, config, _REPEATS.value)
        batch = config.train.global_batch_size
        rows.append(
            (
                name,
                str(batch),
                f"{first:.1f} s",
                f"{1000 * seconds:.0f} ms",
                f"{batch / seconds:.1f}",
                f"{1000 * calibration:.1f} ms",
                f"{seconds / calibration:.1f}",
                f"{memory:.2f} GB",
            )
        )
    header = ("workload", "batch", "first batch", "batch time", "images/s", "calibration")
    print_table((*header, "batch time / calibration", "peak memory"), rows)


if __name__ == "__main__":
    app.run(main)
