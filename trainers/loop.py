"""The training loop on a `tf.distribute` strategy.

One batch's way: `training_batches` makes it, the strategy splits it, every replica computes its
share of the loss and its gradients, these are summed over the replicas, and outside of them AdaMax
changes the weights once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.model import NVAE
from nvae_tf.objective import (
    kl_warmup,
    negative_elbo,
    objective_terms,
    regularization_coefficient,
)
from nvae_tf.optimizer import AdaMax, learning_rate_at
from nvae_tf.regularization import Regularizer

ACTIVE_CHANNEL_NATS = 0.1  # of KL, above which a latent channel counts as in use


class StepMetrics(NamedTuple):
    """What one step reports, averaged over the global batch. L groups, float32."""

    loss: tf.Tensor  # [], what is minimised
    negative_elbo: tf.Tensor  # [], nats, without warm-up, balancing and regularisation
    reconstruction: tf.Tensor  # [], nats
    kl: tf.Tensor  # [], nats, sum over the groups
    kl_per_group: tf.Tensor  # [L], nats
    balance: tf.Tensor  # [L], KL balancing coefficients
    active_channels: tf.Tensor  # [L], channels above ACTIVE_CHANNEL_NATS
    spectral: tf.Tensor  # [], sum of largest singular values
    batch_norm: tf.Tensor  # [], sum of largest |gamma|
    kl_coefficient: tf.Tensor  # [], beta
    regularization_coefficient: tf.Tensor  # [], lambda
    learning_rate: tf.Tensor  # []
    gradient_norm: tf.Tensor  # [], of all weights together


class DivergedError(RuntimeError):
    """The loss is not finite any more."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of `train.strategy`.

    `auto` is one device where there is one, and all GPUs where there are several.

    Raises:
      ValueError: for an unknown name.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
        return tf.distribute.MirroredStrategy(None if gpus else cpus)
    if name in ("auto", "one_device"):
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    raise ValueError(f"Unknown strategy {name!r}.")


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
    """Model, optimiser and regulariser on a strategy, and the step that changes them.

    Args:
      config: of the run; its seed starts the weights, the noise and the singular vectors.
      strategy: where to compute.
      num_images: in the training split; with the config it sets the schedules.

    Raises:
      ValueError: if the global batch is not a multiple of the replicas, or larger than the split.
    """

    def __init__(self, config: ExperimentConfig, strategy: tf.distribute.Strategy, num_images: int):
        replicas = strategy.num_replicas_in_sync
        if config.train.global_batch_size % replicas:
            raise ValueError(
                f"train.global_batch_size must be a multiple of the {replicas} replicas, "
                f"received {config.train.global_batch_size}."
            )
        self.config = config
        self.strategy = strategy
        self.total_steps = total_steps(config, num_images)
        self._warmup_steps = round(
            config.optimizer.warmup_epochs * steps_per_epoch(config, num_images)
        )
        keras.utils.set_random_seed(config.train.seed)
        with strategy.scope():
            self.model = NVAE(config.model)
            self.optimizer = AdaMax(self.model.trainable_variables, config.optimizer)
            self.regularizer = Regularizer(self.model, config.train.seed)
        self.step = tf.function(self._step, autograph=False, reduce_retracing=True)

    def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
        """The dataset of global batches, each split over the replicas."""
        return self.strategy.experimental_distribute_dataset(dataset)

    def _step(self, images: tf.Tensor) -> StepMetrics:
        step = self.optimizer.iterations
        per_replica = self.strategy.run(self._replica_step, args=(images, step))
        # Both are the same on all replicas: they were reduced there, many tensors at a time.
        gradients, metrics = tf.nest.map_structure(
            lambda value: self.strategy.experimental_local_results(value)[0], per_replica
        )
        self.optimizer.apply(gradients, metrics.learning_rate)
        return metrics

    def _replica_step(
        self, images: tf.Tensor, step: tf.Tensor
    ) -> tuple[list[tf.Tensor], StepMetrics]:
        config, model, replicas = self.config, self.model, self.strategy.num_replicas_in_sync
        global_batch = config.train.global_batch_size
        beta = kl_warmup(
            step,
            anneal_steps=config.train.kl_anneal_portion * self.total_steps,
            constant_steps=config.train.kl_const_portion * self.total_steps,
        )
        penalty = regularization_coefficient(config.train, beta)
        noise = self._replica_noise(step)
        with tf.GradientTape() as tape, self.regularizer.kernels.use() as kernels:
            output = model.infer(images, noise, training=True)
            terms = objective_terms(model, images, output, beta)
            spectral = self.regularizer.spectral(kernels)
            batch_norm = self.regularizer.batch_norm()
            data_loss = tf.reduce_sum(terms.reconstruction + beta * terms.balanced_kl)
            loss = data_loss / global_batch + penalty * (spectral + batch_norm) / replicas
        gradients = tape.gradient(loss, model.trainable_variables)
        sums = [
            loss,
            tf.reduce_sum(negative_elbo(terms)) / global_batch,
            tf.reduce_sum(terms.reconstruction) / global_batch,
            tf.reduce_sum(terms.kl_per_group, axis=0) / global_batch,
            [channels / replicas for channels in output.kl_per_channel],
        ]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients, sums = context.all_reduce("sum", (gradients, sums))
        loss, elbo, reconstruction, kl_per_group, kl_per_channel = sums
        active = [
            tf.math.count_nonzero(channels > ACTIVE_CHANNEL_NATS, dtype=tf.float32)
            for channels in kl_per_channel
        ]
        return gradients, StepMetrics(
            loss=loss,
            negative_elbo=elbo,
            reconstruction=reconstruction,
            kl=tf.reduce_sum(kl_per_group),
            kl_per_group=kl_per_group,
            balance=terms.balance,
            active_channels=tf.stack(active),
            spectral=spectral,
            batch_norm=batch_norm,
            kl_coefficient=beta,
            regularization_coefficient=penalty,
            learning_rate=learning_rate_at(
                step, config.optimizer, self._warmup_steps, self.total_steps
            ),
            gradient_norm=tf.linalg.global_norm(gradients),
        )

    def _replica_noise(self, step: tf.Tensor) -> list[tf.Tensor]:
        """This replica's rows of the noise for the global batch, which depends on the step only."""
        batch = self.config.train.global_batch_size
        noise = self.model.draw_noise(
            batch, tf.stack([tf.constant(self.config.train.seed, tf.int64), step])
        )
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return noise
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        rows = batch // replicas
        return [tensor[replica * rows : (replica + 1) * rows] for tensor in noise]


def run_steps(
    trainer: Trainer,
    batches: tf.distribute.DistributedDataset,
    after_step: Callable[[int, StepMetrics], None],
) -> None:
    """Trains until the run's last step.

    Args:
      trainer: goes on from its optimiser's step.
      batches: from the batch of that number on.
      after_step: called with the number of steps done and their last one's metrics.

    Raises:
      DivergedError: as soon as the loss is not finite; the last step's weights are not usable.
    """
    iterator = iter(batches)
    for step in range(int(trainer.optimizer.iterations.numpy()) + 1, trainer.total_steps + 1):
        metrics = trainer.step(next(iterator))
        if not np.isfinite(metrics.loss):
            raise DivergedError(
                f"The loss became {float(metrics.loss)} in step {step} (reconstruction "
                f"{float(metrics.reconstruction):.4g}, KL {float(metrics.kl):.4g}, gradient norm "
                f"{float(metrics.gradient_norm):.4g}). The last checkpoint is intact; try a lower "
                "optimizer.learning_rate, or a larger train.weight_decay_norm."
            )
        after_step(step, metrics)


def trace_step(trainer: Trainer, batches: tf.distribute.DistributedDataset) -> float:
    """Traces the step for such batches without running it; returns the seconds that it took."""
    start = time.perf_counter()
    trainer.step.get_concrete_function(batches.element_spec)
    return time.perf_counter() - start
