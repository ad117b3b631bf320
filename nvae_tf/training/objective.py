"""The evidence lower bound with warm-up and balancing of its KL terms (paper, appendix A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, TrainConfig
from nvae_tf.model.nvae import NVAE, InferenceOutput
from nvae_tf.replicas import Replicas

_MIN_KL_COEFFICIENT = 1e-4
_ALONE = Replicas()
_BALANCE_OFFSET = 0.01  # nats, so that a group without KL still has a coefficient


class ObjectiveTerms(NamedTuple):
    """The ELBO's terms of B images and L groups, float32.

    Attributes:
      reconstruction: [B], -log p(x|z) in nats.
      kl_per_group: [B, L], nats.
      balanced_kl: [B], sum over groups of balancing coefficient times KL.
      balance: [L], balancing coefficients, mean 1.
    """

    reconstruction: tf.Tensor
    kl_per_group: tf.Tensor
    balanced_kl: tf.Tensor
    balance: tf.Tensor


def negative_elbo(terms: ObjectiveTerms) -> tf.Tensor:
    """Returns -ELBO (B,) in nats, without warm-up or balancing (docs/model.md)."""
    return terms.reconstruction + tf.reduce_sum(terms.kl_per_group, axis=1)


def objective_terms(
    model: NVAE,
    images: tf.Tensor,
    output: InferenceOutput,
    kl_coefficient: float | tf.Tensor,
    replicas: Replicas = _ALONE,
) -> ObjectiveTerms:
    """Computes the terms of the training loss.

    Args:
      model: The model, which has the likelihood.
      images: (B, H, W, C), in [0, 1].
      output: What `infer` made of the images.
      kl_coefficient: beta.
      replicas: Those whose images belong to the same batch.
    """
    importance = group_importance(model.config.groups_per_scale)
    balance = kl_balance(output.kl_per_group, importance, kl_coefficient, replicas)
    return ObjectiveTerms(
        reconstruction=-model.likelihood(output.logits).log_prob(images),
        kl_per_group=output.kl_per_group,
        balanced_kl=tf.linalg.matvec(output.kl_per_group, balance),
        balance=balance,
    )


def kl_warmup(step: int | tf.Tensor, anneal_steps: float, constant_steps: float) -> tf.Tensor:
    """Returns beta (scalar): from 1e-4, linear in the steps after `constant_steps`, to 1."""
    progress = (tf.cast(step, tf.float32) - constant_steps) / anneal_steps
    return tf.clip_by_value(progress, _MIN_KL_COEFFICIENT, 1.0)


def group_importance(groups_per_scale: Sequence[int]) -> np.ndarray:
    """Returns alpha (L,), top-down: 4^i over the groups of the i-th scale, divided by the least.

    The deepest scale has i = 0.
    """
    per_scale = [4.0**i / groups for i, groups in enumerate(reversed(groups_per_scale))]
    alpha = np.repeat(per_scale, list(reversed(groups_per_scale)))
    return (alpha / alpha.min()).astype(np.float32)


def kl_balance(
    kl_per_group: tf.Tensor,
    importance: np.ndarray,
    kl_coefficient: float | tf.Tensor,
    replicas: Replicas = _ALONE,
) -> tf.Tensor:
    """Returns gamma (L,): more weight to groups with more KL while beta < 1, and 1 afterwards.

    Groups whose KL is small are pressed less while the KL warms up, so they stay in use. The mean
    is over the images of all replicas (with accumulation, of one part of the batch); no gradient
    flows through the coefficients.

    Args:
      kl_per_group: (B, L), nats.
      importance: alpha (L,), see `group_importance`.
      kl_coefficient: beta.
      replicas: Those whose images belong to the same batch.
    """
    mean = replicas.mean(tf.reduce_mean(tf.abs(kl_per_group), axis=0))
    weight = tf.stop_gradient((mean + _BALANCE_OFFSET) / importance)
    balanced = weight / tf.reduce_mean(weight)
    return tf.where(kl_coefficient < 1.0, balanced, tf.ones_like(balanced))


def regularization_coefficient(config: TrainConfig, kl_coefficient: tf.Tensor) -> tf.Tensor:
    """Returns lambda (scalar): constant, or annealed between the logarithms as beta rises."""
    if not config.weight_decay_norm_anneal:
        return tf.constant(config.weight_decay_norm)
    start, end = math.log(config.weight_decay_norm_init), math.log(config.weight_decay_norm)
    return tf.exp((1 - kl_coefficient) * start + kl_coefficient * end)


def bits_per_dimension(nats: float | tf.Tensor, config: ModelConfig) -> float | tf.Tensor:
    """Converts nats per image to bits per pixel and channel; padding does not count."""
    return nats / (math.log(2) * config.num_dimensions)
