"""Measures the time that is saved by sharing one bottom-up pass among all draws of an image.

`python -m benchmarks.likelihood`
"""

from __future__ import annotations

import math
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.workloads import configurations, in_fresh_process, print_table
from nvae_tf import NVAE, ExperimentConfig, presets
from nvae_tf.command_line import use_devices
from nvae_tf.evaluation import LikelihoodEvaluator

_DRAWS = flags.DEFINE_integer("num_iw_samples", 100, "Draws of z per image.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 8, "Images in the batch.", lower_bound=1)

_ROUNDS = 3  # the fastest one counts


def measure(config: ExperimentConfig, draws: int, count: int) -> tuple[float, float, float]:
    """Times the evaluator, and the whole model run once for each draw.

    Returns:
      The evaluator's seconds, the whole model's seconds, and the difference of the bounds in nats.
    """
    use_devices()
    model = NVAE(config.model)
    images = tf.zeros((count, *config.model.image_shape))
    evaluator = LikelihoodEvaluator(model)

    @tf.function(autograph=False)
    def whole(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        output = model.infer(images, model.draw_noise(count, seed))
        log_prob = model.likelihood(output.logits).log_prob(images)
        return output.log_p - output.log_q + log_prob

    def shared() -> float:
        return evaluator.evaluate([images], draws).iw_bound

    def repeated() -> float:
        weights = [whole(images, tf.constant([0, k], tf.int64)) for k in range(draws)]
        bound = np.log(draws) - np.logaddexp.reduce(np.stack(weights), axis=0)
        return float(bound.mean())

    evaluator.evaluate([images], 1)
    whole(images, tf.constant([0, 0], tf.int64))
    seconds, bounds = {shared: math.inf, repeated: math.inf}, {}
    for _ in range(_ROUNDS):  # alternating, so that other work disturbs both alike
        for run in (shared, repeated):
            start = time.perf_counter()
            bounds[run] = run()
            seconds[run] = min(seconds[run], time.perf_counter() - start)
    return seconds[shared], seconds[repeated], abs(bounds[shared] - bounds[repeated])


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for name, config in {"quickstart": presets.get("quickstart"), **configurations()}.items():
        shared, repeated, difference = in_fresh_process(
            measure, config, _DRAWS.value, _IMAGES.value
        )
        ratio = f"{repeated / shared:.2f}"
        rows.append((name, f"{shared:.1f} s", f"{repeated:.1f} s", ratio, f"{difference:.1e}"))
    header = ("model", "shared pass", "whole model", "ratio", "difference of the bounds, nats")
    print_table(header, rows)


if __name__ == "__main__":
    app.run(main)
