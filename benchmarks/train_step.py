"""Time of a training step, time to the first one, and memory.

`python -m benchmarks.train_step [--workloads=mnist,mnist_small,cifar10_small]`
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from absl import app, flags

from benchmarks.calibrate import calibrate
from benchmarks.workloads import (
    configurations,
    in_fresh_process,
    peak_resident_gigabytes,
    print_table,
    random_pictures,
)
from nvae_tf.config import ExperimentConfig
from nvae_tf.data import training_batches
from trainers.loop import Trainer
from trainers.programs import use_devices
from trainers.strategies import make_strategy

_WORKLOADS = flags.DEFINE_list("workloads", list(configurations()), "Which ones to measure.")
_STEPS = flags.DEFINE_integer("steps", 15, "Steps whose median counts.", lower_bound=1)


class Measurement(NamedTuple):
    """Of one workload."""

    images_per_step: int
    first_step: float  # seconds from the configuration to the end of the first step
    step: float  # seconds, median
    fastest_step: float  # seconds
    calibration: float  # seconds
    peak_memory: float  # 10^9 bytes


def measure(config: ExperimentConfig, steps: int) -> Measurement:
    """Trains on random images for that many steps after three for warming up."""
    use_devices()
    images = random_pictures(config)
    start = time.perf_counter()
    trainer = Trainer(config, make_strategy(config.train.strategy), len(images))
    iterator = iter(trainer.distribute(training_batches(images, config)))
    float(trainer.step(iterator).loss)
    first_step = time.perf_counter() - start
    seconds = []
    for i in range(steps + 3):
        start = time.perf_counter()
        float(trainer.step(iterator).loss)
        if i >= 3:
            seconds.append(time.perf_counter() - start)
    memory = peak_resident_gigabytes()
    return Measurement(
        images_per_step=config.train.global_batch_size,
        first_step=first_step,
        step=statistics.median(seconds),
        fastest_step=min(seconds),
        calibration=calibrate(),
        peak_memory=memory,
    )


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for name in _WORKLOADS.value:
        config = configurations()[name]
        result = in_fresh_process(measure, config, _STEPS.value)
        rows.append(
            (
                name,
                f"{result.first_step:.1f} s",
                f"{result.step:.3f} s",
                f"{result.fastest_step:.3f} s",
                f"{result.images_per_step / result.step:.1f}",
                f"{1000 * result.calibration:.1f} ms",
                f"{result.step / result.calibration:.1f}",
                f"{result.peak_memory:.2f} GB",
            )
        )
    header = ("workload", "first step", "step", "fastest", "images/s", "calibration")
    print_table((*header, "step / calibration", "peak memory"), rows)


if __name__ == "__main__":
    app.run(main)
