"""Measures the memory that fused normalisation and recomputation save.

`python -m benchmarks.memory`
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import keras
import tensorflow as tf
from absl import app, flags

from benchmarks.workloads import (
    configurations,
    in_fresh_process,
    peak_resident_gigabytes,
    print_table,
    random_images,
)
from nvae_tf.command_line import use_devices
from nvae_tf.config import ExperimentConfig
from nvae_tf.model.layers.normalization import BatchNormalization
from trainers.run.memory import expected_memory
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

_STEPS = flags.DEFINE_integer("steps", 5, "Steps whose median counts.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Images in a batch of the MNIST preset.")
_CHAIN = 20  # blocks of normalisation, swish and convolution


class Measurement(NamedTuple):
    """The memory of a process and the time of its steps."""

    expected: int  # bytes
    tensors: int  # bytes, the peak of TensorFlow's allocator
    resident: float  # 10^9 bytes, the peak of the whole process
    step: float  # seconds, median


def measure_chain(fused: bool) -> Measurement:
    """Measures 20 blocks of normalisation, swish and convolution, forward and backward.

    The images are (32, 32, 32, 64).

    Args:
      fused: Whether normalisation and swish are one layer of this package, or Keras's layers.
    """
    use_devices(training=True)
    if fused:
        norms = [BatchNormalization("swish") for _ in range(_CHAIN)]
    else:
        norms = [keras.layers.BatchNormalization(epsilon=1e-5) for _ in range(_CHAIN)]
    convolutions = [keras.layers.Conv2D(64, 3, padding="same") for _ in range(_CHAIN)]
    images = tf.random.stateless_normal([32, 32, 32, 64], (0, 0))
    for layer in (*norms, *convolutions):
        layer.build(images.shape)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            for norm, convolution in zip(norms, convolutions):
                y = norm(x, training=True)
                x = convolution(y if fused else tf.nn.silu(y))
            loss = tf.reduce_mean(tf.square(x))
        variables = [
            v.value for layer in (*norms, *convolutions) for v in layer.trainable_variables
        ]
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, variables)])

    return _measured(0, lambda: float(step(images)), 5)


def measure_preset(config: ExperimentConfig, steps: int) -> Measurement:
    """Measures training steps on random images."""
    use_devices(training=True)
    images = random_images(config)
    trainer = Trainer(config, make_strategy("one_device"), len(images))
    batches = trainer.batches(images)
    iterator = iter(batches)
    expected = expected_memory(trainer, batches)
    return _measured(expected, lambda: float(trainer.step(iterator).batch.loss), steps)


def _measured(expected: int, step, steps: int) -> Measurement:
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return Measurement(
        expected=expected,
        tensors=tf.config.experimental.get_memory_info("CPU:0")["peak"],
        resident=peak_resident_gigabytes(),
        step=statistics.median(seconds[1:]),
    )


def main(argv: list[str]) -> None:
    del argv
    mnist = configurations()["mnist"].override({"train.global_batch_size": _BATCH.value})
    measurements = {
        "chain, plain Keras": in_fresh_process(measure_chain, False),
        "chain, fused": in_fresh_process(measure_chain, True),
        f"mnist, batch {_BATCH.value}": in_fresh_process(measure_preset, mnist, _STEPS.value),
        f"mnist, batch {_BATCH.value}, recomputed": in_fresh_process(
            measure_preset, mnist.override({"train.recompute": True}), _STEPS.value
        ),
    }
    rows = [
        (
            name,
            f"{m.expected / 1e9:.2f} GB" if m.expected else "",
            f"{m.tensors / 1e9:.2f} GB",
            f"{m.resident:.2f} GB",
            f"{m.step:.2f} s",
        )
        for name, m in measurements.items()
    ]
    print_table(("workload", "expected", "peak tensors", "peak resident", "step"), rows)


if __name__ == "__main__":
    app.run(main)
