"""The step of a run as functions that TensorFlow traces, on a `tf.distribute` strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from nvae_tf.model.compilation import compiled, graph_node
from nvae_tf.replicas import GroupReplicas, ReplicaGroup, Replicas, replicas_of_context
from nvae_tf.training.metrics import StepMetrics
from trainers.run.accumulation import Accumulator
from trainers.run.state import Reading, TrainState
from trainers.run.step import Share, StepDefinition, forward_backward, prepare, update

# What feeds a step: each element holds the images of this process's replicas.
Batches: TypeAlias = tf.data.Dataset | tf.distribute.DistributedDataset


class TracedStep:
    """A step that is traced once, and then moves the state as often as it is called.

    With accumulation, a batch comes in parts: each adds to the sums, and the last one moves the
    state.

    Args:
      definition: What the step does.
      state: The state to be moved.
      strategy: Where to compute.

    Attributes:
      definition: The argument of that name.
    """

    def __init__(
        self, definition: StepDefinition, state: TrainState, strategy: tf.distribute.Strategy
    ):
        self.definition = definition
        self._state = state
        self._strategy = strategy
        self._train = definition.config.train
        # Devices of this process that may share one traced function.
        local, replicas = len(strategy.extended.worker_devices), definition.num_replicas
        self._group = ReplicaGroup(replicas) if replicas == local > 1 else None
        # `forward_backward`, where it is a function of its own: for the group, or for XLA.
        self._apart: tf.types.experimental.ConcreteFunction | None = None
        self._accumulator = Accumulator(strategy, self._train.accumulation_steps)
        self._whole = tf.function(self.whole, autograph=False, reduce_retracing=True)
        self._part = tf.function(self._add_part, autograph=False, reduce_retracing=True)
        self._finish = tf.function(self._finish_step, autograph=False, reduce_retracing=True)

    @property
    def num_bytes(self) -> int:
        """The size of the variables beside the state, on each replica."""
        variables = self._accumulator.variables
        return sum(v.shape.num_elements() * v.dtype.size for v in variables)

    def __call__(self, next_batch: Callable[[], Any], stop: bool) -> StepMetrics:
        """Takes one step of the run.

        Args:
          next_batch: Returns this step's images, or those of its next part.
          stop: Whether this worker was asked to stop; the metrics tell if any was.
        """
        self._trace_apart()
        wanted = tf.constant(stop)
        if self._train.accumulation_steps == 1:
            return self._whole(next_batch(), wanted)
        for part in range(self._train.accumulation_steps):
            self._part(next_batch(), tf.constant(part), wanted)
        return self._finish()

    def concrete_functions(self, batches: Batches) -> list[Any]:
        """Returns the traced functions that make up a step; the first one computes gradients."""
        self._trace_apart()
        stop = tf.TensorSpec([], tf.bool)
        if self._train.accumulation_steps == 1:
            return [self._whole.get_concrete_function(batches.element_spec, stop)]
        part = tf.TensorSpec([], tf.int32)
        return [
            self._part.get_concrete_function(batches.element_spec, part, stop),
            self._finish.get_concrete_function(),
        ]

    def gradient_graph(self, batches: Batches) -> tuple[tf.Graph, int]:
        """Returns the graph that computes gradients, and for how many replicas it does."""
        traced = self.concrete_functions(batches)[0]
        if self._apart:
            return self._apart.graph, 1
        return traced.graph, max(len(self._strategy.extended.worker_devices), 1)

    def whole(self, images: tf.Tensor, stop: tf.Tensor) -> StepMetrics:
        """Takes one step, as part of a function that is being traced.

        Args:
          images: An element of what `batches` returned.
          stop: Whether this worker was asked to stop.
        """
        with self._strategy.scope():
            return update(self.definition, self._state, self._share(images, tf.constant(0), stop))

    def _add_part(self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor) -> None:
        self._accumulator.add(self._share(images, part, stop))

    def _finish_step(self) -> StepMetrics:
        with self._strategy.scope():
            metrics = update(self.definition, self._state, self._accumulator.read())
        with tf.control_dependencies(tf.nest.flatten(metrics)):
            self._accumulator.reset()
        return metrics

    def _share(self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor) -> Share:
        share, vectors = self._strategy.run(self._replica_share, args=(images, part, stop))
        for variable, value in zip(self._state.singular_vectors.stacks, vectors):
            self._strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,))
        return share

    def _replica_share(
        self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor
    ) -> tuple[Share, list[tf.Tensor]]:
        run, state = self.definition, self._state
        reading = state.read()
        if self._group:
            assert self._apart
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self._apart(reading, images, part, stop, index, state.step.handle)
        replicas = replicas_of_context()
        images, noise = prepare(run, replicas, images, reading.step, part)
        if self._apart:
            return self._apart(reading, images, noise, part, stop)
        return forward_backward(run, replicas, reading, images, noise, part, stop)

    def _trace_apart(self) -> None:
        """Traces `forward_backward` outside of other functions, if it is one of its own."""
        in_xla = self._train.jit_compile == "step"
        if self._apart or not (self._group or in_xla):
            return
        model = self.definition.config.model
        reading = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), self._state.read()
        )
        number, flag = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.bool)
        if self._group:
            images = tf.TensorSpec([self.definition.replica_batch, *model.content_shape], tf.uint8)
            token = tf.TensorSpec([], tf.resource)
            function = graph_node(functools.partial(_for_group, self.definition, self._group))
            self._apart = function.get_concrete_function(
                reading, images, number, flag, number, token
            )
        else:
            rows = self.definition.rows
            images = tf.TensorSpec([rows, *model.image_shape])
            noise = [tf.TensorSpec([rows, *shape]) for shape in model.latent_shapes]
            function = compiled(functools.partial(forward_backward, self.definition, Replicas()))
            self._apart = function.get_concrete_function(reading, images, noise, number, flag)


def _for_group(
    run: StepDefinition,
    group: ReplicaGroup,
    state: Reading,
    images: tf.Tensor,
    part: tf.Tensor,
    stop: tf.Tensor,
    index: tf.Tensor,
    token: tf.Tensor,
) -> tuple[Share, list[tf.Tensor]]:
    """Computes `forward_backward` for the replica of that number, with a resource of its device."""
    replicas = GroupReplicas(group, index, token)
    images, noise = prepare(run, replicas, images, state.step, part)
    return forward_backward(run, replicas, state, images, noise, part, stop)
