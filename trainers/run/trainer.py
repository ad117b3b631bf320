"""The training step on a `tf.distribute` strategy.

One batch's way: `training_batches` makes it, the strategy splits it, every replica computes its
share of the loss and its gradients, these are summed over the replicas, and outside of them the
guard judges the sum and AdaMax changes the weights once. With accumulation, a batch comes in parts,
and the sums of all parts are judged.

The weights live in stacks, one variable for all weights of one shape; the model computes with them
in a `keras.StatelessScope`, and gets them back with `Trainer.store`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.model.layers.normalization import MOMENTUM, batch_statistics
from nvae_tf.model.layers.recomputation import recomputation
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import VariableStacks
from nvae_tf.training.objective import (
    kl_warmup,
    negative_elbo,
    objective_terms,
    regularization_coefficient,
)
from nvae_tf.training.optimizer import AdaMax, learning_rate_at
from nvae_tf.training.regularization import Regularizer
from nvae_tf.training.weight_average import WeightAverage
from trainers.run.guard import Guard

_NOT_FINITE_LIMIT = 5  # steps in a row, at which the run counts as diverged


class StepMetrics(NamedTuple):
    """What one step reports, averaged over the global batch. L groups, float32."""

    loss: tf.Tensor  # [], what is minimised
    negative_elbo: tf.Tensor  # [], nats, without warm-up, balancing and regularisation
    reconstruction: tf.Tensor  # [], nats
    kl: tf.Tensor  # [], nats, sum over the groups
    standard_errors: tf.Tensor  # [3], of the means negative_elbo, reconstruction and kl
    kl_per_group: tf.Tensor  # [L], nats
    kl_per_channel: tf.Tensor  # [L, C_z], nats
    balance: tf.Tensor  # [L], KL balancing coefficients
    singular_values: tf.Tensor  # [N], the largest of every kernel, as in `Regularizer.layers`
    batch_norm: tf.Tensor  # [], sum of largest |gamma|
    kl_coefficient: tf.Tensor  # [], beta
    regularization_coefficient: tf.Tensor  # [], lambda
    learning_rate: tf.Tensor  # []
    gradient_norm: tf.Tensor  # [], of all weights together, before clipping
    loss_scale: tf.Tensor  # [], that this step had
    applied: tf.Tensor  # [] bool, whether the weights changed
    skipped: tf.Tensor  # [] int64, steps that changed nothing, in the whole run so far
    not_finite_in_a_row: tf.Tensor  # [] int64, the newest steps whose loss or gradient was not
    stop: tf.Tensor  # [] bool, whether a worker was asked to stop


class _Means(NamedTuple):
    """Means over a batch, or a part of one."""

    loss: tf.Tensor
    bound: tf.Tensor  # [3], -ELBO, reconstruction and KL
    squared_bound: tf.Tensor  # [3], squares of the same
    kl_per_group: tf.Tensor
    kl_per_channel: tf.Tensor
    balance: tf.Tensor
    singular_values: tf.Tensor
    batch_norm: tf.Tensor
    stop: tf.Tensor


class DivergedError(RuntimeError):
    """Loss or gradient is not finite any more."""


def has_diverged(metrics: StepMetrics) -> bool:
    """Whether so many steps in a row were not finite that no loss scale explains it."""
    too_many = metrics.not_finite_in_a_row >= _NOT_FINITE_LIMIT
    return bool(too_many) and float(metrics.loss_scale) <= 1


def total_steps(config: ExperimentConfig, num_images: int) -> int:
    """Optimiser steps of a whole run."""
    return config.train.steps or config.train.epochs * steps_per_epoch(config, num_images)


def steps_per_epoch(config: ExperimentConfig, num_images: int) -> int:
    """Whole batches in an epoch.

    Raises:
      ValueError: if there are fewer images than a batch needs.
    """
    batch_size = config.train.global_batch_size
    if num_images < batch_size:
        raise ValueError(
            f"The training split has {num_images} images, fewer than train.global_batch_size "
            f"{batch_size}."
        )
    return num_images // batch_size


class Trainer:
    """All that a run changes, on a strategy, and the step that changes it.

    Args:
      config: of the run; its seed starts the weights, the noise and the singular vectors.
      strategy: where to compute.
      num_images: in the training split; with the config it sets the schedules.

    Raises:
      ValueError: if the global batch is not a multiple of replicas times parts, or larger than the
        split.
    """

    def __init__(self, config: ExperimentConfig, strategy: tf.distribute.Strategy, num_images: int):
        replicas, parts = strategy.num_replicas_in_sync, config.train.accumulation_steps
        if config.train.global_batch_size % (replicas * parts):
            raise ValueError(
                f"train.global_batch_size must be a multiple of the {replicas} replicas times the "
                f"{parts} accumulation steps, received {config.train.global_batch_size}."
            )
        self.config = config
        self.strategy = strategy
        self.total_steps = total_steps(config, num_images)
        self._warmup_steps = round(
            config.optimizer.warmup_epochs * steps_per_epoch(config, num_images)
        )
        self._replica_batch = config.train.global_batch_size // (replicas * parts)
        keras.utils.set_random_seed(config.train.seed)
        with strategy.scope():
            self.model = NVAE(config.model, dtype=config.train.precision)
            self.regularizer = Regularizer(self.model, config.train.seed)
            self.weights = VariableStacks(
                self.model.trainable_variables, self.regularizer.variable_groups()
            )
            self.moving_averages = VariableStacks(self.model.non_trainable_variables)
            self.optimizer = AdaMax(self.weights.variables_by_stack, config.optimizer)
            self.average = (
                WeightAverage(self.weights, config.optimizer.ema_decay)
                if config.optimizer.ema_decay
                else None
            )
            self.guard = Guard(config.train)
            self.steps_done = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.seconds_waiting = 0.0  # for data, in all steps so far
        self._sums: list[tf.Variable] = []
        self._whole = tf.function(self._whole_step, autograph=False, reduce_retracing=True)
        self._part = tf.function(self._part_of_step, autograph=False, reduce_retracing=True)
        self._finish = tf.function(self._finish_step, autograph=False, reduce_retracing=True)

    @property
    def state_bytes(self) -> int:
        """Size of all variables of the step: weights, optimiser, averages, sums."""
        state = [*self.weights.variables, *self.moving_averages.variables]
        state += [*self.optimizer.variables, *self.regularizer.variables, *self._sums]
        state += self.average.variables if self.average else []
        return sum(v.shape.num_elements() * v.dtype.size for v in state)

    @property
    def accumulates(self) -> bool:
        """Whether a step's batch comes in parts."""
        return self.config.train.accumulation_steps > 1

    def initialize_from_batch(self, images: tf.Tensor) -> None:
        """Data-dependent initialisation of the model, from the first batch (B, H, W, C)."""
        self.model.initialize_from_batch(images, (self.config.train.seed, 0))
        self.load()

    def load(self) -> None:
        """Takes over weights and moving averages from the model."""
        self.weights.load()
        self.moving_averages.load()
        if self.average:
            self.average.load()

    def store(self) -> None:
        """Gives the model the weights and moving averages that training has reached."""
        self.weights.store()
        self.moving_averages.store()

    def store_average(self) -> None:
        """Like `store`, with the average of the weights if there is one: what evaluations use."""
        self.store()
        if self.average:
            self.average.store()

    def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
        """The dataset of global batches in parts, each split over the replicas."""
        parts = self.config.train.accumulation_steps
        if parts > 1:
            dataset = dataset.flat_map(
                lambda batch: tf.data.Dataset.from_tensor_slices(
                    tf.reshape(batch, [parts, -1, *batch.shape[1:]])
                )
            )
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return self.strategy.experimental_distribute_dataset(dataset.with_options(options))

    def trace(self, batches: tf.distribute.DistributedDataset) -> float:
        """Traces the step for such batches without running it; returns the seconds it took."""
        start = time.perf_counter()
        self.concrete_functions(batches)
        return time.perf_counter() - start

    def concrete_functions(self, batches: tf.distribute.DistributedDataset) -> list[Any]:
        """The traced functions that make up a step, the one that computes gradients first."""
        stop = tf.TensorSpec([], tf.bool)
        if not self.accumulates:
            return [self._whole.get_concrete_function(batches.element_spec, stop)]
        part = tf.TensorSpec([], tf.int32)
        return [
            self._part.get_concrete_function(batches.element_spec, part, stop),
            self._finish.get_concrete_function(),
        ]

    def step(self, batches: Iterator, stop: bool = False) -> StepMetrics:
        """One step of the run, with the next batch.

        Args:
          batches: iterator over what `distribute` returned.
          stop: whether this worker was asked to stop; the metrics tell if any was.
        """
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

    def _whole_step(self, images: tf.Tensor, stop: tf.Tensor) -> StepMetrics:
        return self._update(*self._summed_gradients(images, tf.constant(0), stop))

    def _part_of_step(self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor) -> None:
        self._structure = self._summed_gradients(images, part, stop)
        values = tf.nest.flatten(self._structure)
        if not self._sums:
            with tf.init_scope(), self.strategy.scope():
                self._sums = [
                    tf.Variable(tf.zeros(self._local(v).shape), trainable=False) for v in values
                ]
        parts = self.config.train.accumulation_steps

        def add(total, value):
            total.assign_add(tf.cast(value, tf.float32) / parts)

        for total, value in zip(self._sums, values):
            self.strategy.extended.update(total, add, args=(value,))

    def _finish_step(self) -> StepMetrics:
        sums = [tf.convert_to_tensor(total) for total in self._sums]
        metrics = self._update(*tf.nest.pack_sequence_as(self._structure, sums))
        with tf.control_dependencies(tf.nest.flatten(metrics)):
            for total in self._sums:
                total.assign(tf.zeros_like(total))
        return metrics

    def _local(self, value: Any) -> tf.Tensor:
        """One replica's value of what is the same on all of them."""
        return self.strategy.experimental_local_results(value)[0]

    def _summed_gradients(self, images, part, stop) -> tuple[list, list, _Means]:
        """Gradients and batch statistics by stack, and means; on each replica the same values."""
        return self.strategy.run(self._replica_gradients, args=(images, part, stop))

    def _update(self, gradients: list, statistics: list, means: _Means) -> StepMetrics:
        means = tf.nest.map_structure(self._local, means)
        step = tf.convert_to_tensor(self.steps_done)
        scale = tf.convert_to_tensor(self.guard.loss_scale)
        norm = tf.linalg.global_norm([self._local(gradient) for gradient in gradients]) / scale
        beta, penalty = self._coefficients(step)
        rate = self.guard.learning_rate_factor * learning_rate_at(
            step, self.config.optimizer, self._warmup_steps, self.total_steps
        )
        applied = self.guard.judge(means.loss, norm)

        def apply():
            with self.strategy.scope():
                self.optimizer.apply(gradients, rate, self._multiplier(norm, scale))
                update = self.strategy.extended.update
                for average, new in zip(self.moving_averages.variables_by_stack, statistics):
                    update(average, _move_towards, args=(new,))
                if self.average:
                    self.average.update()
            return True

        tf.cond(applied, apply, lambda: False)
        self.steps_done.assign_add(1)
        batch = self.config.train.global_batch_size
        # Of values with little spread the difference has few digits: enough for a chart.
        variances = tf.maximum(means.squared_bound - tf.square(means.bound), 0.0)
        return StepMetrics(
            loss=means.loss,
            negative_elbo=means.bound[0],
            reconstruction=means.bound[1],
            kl=means.bound[2],
            standard_errors=tf.sqrt(variances / max(batch - 1, 1)),
            kl_per_group=means.kl_per_group,
            kl_per_channel=means.kl_per_channel,
            balance=means.balance,
            singular_values=means.singular_values,
            batch_norm=means.batch_norm,
            kl_coefficient=beta,
            regularization_coefficient=penalty,
            learning_rate=rate,
            gradient_norm=norm,
            loss_scale=scale,
            applied=applied,
            skipped=tf.convert_to_tensor(self.guard.skipped),
            not_finite_in_a_row=tf.convert_to_tensor(self.guard.not_finite_in_a_row),
            stop=means.stop > 0,
        )

    def _multiplier(self, norm: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
        """What gradients are multiplied with: unscaled and clipped; None for 1."""
        clip_norm = self.config.optimizer.clip_norm
        if clip_norm:
            return tf.minimum(clip_norm / tf.maximum(norm, clip_norm), 1.0) / scale
        return 1 / scale if self.config.train.precision == "mixed_float16" else None

    def _coefficients(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Beta and lambda."""
        beta = kl_warmup(
            step,
            anneal_steps=self.config.train.kl_anneal_portion * self.total_steps,
            constant_steps=self.config.train.kl_const_portion * self.total_steps,
        )
        return beta, regularization_coefficient(self.config.train, beta)

    def _replica_gradients(
        self, images: tf.Tensor, part: tf.Tensor, stop: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], _Means]:
        model, replicas = self.model, self.strategy.num_replicas_in_sync
        batch = self._replica_batch * replicas
        images = tf.ensure_shape(images, [self._replica_batch, *self.config.model.image_shape])
        step = tf.convert_to_tensor(self.steps_done)
        beta, penalty = self._coefficients(step)
        noise = self._replica_noise(step, part)
        weights, moving_averages = self.weights.values(), self.moving_averages.values()
        regularizer = self.regularizer
        with tf.GradientTape(watch_accessed_variables=False) as weight_tape:
            weight_tape.watch(weights)
            stack = self.weights.lookup(weights)
            kernels = regularizer.kernels.compute(stack)
            singular_values = regularizer.singular_values(kernels, iterate=part == 0)
            batch_norm = regularizer.batch_norm(stack)
            regularization = tf.reduce_sum(singular_values) + batch_norm
        with tf.GradientTape(watch_accessed_variables=False) as data_tape:
            data_tape.watch([weights, kernels])
            state = self.weights.state_mapping(weights)
            state += self.moving_averages.state_mapping(moving_averages)
            with (
                keras.StatelessScope(state_mapping=state),
                regularizer.kernels.use(kernels),
                batch_statistics() as statistics,
                recomputation(self.config.train.recompute),
            ):
                output = model.infer(images, noise, training=True)
                terms = objective_terms(model, images, output, beta)
            data_loss = tf.reduce_sum(terms.reconstruction + beta * terms.balanced_kl) / batch
            scaled = data_loss * self.guard.loss_scale
        loss = data_loss + penalty * regularization / replicas
        from_data, of_kernels = data_tape.gradient(scaled, [weights, kernels])
        with tf.control_dependencies(of_kernels):  # not earlier, when activations fill the memory
            from_kernels = weight_tape.gradient(
                [*kernels, regularization],
                weights,
                [*of_kernels, penalty / replicas * self.guard.loss_scale],
            )
        gradients = [_sum(*pair) for pair in zip(from_data, from_kernels)]
        kl = tf.reduce_sum(terms.kl_per_group, axis=1)
        bound = tf.stack([negative_elbo(terms), terms.reconstruction, kl])
        sums = [
            loss,
            tf.reduce_sum(bound, axis=1) / batch,
            tf.reduce_sum(tf.square(bound), axis=1) / batch,
            tf.reduce_sum(terms.kl_per_group, axis=0) / batch,
            tf.stack(output.kl_per_channel) / replicas,
            tf.cast(stop, tf.float32),
        ]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients, sums = context.all_reduce("sum", (gradients, sums))
        loss, bound, squared_bound, kl_per_group, kl_per_channel, stop = sums
        means = _Means(
            loss=loss,
            bound=bound,
            squared_bound=squared_bound,
            kl_per_group=kl_per_group,
            kl_per_channel=kl_per_channel,
            balance=terms.balance,
            singular_values=singular_values,
            batch_norm=batch_norm,
            stop=stop,
        )
        new = self.moving_averages.restack(lambda variable: statistics[id(variable)])
        return gradients, new, means

    def _replica_noise(self, step: tf.Tensor, part: tf.Tensor) -> list[tf.Tensor]:
        """This replica's rows of the noise for the global batch, which depends on the step only."""
        batch = self.config.train.global_batch_size
        noise = self.model.draw_noise(
            batch, tf.stack([tf.constant(self.config.train.seed, tf.int64), step])
        )
        if self._replica_batch == batch:
            return noise
        context = tf.distribute.get_replica_context()
        share = part * context.num_replicas_in_sync + context.replica_id_in_sync_group
        first, rows = share * self._replica_batch, self._replica_batch
        return [
            tf.ensure_shape(tensor[first : first + rows], [rows, *tensor.shape[1:]])
            for tensor in noise
        ]


def _sum(*gradients: tf.Tensor | None) -> tf.Tensor:
    return tf.add_n([gradient for gradient in gradients if gradient is not None])


def _move_towards(average: tf.Variable, new: tf.Tensor) -> None:
    average.assign(MOMENTUM * average + (1 - MOMENTUM) * new)
