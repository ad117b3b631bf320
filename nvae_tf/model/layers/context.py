"""The one scope in which a model's layers find what a call of the model is about.

A Keras layer finds its weights in its own variables. Training and inference need more: values
from elsewhere, kernels that were normalised together, batch statistics as results instead of
assignments, cells that are computed twice. Passing all of that through every layer's `call` would
put it into every signature of the model, so `functional_call` puts it into one object, which the
layers of that model look up with `current_call`. Layers of other models do not see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from nvae_tf.model.layers.folding import FoldedLayers
from nvae_tf.model.stacks import Values
from nvae_tf.replicas import Replicas, replicas_of_context

# The only hidden channel of the model: the innermost call. It is thread-local because
# MirroredStrategy traces every replica in a thread of its own.
_local = threading.local()


@dataclasses.dataclass
class Call:
    """One call of a model: the things that its layers find and leave during it.

    Attributes:
      layers: The layer that is called, and all layers inside of it.
      outer: The call in whose scope this one is.
      values: The variables whose values come from the caller, and these values. Those of `outer`
        are among them if it is a call of something else, for Keras knows one scope at a time.
      owner: Who made the call, to tell it from those of others; None if nobody asks.
      has_values: Whether the values of the variables come from the caller.
      kernels: Effective kernels by the path of the kernel's variable; what is not there is
        computed by its layer.
      folded: What convolutions and normalisations use instead of their variables, if they only
        answer.
      recompute: Whether cells keep nothing but their input for the backward pass.
      initialize: Whether convolutions with `data_init` set scale and bias from what they see.
      replicas: Those over which batch normalisation takes the mean.
      jit_compile: What XLA compiles: `"none"`, `"islands"` (batch normalisation) or `"step"` (all).
      frozen: Whether batch normalisation uses its moving averages in training as well.
      known: `statistics` of an earlier pass over the same batch, which need no sums any more.
      statistics: The batch's means and unbiased variances (C,), by the path of the moving average
        that they belong to. Layers leave them here instead of moving the averages.
      counts: The number of values per channel behind each of `statistics`, where it is known.
    """

    layers: frozenset[keras.layers.Layer]
    outer: Call | None
    values: list[tuple[keras.Variable, tf.Tensor]]
    owner: object | None
    has_values: bool
    kernels: Mapping[str, tf.Tensor]
    folded: FoldedLayers | None
    recompute: bool
    initialize: bool
    replicas: Replicas
    jit_compile: str
    frozen: bool
    known: Mapping[str, tf.Tensor]
    statistics: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    counts: dict[str, float | tf.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def in_xla(self) -> bool:
        """Whether XLA compiles all of it, so that layers choose the forms that are fast there."""
        return self.jit_compile == "step"


def current_call(layer: keras.layers.Layer) -> Call | None:
    """Returns this thread's innermost `functional_call` of a layer or of what it is part of."""
    call: Call | None = getattr(_local, "call", None)
    while call and layer not in call.layers:
        call = call.outer
    return call


@contextlib.contextmanager
def functional_call(
    layer: keras.layers.Layer,
    values: Values | None = None,
    kernels: Mapping[str, tf.Tensor] | None = None,
    *,
    folded: FoldedLayers | None = None,
    recompute: bool = False,
    initialize: bool = False,
    replicas: Replicas | None = None,
    jit_compile: str = "none",
    frozen: bool = False,
    known: Mapping[str, tf.Tensor] | None = None,
    owner: object | None = None,
) -> Iterator[Call]:
    """Makes a layer compute with given values inside of the scope, without changing it.

    The scope is one of this thread.

    Args:
      layer: The model, or the part of it that is called.
      values: The values of the layer's variables by path; None: their own. A variable that is not
        among them keeps its own value.
      kernels: Effective kernels (h, w, in, out) by the path of the kernel's variable.
      folded: What convolutions and normalisations use instead of their variables, without training.
      recompute: Whether cells keep nothing but their input for the backward pass.
      initialize: Whether convolutions with `data_init` set scale and bias from what they see.
        Inside the scope, their variables have the new values.
      replicas: Those over which batch normalisation takes the mean; None: those of the
        `tf.distribute` context.
      jit_compile: What XLA compiles, one of `config.COMPILATIONS`.
      frozen: Whether batch normalisation uses its moving averages in training as well, and leaves
        no statistics.
      known: Batch statistics that an earlier pass has left.
      owner: Whoever wants to know the call again, as one of its own.

    Yields:
      The call, which has the batch's statistics after a call in training mode.
    """
    replicas = replicas or replicas_of_context()
    outer: Call | None = getattr(_local, "call", None)
    own = [(v, values[v.path]) for v in layer.variables if v.path in values] if values else []
    others = outer.values if outer and layer not in outer.layers else []
    call = Call(
        layers=frozenset(layer._flatten_layers()),
        outer=outer,
        values=[*others, *own],
        owner=owner,
        has_values=values is not None,
        kernels=kernels or {},
        folded=folded,
        recompute=recompute,
        initialize=initialize,
        replicas=replicas,
        jit_compile=jit_compile,
        frozen=frozen,
        known=known or {},
    )
    with contextlib.ExitStack() as scope:
        if values is not None:
            # Keras would create all variables that have no value yet when the scope ends.
            scope.enter_context(keras.StatelessScope(call.values, initialize_variables=False))
        _local.call = call
        try:
            yield call
        finally:
            _local.call = outer
