"""Cells that are computed a second time in the backward pass, instead of keeping activations.

This is like `tf.recompute_grad`, but only the first pass leaves batch statistics, and everything
that a cell uses is an argument: tracing stays linear in the number of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from nvae_tf.model.compilation import not_before
from nvae_tf.model.layers.context import Call, functional_call
from nvae_tf.model.layers.convolution import Convolution
from nvae_tf.model.layers.normalization import moving_averages
from nvae_tf.model.stacks import read_values


def recompute(
    layer: keras.layers.Layer, compute: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, call: Call
) -> tf.Tensor:
    """Returns `compute(x)`, which is computed again when its gradient is.

    Args:
      layer: The layer whose variables and convolutions `compute` uses; it uses no others.
      compute: A function of one tensor.
      x: Its argument.
      call: The call that gets the batch's statistics.
    """
    convolutions = [part for part in layer._flatten_layers() if isinstance(part, Convolution)]
    kernels = {part.kernel.path: part.effective_kernel() for part in convolutions}
    values = read_values(layer.variables)
    averages = [average.path for average in moving_averages(layer._flatten_layers())]

    def run(
        x: tf.Tensor, tensors: Sequence[tf.Tensor], known: Mapping[str, tf.Tensor] | None = None
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with functional_call(
            layer,
            dict(zip(values, tensors[len(kernels) :])),
            dict(zip(kernels, tensors)),
            replicas=call.replicas,
            jit_compile=call.jit_compile,
            frozen=call.frozen,
            known=known,
        ) as inner:
            y = compute(x)
        # Frozen normalisations, and those that do not train, leave no statistics: all or none.
        return y, [inner.statistics[path] for path in averages if inner.statistics]

    @tf.custom_gradient
    def twice(x: tf.Tensor, *tensors: tf.Tensor) -> tuple:
        y, statistics = run(x, tensors)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            again = not_before(dy, [x, *tensors], in_xla=call.in_xla)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(again)
                # The replicas need not sum the statistics again.
                y_again = run(again[0], again[1:], dict(zip(averages, statistics)))[0]
            return tape.gradient(y_again, again, dy)

        return (y, *statistics), gradient

    output, *collected = twice(x, *kernels.values(), *values.values())
    call.statistics.update(zip(averages, collected))
    return output
