"""Measures the time that TensorBoard's summaries take: `python -m benchmarks.summaries`.

The share relates summaries at their default intervals to the time of the steps in between.
Evaluating held-out images is not a summary and is not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags

from benchmarks.workloads import configurations, in_fresh_process, print_table, random_images
from nvae_tf import presets
from nvae_tf.command_line import use_devices
from nvae_tf.config import TrainConfig
from nvae_tf.data import evaluation_batches
from nvae_tf.model.inference import InferenceModel
from nvae_tf.runs.workdir import Workdir
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer
from trainers.summaries import Speed, Summaries

_WORKLOADS = flags.DEFINE_list(
    "workloads", ["quickstart", *configurations()], "Workloads to measure."
)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps whose median counts.", lower_bound=1)
_REPEATS = 5  # for scalars and for images


class Costs(NamedTuple):
    """The median times of a step and of each type of summary, in seconds."""

    step: float
    scalars: float
    images: float
    first_images: float  # includes tracing, which happens once in a run

    @property
    def share(self) -> float:
        """The summaries' time as a share of the steps' time, at the default intervals."""
        default = TrainConfig()
        per_step = self.scalars / default.log_every + self.images / default.image_every
        return per_step / self.step


def measure_summaries(name: str, steps: int) -> Costs:
    """Times a workload's training steps and their summaries."""
    use_devices(training=True)
    config = (configurations() | {"quickstart": presets.get("quickstart")})[name]
    images = random_images(config)
    trainer = Trainer(config, make_strategy(config.train.strategy), len(images))
    batches = iter(trainer.batches(images))
    for _ in range(2):
        metrics = trainer.step(batches)
    step = _median(lambda number: float(trainer.step(batches).batch.loss), steps)
    examples = next(iter(evaluation_batches(images[:16], config.model, 16)))
    with tempfile.TemporaryDirectory() as directory:
        model = InferenceModel(trainer.model)
        layers = trainer.regularizer.layers
        summaries = Summaries(Workdir(directory), config, model, layers, examples, step=0, facts={})
        speed = Speed(images_per_second=1.0, waiting=0.0)
        # As many points in the heat map as in a run of 100,000 steps.
        for number in range(1000):
            summaries.log_step(number, metrics, speed)
        scalars = _median(lambda number: summaries.log_step(1000 + number, metrics, speed))

        def log_images(number: int) -> None:
            weights = model.weights(trainer.state.evaluation_values())
            summaries.log_images(number, weights)

        first_images = _median(log_images, 1)
        images = _median(log_images)
        summaries.close()
    return Costs(step, scalars, images, first_images)


def _median(function: Callable[[int], object], repeats: int = _REPEATS) -> float:
    seconds = []
    for number in range(repeats):
        start = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for name in _WORKLOADS.value:
        costs = in_fresh_process(measure_summaries, name, _STEPS.value)
        rows.append(
            (
                name,
                f"{costs.step:.3f} s",
                f"{1000 * costs.scalars:.1f} ms",
                f"{costs.images:.2f} s",
                f"{costs.first_images:.1f} s",
                f"{costs.share:.2%}",
            )
        )
    header = ("workload", "step", "scalars", "images", "first images", "share of the time")
    print_table(header, rows)


if __name__ == "__main__":
    app.run(main)
