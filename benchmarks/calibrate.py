"""A fixed workload of plain TensorFlow convolutions, to compare timings of different days.

Divide a step's time by `calibrate()`. The quotient varies far less between machines and hours than
the step's time does.
"""

from __future__ import annotations

import time

import tensorflow as tf
from absl import app

_REPEATS = 15


def calibrate() -> float:
    """Returns the seconds of the fastest of 15 passes, which other work disturbs the least.

    A pass computes a 3x3, a 1x1 and a 5x5 depthwise convolution at NVAE's shapes, forward and
    backward, in float32.
    """
    generator = tf.random.Generator.from_seed(0)
    x = generator.normal([8, 16, 16, 128])
    wide = generator.normal([8, 16, 16, 384])
    kernels = [
        tf.Variable(0.1 * generator.normal(shape))
        for shape in ([3, 3, 128, 128], [1, 1, 128, 384], [5, 5, 384, 1])
    ]

    @tf.function
    def one_pass():
        with tf.GradientTape() as tape:
            tape.watch([x, wide])
            a = tf.nn.conv2d(x, kernels[0], 1, "SAME")
            b = tf.nn.conv2d(a, kernels[1], 1, "SAME")
            c = tf.nn.depthwise_conv2d(wide + b, kernels[2], [1, 1, 1, 1], "SAME")
            loss = tf.reduce_sum(tf.square(c))
        return [tf.reduce_sum(g) for g in tape.gradient(loss, [x, wide, *kernels])]

    one_pass()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        one_pass()[-1].numpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(argv: list[str]) -> None:
    del argv
    print(f"Fastest pass of the calibration: {1000 * calibrate():.1f} ms")


if __name__ == "__main__":
    app.run(main)
