"""Trains with what `compiled_step --images` wrote, with JAX's runtime and without TensorFlow.

`python -m benchmarks.train_compiled_step steps/mnist_small trained/mnist_small`

It takes the steps of the configuration, prints the means of every few calls, computes the
importance-weighted bound of the test images if the step came with it, and writes the weights that
evaluations use, for `read_compiled_state`.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import time

import jax
import numpy as np

from benchmarks.compiled_module import CompiledModules


class Order:
    """The endless sequence of the images' numbers, in a new random order every epoch."""

    def __init__(self, count: int, seed: int):
        self._generator = np.random.default_rng(seed)
        self._count = count
        self._left = np.zeros(0, np.int64)

    def next(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the next numbers, in an array of that shape."""
        while len(self._left) < math.prod(shape):
            self._left = np.concatenate([self._left, self._generator.permutation(self._count)])
        taken, self._left = np.split(self._left, [math.prod(shape)])
        return taken.reshape(shape)


def train(
    modules: CompiledModules, images: np.ndarray, seconds: float, log: pathlib.Path, every: int
) -> int:
    """Takes all steps of the configuration, or as many as there is time for.

    Returns:
      The number of steps taken.
    """
    shape = tuple(modules.facts["modules"]["step"]["inputs"][0][0])[:2]
    order = Order(len(images), modules.facts["config"]["train"]["seed"])
    data = jax.device_put(images)
    take = jax.jit(lambda data, rows: data[rows])
    total, done, number, timed_out = modules.facts["total_steps"], 0, 0, False
    modules.compile("step")
    start = time.perf_counter()
    kept: list[jax.Array] = []
    with log.open("w") as lines:
        while done < total and not timed_out:
            metrics = modules.call("step", take(data, order.next(shape)))
            done += shape[0]
            number += 1
            kept.append(metrics)
            timed_out = time.perf_counter() - start >= seconds
            if number % every == 0 or done >= total or timed_out:
                values = np.mean([np.asarray(m) for m in kept], axis=0)
                values[-1] = np.asarray(metrics)[-1]  # `skipped` counts all steps so far
                row = {"step": done, "seconds": round(time.perf_counter() - start, 2)}
                row |= dict(zip(modules.facts["metrics"], values.tolist()))
                kept.clear()
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(json.dumps(row), flush=True)
    return done


def bound(
    modules: CompiledModules, images: np.ndarray, draws: int, seconds: float
) -> dict[str, float]:
    """Computes -ELBO and the importance-weighted bound of images, as many as there is time for.

    A pass takes a fixed number of images, so those of the last pass that would not fill it are left
    out.
    """
    (size, *_), _ = modules.facts["modules"]["bound"]["inputs"][0]
    start = time.perf_counter()
    elbos, bounds, taken = [], [], 0
    modules.compile("bound")
    for first in range(0, len(images) - size + 1, size):
        batch = jax.device_put(images[first : first + size])
        passes, have = [], 0
        while have < draws:
            passes.append(modules.call("bound", batch, np.int64(first), np.int64(len(passes))))
            have += passes[-1].shape[1]
        elbo, weights = np.concatenate([np.asarray(p, np.float64) for p in passes], axis=1)
        elbos.append(-elbo.mean(axis=0))
        bounds.append(math.log(have) - np.logaddexp.reduce(weights, axis=0))
        taken = have
        if time.perf_counter() - start > seconds:
            break
    elbo, bounded = np.concatenate(elbos), np.concatenate(bounds)
    return {
        "images": len(elbo),
        "draws": taken,
        "negative_elbo": float(elbo.mean()),
        "negative_elbo_standard_error": float(elbo.std(ddof=1) / math.sqrt(len(elbo))),
        "iw_bound": float(bounded.mean()),
        "iw_bound_standard_error": float(bounded.std(ddof=1) / math.sqrt(len(elbo))),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="what `compiled_step` wrote")
    parser.add_argument("output", type=pathlib.Path, help="where log, bound and weights go")
    parser.add_argument("--seconds", type=float, default=math.inf, help="at most, for training")
    parser.add_argument("--draws", type=int, default=1000, help="of the bound")
    parser.add_argument("--bound_seconds", type=float, default=math.inf, help="at most, for it")
    parser.add_argument("--log_every", type=int, default=100, help="calls for a line of the log")
    flags = parser.parse_args()

    flags.output.mkdir(parents=True, exist_ok=True)
    modules = CompiledModules(flags.directory)
    with np.load(flags.directory / "images.npz") as arrays:
        images, test = arrays["train"], arrays["test"]
    if "bound" in modules.facts["modules"]:
        (size, *_), _ = modules.facts["modules"]["bound"]["inputs"][0]
        if len(test) < size:
            parser.error(f"The bound takes {size} test images at a time, and there are {len(test)}")
    done = train(modules, images, flags.seconds, flags.output / "log.jsonl", flags.log_every)
    names = [name for _, _, name, _ in modules.facts["variables"]]
    needed = ("statistics", "average" if "average" in names else "weights")
    weights = {str(i): np.asarray(modules.state[i]) for i, n in enumerate(names) if n in needed}
    np.savez(flags.output / "weights.npz", steps=done, **weights)
    if "bound" in modules.facts["modules"]:
        result = bound(modules, test, flags.draws, flags.bound_seconds)
        (flags.output / "bound.json").write_text(json.dumps(result) + "\n")
        print(json.dumps(result))


if __name__ == "__main__":
    main()
