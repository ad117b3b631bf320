"""Functions that keep a training graph small, or its elementwise operations few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


def graph_node(
    function: Callable[..., Any], **options: Any
) -> tf.types.experimental.PolymorphicFunction:
    """Makes a function of tensors a node of the graph, whose operations are not repeated.

    Args:
      function: A function of tensors.
      **options: The arguments of `tf.function`.
    """
    attributes = {"_noinline": True}
    return tf.function(function, autograph=False, experimental_attributes=attributes, **options)


def graph_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of tensors a `graph_node` for each shape of its arguments.

    A network has hundreds of the same layers in a few shapes. A single `tf.function` would take a
    trace for unknown sizes, once there is one, for known sizes as well: a model that is trained
    after another was exported would find out its shapes in every step, which XLA refuses in loops.

    Args:
      function: A function of tensors, lists and tuples of them, and values that can be hashed.
    """

    @functools.cache
    def of_shapes(shapes: tuple[str, ...]) -> tf.types.experimental.PolymorphicFunction:
        del shapes
        return graph_node(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        shapes = (str(x.shape) if tf.is_tensor(x) else "" for x in tf.nest.flatten(args))
        return of_shapes(tuple(shapes))(*args)

    return call


def compiled(function: Callable[..., Any]) -> tf.types.experimental.PolymorphicFunction:
    """Makes a function of tensors one that XLA compiles, once for each of their shapes.

    TensorFlow computes a chain of elementwise operations one by one, and on a CPU each of them
    reads and writes the whole memory again; a compiled chain passes over it once. Convolutions stay
    outside, for XLA's are several times slower on CPUs. So do exported signatures, for a server
    need not have a compiler.
    """
    return tf.function(function, autograph=False, jit_compile=True)


def not_before(
    dependency: tf.Tensor, tensors: Sequence[tf.Tensor], in_xla: bool
) -> list[tf.Tensor]:
    """Returns tensors whose users have to wait for another one.

    Without that, what is computed a second time to save memory is computed early, and memory goes
    up: TensorFlow's executor runs it as soon as it can, and XLA merges it with the first time.

    Args:
      dependency: The tensor to wait for.
      tensors: The tensors.
      in_xla: Whether XLA compiles all of it; it ignores TensorFlow's control dependencies.
    """
    if in_xla:
        return list(xla.optimization_barrier(dependency, *tensors)[1:])
    with tf.control_dependencies([dependency]):
        return [tf.identity(tensor) for tensor in tensors]
