"""A run's state and the traced step that moves it, on a `tf.distribute` strategy."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import Division, training_batches
from nvae_tf.model.compilation import compiled, graph_function
from nvae_tf.model.nvae import NVAE
from nvae_tf.replicas import GroupReplicas, ReplicaGroup, Replicas, replicas_of_context
from nvae_tf.training.metrics import StepMetrics
from nvae_tf.training.regularization import Regularizer
from nvae_tf.training.schedule import Schedule
from trainers.run.accumulation import Accumulator
from trainers.run.state import Reading, TrainState
from trainers.run.step import Share, StepDefinition, forward_backward, prepare, update
from trainers.run.strategies import check_devices

_NOT_FINITE_LIMIT = 5  # steps in a row, at which the run counts as diverged


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite any more."""


def has_diverged(metrics: StepMetrics) -> bool:
    """Returns whether so many steps in a row were not finite that no loss scale explains it."""
    too_many = metrics.verdict.not_finite_in_a_row >= _NOT_FINITE_LIMIT
    return bool(too_many) and float(metrics.verdict.loss_scale) <= 1


class Trainer:
    """The state of a run on a strategy, and the step that moves it.

    With accumulation, a batch comes in parts: each adds to the sums, and the last one moves the
    state.

    Args:
      config: The run's configuration; its seed starts the weights, the noise and the vectors of the
        power iteration.
      strategy: Where to compute.
      num_images: The number of images in the training split, which sets the schedules.

    Attributes:
      config: The argument of that name.
      strategy: The argument of that name.
      model: The model's structure, without values.
      regularizer: The model's regulariser.
      schedule: Beta, lambda and learning rate by step.
      definition: The parts of a step that stay the same.
      state: Everything that the run changes.
      seconds_waiting: The time that all steps so far have waited for data.

    Raises:
      ValueError: The global batch is not a multiple of replicas times parts, or larger than the
        split; or the whole step is to be compiled for several replicas.
    """

    def __init__(self, config: ExperimentConfig, strategy: tf.distribute.Strategy, num_images: int):
        replicas, parts = strategy.num_replicas_in_sync, config.train.accumulation_steps
        check_devices(config.train, replicas)
        self.config = config
        self.strategy = strategy
        self.schedule = Schedule(config, num_images)
        keras.utils.set_random_seed(config.train.seed)
        self.model = NVAE.structure(config.model, dtype=config.train.precision)
        self.regularizer = Regularizer(self.model)
        with strategy.scope():
            self.state = TrainState(self.model, self.regularizer, config)
        self.seconds_waiting = 0.0
        self.definition = StepDefinition(
            config,
            self.model,
            self.regularizer,
            self.schedule,
            self.state.weights.layout,
            self.state.statistics.layout,
            replicas,
        )
        # Devices of this process that may share one traced function.
        local = len(strategy.extended.worker_devices)
        self._group = ReplicaGroup(replicas) if replicas == local > 1 else None
        # `forward_backward`, where it is a function of its own: for the group, or for XLA.
        self._traced: tf.types.experimental.ConcreteFunction | None = None
        self._accumulator = Accumulator(strategy, parts)
        self._whole = tf.function(self.whole_step, autograph=False, reduce_retracing=True)
        self._part = tf.function(self._add_part, autograph=False, reduce_retracing=True)
        self._finish = tf.function(self._finish_step, autograph=False, reduce_retracing=True)
        self._sum = tf.function(_sum_over_replicas, autograph=False)

    @property
    def num_bytes(self) -> int:
        """The size of all variables of the step, on each replica."""
        sums = self._accumulator.variables
        return self.state.num_bytes + sum(v.shape.num_elements() * v.dtype.size for v in sums)

    @property
    def replica_batch(self) -> int:
        """The number of images that a replica sees at a time."""
        return self.definition.replica_batch

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.schedule.total_steps

    @property
    def accumulates(self) -> bool:
        """True if a step's batch comes in parts."""
        return self.config.train.accumulation_steps > 1

    def initialize_from_batch(self, images: tf.Tensor) -> None:
        """Sets what `NVAE.initialize_from_batch` sets, from the first batch (B, H, W, C)."""
        values = self.state.model_values()
        seed = (self.config.train.seed, 0)
        self.state.replace_weights(self.model.data_dependent_values(images, seed, values))

    def check_agreement(self) -> None:
        """Raises a ValueError unless all workers have done the same number of steps."""
        own = self.state.steps_done
        if self.sum_over_replicas(own) != self.strategy.num_replicas_in_sync * own:
            raise ValueError(
                f"The workers have not restored the same step; this one is at {own}. All of them "
                "need the same workdir."
            )

    def sum_over_replicas(self, number: int) -> int:
        """Returns the sum over all replicas of a number that each worker has; all must call it."""
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1 or self._group:
            return replicas * number  # a single process
        total = self.strategy.run(self._sum, args=(tf.constant(number, tf.int64),))
        return int(self.strategy.experimental_local_results(total)[0])

    def batches(self, images: np.ndarray) -> tf.distribute.DistributedDataset:
        """Returns the images of all steps to come, each replica's share of each part.

        Args:
          images: (N, h, w, C) uint8, those to train on; every worker reads the rows of its own
            replicas only.
        """
        start = self.state.steps_done

        def own(context: tf.distribute.InputContext) -> tf.data.Dataset:
            replicas = context.num_replicas_in_sync
            local = replicas // context.num_input_pipelines
            parts, first = self.config.train.accumulation_steps, context.input_pipeline_id * local
            return training_batches(
                images, self.config, start, Division(parts, replicas, first, local)
            )

        return self.strategy.distribute_datasets_from_function(own)

    def trace(self, batches: tf.distribute.DistributedDataset) -> float:
        """Traces the step for such batches without running it; returns the seconds it took."""
        start = time.perf_counter()
        self.concrete_functions(batches)
        return time.perf_counter() - start

    def concrete_functions(self, batches: tf.distribute.DistributedDataset) -> list[Any]:
        """Returns the traced functions that make up a step; the first one computes gradients."""
        self._trace_apart()
        stop = tf.TensorSpec([], tf.bool)
        if not self.accumulates:
            return [self._whole.get_concrete_function(batches.element_spec, stop)]
        part = tf.TensorSpec([], tf.int32)
        return [
            self._part.get_concrete_function(batches.element_spec, part, stop),
            self._finish.get_concrete_function(),
        ]

    def gradient_graph(self, batches: tf.distribute.DistributedDataset) -> tuple[tf.Graph, int]:
        """Returns the graph that computes gradients, and for how many replicas it does."""
        traced = self.concrete_functions(batches)[0]
        if self._traced:
            return self._traced.graph, 1
        return traced.graph, max(len(self.strategy.extended.worker_devices), 1)

    def step(self, batches: Iterator, stop: bool = False) -> StepMetrics:
        """Takes one step of the run, with the next batch.

        Args:
          batches: An iterator over what `batches` returned.
          stop: Whether this worker was asked to stop; the metrics tell if any was.
        """
        self._trace_apart()
        wanted = tf.constant(stop)
        if not self.accumulates:
            return self._whole(self._next(batches), wanted)
        for part in range(self.config.train.accumulation_steps):
            self._part(self._next(batches), tf.constant(part), wanted)
        return self._finish()

    def _next(self, batches: Iterator) -> Any:
        start = time.perf_counter()
        batch = next(batches)
        self.seconds_waiting += time.perf_counter() - start
        return batch

    # The functions that are traced.

    def whole_step(self, images: tf.Tensor, stop: tf.Tensor) -> StepMetrics:
        """Takes one step, as part of a function that is being traced.

        Args:
          images: An element of what `batches` returned.
          stop: Whether this worker was asked to stop.
        """
        with self.strategy.scope():
            return update(self.definition, self.state, self._share(images, tf.constant(0), stop))

    def _add_part(self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor) -> None:
        self._accumulator.add(self._share(images, part, stop))

    def _finish_step(self) -> StepMetrics:
        with self.strategy.scope():
            metrics = update(self.definition, self.state, self._accumulator.read())
        with tf.control_dependencies(tf.nest.flatten(metrics)):
            self._accumulator.reset()
        return metrics

    def _share(self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor) -> Share:
        share, vectors = self.strategy.run(self._replica_share, args=(images, part, stop))
        for variable, value in zip(self.state.singular_vectors.stacks, vectors):
            self.strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,))
        return share

    def _replica_share(
        self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor
    ) -> tuple[Share, list[tf.Tensor]]:
        run, state = self.definition, self.state
        reading = state.read()
        if self._group:
            assert self._traced
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self._traced(reading, images, part, stop, index, state.step.handle)
        replicas = replicas_of_context()
        images, noise = prepare(run, replicas, images, reading.step, part)
        if self._traced:
            return self._traced(reading, images, noise, part, stop)
        return forward_backward(run, replicas, reading, images, noise, part, stop)

    def _trace_apart(self) -> None:
        """Traces `forward_backward` outside of other functions, if it is one of its own."""
        in_xla = self.config.train.jit_compile == "step"
        if self._traced or not (self._group or in_xla):
            return
        model = self.config.model
        reading = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), self.state.read()
        )
        number, flag = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.bool)
        if self._group:
            images = tf.TensorSpec([self.replica_batch, *model.content_shape], tf.uint8)
            token = tf.TensorSpec([], tf.resource)
            function = graph_function(functools.partial(_for_group, self.definition, self._group))
            self._traced = function.get_concrete_function(
                reading, images, number, flag, number, token
            )
        else:
            rows = self.definition.rows
            images = tf.TensorSpec([rows, *model.image_shape])
            noise = [tf.TensorSpec([rows, *shape]) for shape in model.latent_shapes]
            function = compiled(functools.partial(forward_backward, self.definition, Replicas()))
            self._traced = function.get_concrete_function(reading, images, noise, number, flag)


def _sum_over_replicas(number: tf.Tensor) -> tf.Tensor:
    own = tf.identity(number)  # an argument has no device, which the sum needs
    return tf.distribute.get_replica_context().all_reduce("sum", own)


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
