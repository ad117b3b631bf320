"""Measures the time to draw a batch of samples: `python -m benchmarks.sampling`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags

from benchmarks.workloads import (
    Measurement,
    configurations,
    measure,
    measure_workloads,
)
from nvae_tf import NVAE
from nvae_tf.command_line import use_devices
from nvae_tf.config import ExperimentConfig
from nvae_tf.model.inference import InferenceModel

_WORKLOADS = flags.DEFINE_list("workloads", list(configurations()), "Workloads to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Batches whose median counts.", lower_bound=1)


def measure_sampling(config: ExperimentConfig, repeats: int) -> Measurement:
    """Times batches of mean images at temperature 0.7."""
    use_devices()
    batch = config.train.global_batch_size

    def prepare() -> Callable[[], object]:
        model = InferenceModel(NVAE(config.model))
        numbers = itertools.count()

        def sample(seed: tf.Tensor) -> tf.Tensor:
            noise = model.draw_noise(batch, seed)
            return model.likelihood(model.generate(batch, 0.7, noise)).mean()

        traced = model.function(sample)
        weights = model.weights()
        return lambda: traced(weights, tf.constant([0, next(numbers)], tf.int64)).numpy()

    return measure(prepare, batch, repeats)


def main(argv: list[str]) -> None:
    del argv
    measure_workloads("samples", _WORKLOADS.value, measure_sampling, _REPEATS.value)


if __name__ == "__main__":
    app.run(main)
