"""The report of one training step.

One more number takes a field of `BatchMeans`, the line of `trainers.run.step` that computes it, and
a chart in `trainers.summaries.writer`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nvae_tf.training.schedule import Coefficients


class BatchMeans(NamedTuple):
    """Means over a batch, float32; L groups, N kernels.

    The replicas and the parts of a batch each compute their share of every field, and the shares
    are added.

    Attributes:
      loss: What is minimised, a scalar.
      bound: -ELBO without warm-up and balancing, reconstruction and KL in nats, [3].
      squared_bound: The squares of the same, [3].
      kl_per_group: KL of each group in nats, [L].
      kl_per_channel: KL of each channel of each group in nats, [L, C_z].
      balance: Coefficients of the KL balancing, [L].
      inconsistency: KL between the posteriors of views and images in nats, a scalar; 0 without
        views.
      singular_values: The largest of every kernel, in the order of `Regularizer.layers`, [N].
      batch_norm: Sum of the largest |gamma| of every batch normalisation, a scalar.
      stop: Above 0 if a worker was asked to stop, a scalar.
    """

    loss: tf.Tensor
    bound: tf.Tensor
    squared_bound: tf.Tensor
    kl_per_group: tf.Tensor
    kl_per_channel: tf.Tensor
    balance: tf.Tensor
    inconsistency: tf.Tensor
    singular_values: tf.Tensor
    batch_norm: tf.Tensor
    stop: tf.Tensor

    @property
    def negative_elbo(self) -> tf.Tensor:
        """-ELBO, nats, a scalar."""
        return self.bound[0]

    @property
    def reconstruction(self) -> tf.Tensor:
        """-log p(x|z), nats, a scalar."""
        return self.bound[1]

    @property
    def kl(self) -> tf.Tensor:
        """The sum over the groups, nats, a scalar."""
        return self.bound[2]

    def standard_errors(self, batch_size: int) -> tf.Tensor:
        """Returns the standard errors (3,) of `bound` as means over so many images."""
        # Of values with little spread the difference has few digits: enough for a chart.
        variances = tf.maximum(self.squared_bound - tf.square(self.bound), 0.0)
        return tf.sqrt(variances / max(batch_size - 1, 1))


class Verdict(NamedTuple):
    """The guard's verdict on the gradients; all fields are scalars.

    Attributes:
      gradient_norm: Norm of all gradients together, before clipping, float32.
      loss_scale: The loss scale that this step had, float32.
      applied: Whether the weights changed, bool.
      skipped: Steps of the whole run so far that changed nothing, int64.
      not_finite_in_a_row: The newest steps in a row whose loss or gradient was not finite, int64.
    """

    gradient_norm: tf.Tensor
    loss_scale: tf.Tensor
    applied: tf.Tensor
    skipped: tf.Tensor
    not_finite_in_a_row: tf.Tensor


class StepMetrics(NamedTuple):
    """The report of one step of a run.

    Attributes:
      batch: Means over the batch.
      schedule: The learning rate and coefficients of the step.
      verdict: What the guard made of the gradients.
    """

    batch: BatchMeans
    schedule: Coefficients
    verdict: Verdict
