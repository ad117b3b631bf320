"""Measures the time of a training step, the time to the first one, and the memory.

`python -m benchmarks.train_step [--workloads=mnist,mnist_4_2,cifar10_small]`
"""

from __future__ import annotations

from collections.abc import Callable

from absl import app, flags

from benchmarks.workloads import (
    Measurement,
    configurations,
    measure,
    measure_workloads,
    random_images,
)
from nvae_tf.command_line import use_devices
from nvae_tf.config import ExperimentConfig
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

_WORKLOADS = flags.DEFINE_list("workloads", list(configurations()), "Workloads to measure.")
_STEPS = flags.DEFINE_integer("steps", 15, "Steps whose median counts.", lower_bound=1)


def measure_training(config: ExperimentConfig, steps: int) -> Measurement:
    """Times training steps on random images."""
    use_devices(training=True)
    images = random_images(config)

    def prepare() -> Callable[[], object]:
        trainer = Trainer(config, make_strategy(config.train.strategy), len(images))
        iterator = iter(trainer.batches(images))
        return lambda: float(trainer.step(iterator).batch.loss)

    return measure(prepare, config.train.global_batch_size, steps)


def main(argv: list[str]) -> None:
    del argv
    measure_workloads("step", _WORKLOADS.value, measure_training, _STEPS.value)


if __name__ == "__main__":
    app.run(main)
