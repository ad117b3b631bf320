"""The numbers that change with the step alone: beta, lambda and the learning rate."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.training.objective import kl_warmup, regularization_coefficient
from nvae_tf.training.optimizer import learning_rate_at

_ROUNDING = 1e-6  # steps: 0.29 of 100 steps is 29, though the product is a little less


class Coefficients(NamedTuple):
    """The schedule's values at one step, float32 scalars.

    Attributes:
      kl: Beta, the weight of the KL while it warms up.
      regularization: Lambda, of the spectral and batch-norm regularisation.
      learning_rate: The learning rate.
    """

    kl: tf.Tensor
    regularization: tf.Tensor
    learning_rate: tf.Tensor


class Schedule:
    """The schedule of a whole run (paper, appendix A; docs/model.md).

    Args:
      config: The run's configuration.
      num_images: The number of images in the training split.

    Attributes:
      total_steps: The number of optimiser steps of the whole run.
      warmup_steps: The number of steps in which the learning rate rises.
      frozen_from: The number of steps after which batch normalisation is frozen; `total_steps` if
        it never is.

    Raises:
      ValueError: There are fewer images than a batch needs.
    """

    def __init__(self, config: ExperimentConfig, num_images: int):
        self._config = config
        self.total_steps = total_steps(config, num_images)
        portion = config.train.frozen_batch_norm_portion
        self.frozen_from = self.total_steps - int(portion * self.total_steps + _ROUNDING)
        epoch = steps_per_epoch(config, num_images)
        self.warmup_steps = round(config.optimizer.warmup_epochs * epoch)

    def freezes(self, step: int) -> bool:
        """Returns whether the step at that number, counted from 0, has frozen batch norm."""
        return self.frozen_from <= step < self.total_steps

    def at(self, step: tf.Tensor) -> Coefficients:
        """Computes the values at a step, counted from 0."""
        train = self._config.train
        beta = kl_warmup(
            step,
            anneal_steps=train.kl_anneal_portion * self.total_steps,
            constant_steps=train.kl_const_portion * self.total_steps,
        )
        rate = learning_rate_at(step, self._config.optimizer, self.warmup_steps, self.total_steps)
        return Coefficients(beta, regularization_coefficient(train, beta), rate)


def total_steps(config: ExperimentConfig, num_images: int) -> int:
    """Returns the number of optimiser steps of a whole run.

    Raises:
      ValueError: There are fewer images than a batch needs.
    """
    epoch = steps_per_epoch(config, num_images)
    return config.train.steps or config.train.epochs * epoch


def steps_per_epoch(config: ExperimentConfig, num_images: int) -> int:
    """Returns the number of whole batches in an epoch.

    Raises:
      ValueError: There are fewer images than a batch needs.
    """
    batch_size = config.train.global_batch_size
    if num_images < batch_size:
        raise ValueError(
            f"The training split has {num_images} images, fewer than train.global_batch_size "
            f"{batch_size}."
        )
    return num_images // batch_size
