"""Functions that keep a training graph small, or its elementwise operations few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def graph_function(
    function: Callable[..., Any], **options: Any
) -> tf.types.experimental.PolymorphicFunction:
    """Makes a function of tensors a node of the graph, which is traced once for each shape.

    A network has hundreds of the same layers in a few shapes; their operations are not repeated.

    Args:
      function: A function of tensors.
      **options: The arguments of `tf.function`.
    """
    attributes = {"_noinline": True}
    return tf.function(function, autograph=False, experimental_attributes=attributes, **options)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of tensors one that XLA compiles, once for each of their shapes.

    TensorFlow computes a chain of elementwise operations one by one, and on a CPU each of them
    reads and writes the whole memory again; a compiled chain passes over it once. Convolutions stay
    outside, for XLA's are several times slower on CPUs. So do exported signatures, for a server
    need not have a compiler.
    """
    return tf.function(function, autograph=False, jit_compile=True)
