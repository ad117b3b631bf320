"""Cells computed a second time on the way back, instead of keeping their activations.

Like `tf.recompute_grad`, but batch statistics are collected in the first pass alone, and all that a
cell uses is an argument: tracing stays linear in the number of cells.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from nvae_tf.model.layers.convolution import Convolution, given_kernels
from nvae_tf.model.layers.normalization import batch_statistics, record_statistic

# Thread-local, because MirroredStrategy traces every replica in a thread of its own.
_tracing = threading.local()


@contextlib.contextmanager
def recomputation(enabled: bool) -> Iterator[None]:
    """In this scope, cells in training keep nothing but their input, if enabled."""
    outer = is_recomputing()
    _tracing.enabled = enabled
    try:
        yield
    finally:
        _tracing.enabled = outer


def is_recomputing() -> bool:
    """Whether cells are to be recomputed."""
    return getattr(_tracing, "enabled", False)


def recompute(
    layer: keras.layers.Layer, call: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor
) -> tf.Tensor:
    """`call(x)`, computed again when its gradient is.

    Args:
      layer: whose variables and convolutions `call` uses, and no others.
      call: from one tensor to one tensor.
      x: its argument.
    """
    convolutions = [part for part in layer._flatten_layers() if isinstance(part, Convolution)]
    kernels = [convolution.effective_kernel() for convolution in convolutions]
    variables = layer.variables
    values = [tf.convert_to_tensor(variable) for variable in variables]
    averages = [v for v in variables if not v.trainable]

    def run(x, *tensors):
        given = dict(zip(map(id, convolutions), tensors))
        state = list(zip(variables, tensors[len(convolutions) :]))
        with (
            keras.StatelessScope(state_mapping=state),
            given_kernels(given),
            recomputation(False),
            batch_statistics() as statistics,
        ):
            y = call(x)
        return y, [statistics[id(average)] for average in averages]

    @tf.custom_gradient
    def twice(x, *tensors):
        y, statistics = run(x, *tensors)

        def gradient(dy, *_):
            with tf.control_dependencies([dy]):  # else it may run early, and memory goes up
                again = [tf.identity(tensor) for tensor in (x, *tensors)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(again)
                y, _ = run(*again)
            return tape.gradient(y, again, dy)

        return (y, *statistics), gradient

    y, *statistics = twice(x, *kernels, *values)
    for average, statistic in zip(averages, statistics):
        record_statistic(average, statistic)
    return y
