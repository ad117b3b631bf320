"""Moving averages of the batch normalisations that fit a temperature (docs/latents.md).

Training leaves averages of activations that came from posterior samples. At a temperature below 1
the activations of the generative path are others, and the paper readjusts the averages before it
samples: 500 passes of 16 samples in training mode. Here the result is exact instead of decaying:
mean and variance of all values of all passes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from nvae_tf.devices import on_devices
from nvae_tf.files import keep_arrays, read_arrays
from nvae_tf.fingerprints import result_path
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.kernels import KernelBank
from nvae_tf.model.nvae import NVAE
from nvae_tf.sampling.sampler import group_temperatures

PASSES = 500
SAMPLES_PER_PASS = 16


class PooledMoments:
    """Mean and unbiased variance of the values of many batches, from those of each batch.

    The variance is that within the batches plus that between their means (law of total variance),
    accumulated in float64.

    #### References

    Chan, Golub and LeVeque, *Updating formulae and a pairwise algorithm for computing sample
    variances*, 1979, equation 2.1.
    """

    def __init__(self) -> None:
        self.count = 0.0  # values per channel so far
        self._mean = np.zeros(())
        self._squares = np.zeros(())  # of the differences from the mean, summed

    def add(self, mean: np.ndarray, variance: np.ndarray, count: float) -> None:
        """Takes in a batch of `count` values per channel with its mean and unbiased variance."""
        total = self.count + count
        difference = mean.astype(np.float64) - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = (
            self._squares
            + variance.astype(np.float64) * (count - 1)
            + difference**2 * (self.count * count / total)
        )
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """The mean of all values so far, by channel."""
        return self._mean

    @property
    def variance(self) -> np.ndarray:
        """The unbiased variance of all values so far, by channel; never negative."""
        # A kernel may report a variance just below 0 for a channel that is constant.
        return np.maximum(self._squares / max(self.count - 1, 1.0), 0.0)


def generative_statistics(
    model: NVAE,
    temperature: ArrayLike = 1.0,
    passes: int = PASSES,
    samples_per_pass: int = SAMPLES_PER_PASS,
    seed: int = 0,
    after_pass: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Measures what the generative path's batch normalisations see at a temperature.

    The model is left as it is; `readjusted` and `apply_statistics` put the result into it.

    Args:
      model: The model, in float32.
      temperature: One number, one per scale or one per group; see `group_temperatures`.
      passes: The number of passes in training mode.
      samples_per_pass: The size of the batch whose own statistics normalise a pass.
      seed: A number from which the noise is drawn.
      after_pass: A function that is called after each pass, for progress.

    Returns:
      Means and unbiased variances (C,), float64, by the path of the moving average's variable.
      Normalisations of the bottom-up path are not among them.

    Raises:
      ValueError: The temperatures do not fit, the model is in another precision, there is less than
        one pass of two samples, or activations are not finite.
    """
    if model.compute_dtype != "float32":
        raise ValueError(
            "Batch normalisation is readjusted in float32, but the model computes in "
            f"{model.compute_dtype}: load it with nvae_tf.load_model."
        )
    if passes < 1 or samples_per_pass < 2:
        raise ValueError(
            "There must be at least one pass of two samples, received "
            f"{passes} of {samples_per_pass}."
        )
    temperatures = group_temperatures(model.config, temperature)

    layers = model.batch_normalizations()
    bank = KernelBank(model.convolutions())
    stacks = bank.compute()  # once: the passes change no kernel

    def observe(seed: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        """Returns mean, unbiased variance and count of each normalisation; () if not used."""
        noise = model.draw_noise(samples_per_pass, seed)
        with functional_call(model, kernels=bank.split(stacks)) as call:
            model.generate(samples_per_pass, temperatures, noise, training=True)
        return [
            (
                call.statistics[layer.moving_mean.path],
                call.statistics[layer.moving_variance.path],
                tf.cast(call.counts[layer.moving_mean.path], tf.float64),
            )
            if layer.moving_mean.path in call.statistics
            else ()
            for layer in layers
        ]

    run = tf.function(observe, autograph=False)
    moments = [PooledMoments() for _ in layers]

    def compute(number: int) -> list[tuple[np.ndarray, ...]]:
        batches = run(tf.constant([seed, number], tf.int64))
        return [tuple(value.numpy() for value in batch) for batch in batches]

    for batches in on_devices(compute, range(passes)):
        for layer, pooled, batch in zip(layers, moments, batches):
            if not batch:
                continue
            mean, variance, count = batch[0], batch[1], float(batch[2])
            if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
                raise ValueError(
                    "The generative path is not finite at the input of "
                    f"{layer.moving_mean.path.rpartition('/')[0]!r}, temperatures {temperatures}: "
                    "the weights of this checkpoint are of no use."
                )
            pooled.add(mean, variance, count)
        if after_pass:
            after_pass()
    result = {}
    for layer, pooled in zip(layers, moments):
        if pooled.count:
            result[layer.moving_mean.path] = pooled.mean
            result[layer.moving_variance.path] = pooled.variance
    return result


def stored_statistics(
    directory: str | os.PathLike,
    model: NVAE,
    temperature: ArrayLike = 1.0,
    passes: int = PASSES,
    samples_per_pass: int = SAMPLES_PER_PASS,
    seed: int = 0,
    after_pass: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """`generative_statistics`, computed once and kept in a directory.

    The file's name is a hash of all that the result depends on, so that nothing old is ever taken
    for something else, such as a step that was trained a second time.

    Args:
      directory: The directory of the files, created if need be. If it cannot be written, that is
        logged, and the result is not kept.
      model: The model, in float32.
      temperature: One number, one per scale or one per group; see `group_temperatures`.
      passes: The number of passes in training mode.
      samples_per_pass: The size of the batch whose own statistics normalise a pass.
      seed: A number from which the noise is drawn.
      after_pass: A function that is called after each pass, for progress; it is not called if the
        result is there already.

    Raises:
      ValueError: `generative_statistics` refuses the arguments.
    """
    temperatures = group_temperatures(model.config, temperature)
    facts = (model.config, temperatures.tolist(), passes, samples_per_pass, seed)
    path = result_path(directory, model.learned_variables(), *facts)
    known = read_arrays(path)
    if known is not None:
        return known
    statistics = generative_statistics(
        model, temperatures, passes, samples_per_pass, seed, after_pass
    )
    keep_arrays(path, statistics)
    return statistics


def apply_statistics(model: NVAE, statistics: Mapping[str, np.ndarray]) -> None:
    """Gives moving averages these values; all others stay.

    Args:
      model: The model whose moving averages they are.
      statistics: Values (C,) by the path of the variable.

    Raises:
      ValueError: The model does not have a path or a shape; then nothing has changed.
    """
    variables = {variable.path: variable for variable in model.moving_averages()}
    for path, values in statistics.items():
        if path not in variables or tuple(variables[path].shape) != np.shape(values):
            raise ValueError(
                f"The model has no moving average {path!r} of shape {np.shape(values)}: these "
                "statistics belong to another model."
            )
    for path, values in statistics.items():
        variables[path].assign(np.asarray(values, np.float32))


@contextlib.contextmanager
def readjusted(model: NVAE, statistics: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Gives the model these moving averages inside of the scope, and its own again afterwards."""
    own = {v.path: v.numpy() for v in model.moving_averages() if v.path in statistics}
    apply_statistics(model, statistics)
    try:
        yield
    finally:
        apply_statistics(model, own)
