"""A run's state and the traced step that moves it, on a `tf.distribute` strategy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import Division, training_batches
from nvae_tf.model.nvae import NVAE
from nvae_tf.training.metrics import StepMetrics
from nvae_tf.training.regularization import Regularizer
from nvae_tf.training.schedule import Schedule
from trainers.run.state import TrainState
from trainers.run.step import StepDefinition
from trainers.run.strategies import check_devices
from trainers.run.traced_step import Batches, TracedStep

_NOT_FINITE_LIMIT = 5  # steps in a row, at which the run counts as diverged


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite any more."""


def has_diverged(metrics: StepMetrics, last: bool = False) -> bool:
    """Returns whether so many steps in a row were not finite that no loss scale explains it.

    Args:
      metrics: Those of the newest step.
      last: Whether it is the last one of the run, which no better one can follow.
    """
    too_many = metrics.verdict.not_finite_in_a_row >= (1 if last else _NOT_FINITE_LIMIT)
    return bool(too_many) and float(metrics.verdict.loss_scale) <= 1


class Trainer:
    """The state of a run on a strategy, and the step that moves it.

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
      state: Everything that the run changes.
      seconds_waiting: The time that all steps so far have waited for data.

    Raises:
      ValueError: The global batch is not a multiple of replicas times parts, or larger than the
        split; or the whole step is to be compiled for several replicas.
    """

    def __init__(self, config: ExperimentConfig, strategy: tf.distribute.Strategy, num_images: int):
        replicas = strategy.num_replicas_in_sync
        check_devices(config.train, replicas)
        self.config = config
        self.strategy = strategy
        self.schedule = Schedule(config, num_images)
        with _seeded(config.train.seed):
            self.model = NVAE.structure(config.model, dtype=config.train.precision)
            self.regularizer = Regularizer(self.model)
            with strategy.scope():
                self.state = TrainState(self.model, self.regularizer, config)
        self.seconds_waiting = 0.0
        self._definition = StepDefinition(
            config,
            self.model,
            self.regularizer,
            self.schedule,
            self.state.weights.layout,
            self.state.statistics.layout,
            replicas,
            frozen=False,
        )
        self._traced_step: TracedStep | None = None
        self._sum = tf.function(_sum_over_replicas, autograph=False)

    @property
    def num_bytes(self) -> int:
        """The size of all variables of the step, on each replica."""
        return self.state.num_bytes + (self._traced_step.num_bytes if self._traced_step else 0)

    @property
    def replica_batch(self) -> int:
        """The number of images that a replica sees at a time."""
        return self._definition.replica_batch

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.schedule.total_steps

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
        if replicas in (1, len(self.strategy.extended.worker_devices)):
            return replicas * number  # a single process
        total = self.strategy.run(self._sum, args=(tf.constant(number, tf.int64),))
        return int(self.strategy.experimental_local_results(total)[0])

    def batches(self, images: np.ndarray) -> Batches:
        """Returns the images of all steps to come, each replica's share of each part.

        Args:
          images: (N, h, w, C) uint8, those to train on; every worker reads the rows of its own
            replicas only.

        Returns:
          A dataset whose elements are the shares of this process's replicas.
        """
        start = self.state.steps_done

        def own(context: tf.distribute.InputContext) -> tf.data.Dataset:
            replicas = context.num_replicas_in_sync
            local = replicas // context.num_input_pipelines
            parts, first = self.config.train.accumulation_steps, context.input_pipeline_id * local
            return training_batches(
                images, self.config, start, Division(parts, replicas, first, local)
            )

        if self.strategy.num_replicas_in_sync == 1 and not tf.config.list_logical_devices("GPU"):
            # The strategy would add a dataset that is tuned, which `training_batches` avoids.
            return own(tf.distribute.InputContext())
        return self.strategy.distribute_datasets_from_function(own)

    def trace(self, batches: Batches) -> float:
        """Traces the step to come for such batches without running it; returns the seconds."""
        start = time.perf_counter()
        self.traced_step().concrete_functions(batches)
        return time.perf_counter() - start

    def traced_step(self, done: int | None = None) -> TracedStep:
        """Returns what takes the step to come; it is another one once batch norm is frozen.

        Args:
          done: The number of steps done; None: it is read, which waits for the step before.
        """
        done = self.state.steps_done if done is None else done
        frozen = self.schedule.freezes(done)
        if self._traced_step is None or self._traced_step.definition.frozen != frozen:
            definition = dataclasses.replace(self._definition, frozen=frozen)
            self._traced_step = TracedStep(definition, self.state, self.strategy)
        return self._traced_step

    def step(self, batches: Iterator, done: int | None = None, stop: bool = False) -> StepMetrics:
        """Takes one step of the run, with the next batch.

        Args:
          batches: An iterator over what `batches` returned.
          done: The number of steps done, as for `traced_step`.
          stop: Whether this worker was asked to stop; the metrics tell if any was.
        """
        return self.traced_step(done)(functools.partial(self._next, batches), stop)

    def _next(self, batches: Iterator) -> Any:
        start = time.perf_counter()
        batch = next(batches)
        self.seconds_waiting += time.perf_counter() - start
        return batch


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Keras's initialisers, and leaves a caller's random numbers as they were.

    A search for good settings, which trains several models in a process, would otherwise draw the
    same settings after each of them. Keras draws the seed of each initialiser from Python's
    generator, and uses no other one.
    """
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _sum_over_replicas(number: tf.Tensor) -> tf.Tensor:
    own = tf.identity(number)  # an argument has no device, which the sum needs
    return tf.distribute.get_replica_context().all_reduce("sum", own)
