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
    """

    loss: tf.Tensor  # [], what is minimised
    bound: tf.Tensor  # [3], -ELBO without warm-up and balancing, reconstruction and KL, nats
    squared_bound: tf.Tensor  # [3], squares of the same
    kl_per_group: tf.Tensor  # [L], nats
    kl_per_channel: tf.Tensor  # [L, C_z], nats
    balance: tf.Tensor  # [L], KL balancing coefficients
    inconsistency: tf.Tensor  # [], KL between posteriors of views and images, nats; 0: no views
    singular_values: tf.Tensor  # [N], the largest of every kernel, as in `Regularizer.layers`
    batch_norm: tf.Tensor  # [], sum of largest |gamma|
    stop: tf.Tensor  # [], above 0 if a worker was asked to stop

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
    """The guard's verdict on the gradients; all fields are scalars."""

    gradient_norm: tf.Tensor  # of all weights together, before clipping
    loss_scale: tf.Tensor  # that this step had
    applied: tf.Tensor  # bool, whether the weights changed
    skipped: tf.Tensor  # int64, steps that changed nothing, in the whole run so far
    not_finite_in_a_row: tf.Tensor  # int64, the newest steps whose loss or gradient was not


class StepMetrics(NamedTuple):
    """The report of one step of a run."""

    batch: BatchMeans
    schedule: Coefficients
    verdict: Verdict
