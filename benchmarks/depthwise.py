"""Compares TensorFlow's filter gradient of depthwise convolutions with this package's.

The forward pass is timed beside them.

`python -m benchmarks.depthwise`
"""

from __future__ import annotations

import time

import tensorflow as tf
from absl import app

from benchmarks.workloads import print_table
from nvae_tf.command_line import use_devices
from nvae_tf.model.layers.depthwise import depthwise_convolution

_SHAPES = ((8, 8, 8, 768), (8, 4, 4, 1536), (8, 16, 16, 192), (8, 32, 32, 96), (32, 16, 16, 96))
_ROUNDS = 40


def _native(x, kernel):
    return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")


def _gradient(convolve):
    @tf.function(autograph=False)
    def gradient(x, kernel, dy):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernel)
            y = convolve(x, kernel)
        return tape.gradient(y, kernel, dy)  # which does not need y, so TensorFlow leaves that out

    return gradient


def main(argv: list[str]) -> None:
    del argv
    use_devices(training=True)
    rows = []
    for shape in _SHAPES:
        x, dy = (tf.random.stateless_normal(shape, (0, i)) for i in range(2))
        kernel = tf.random.stateless_normal([5, 5, shape[-1], 1], (0, 2))
        functions = [
            tf.function(lambda x, kernel, dy: _native(x, kernel), autograph=False),
            _gradient(_native),
            _gradient(depthwise_convolution),
        ]
        best = [float("inf")] * len(functions)
        for _ in range(_ROUNDS):  # alternating, so that other work disturbs both alike
            for i, function in enumerate(functions):
                start = time.perf_counter()
                function(x, kernel, dy).numpy()
                best[i] = min(best[i], time.perf_counter() - start)
        rows.append((str(shape), *(f"{1000 * seconds:.2f} ms" for seconds in best)))
    print_table(("images (B, H, W, C)", "forward", "TensorFlow's gradient", "ours"), rows)


if __name__ == "__main__":
    app.run(main)
