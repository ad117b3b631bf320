"""The guard against steps whose gradients would damage the weights."""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.config import TrainConfig

_INITIAL_SCALE = 2.0**10  # as the authors; with 2^15 the first steps are skipped
_STEPS_TO_GROWTH = 2000  # finite steps after which the loss scale doubles
_NORM_MOMENTUM = 0.99
_LEARNING_RATE_FACTOR = 0.5  # by which each rollback multiplies the learning rate


class Guard(tf.Module):
    """The state that decides whether a step's gradients are applied.

    It holds the loss scale, the running gradient norm and the counts of skipped steps and
    rollbacks, and is saved in the checkpoint. Create it under the strategy's scope. Call `judge`
    once a step outside of the replicas, with values of the global batch, so that all replicas and
    workers decide alike.

    Args:
      config: Gives the precision, and the threshold for large gradients.
    """

    def __init__(self, config: TrainConfig):
        super().__init__(name="guard")
        self._scales_loss = config.precision == "mixed_float16"
        self._threshold = config.skip_gradient_norm
        self.loss_scale = _scalar(_INITIAL_SCALE if self._scales_loss else 1.0)
        self.steps_at_scale = _scalar(0)
        self.running_norm = _scalar(0.0)
        self.skipped = _scalar(0)  # number of all skipped steps
        self.not_finite_in_a_row = _scalar(0)
        self.rollbacks = _scalar(0)
        self.learning_rate_factor = _scalar(1.0)

    def judge(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Decides whether this step's gradients are applied, and updates the state.

        A step is skipped if its loss or gradient norm is not finite; with mixed_float16 the loss
        scale is then halved. It is also skipped if the norm exceeds `skip_gradient_norm` times
        its running mean. Such a norm enters the mean with at most the threshold's value, so a norm
        that has grown for good is accepted after some steps.

        Args:
          loss: The global batch's loss, without the loss scale.
          gradient_norm: The norm of the global batch's gradients, without the loss scale.

        Returns:
          A scalar bool, true if the gradients are to be applied.
        """
        finite = tf.logical_and(tf.math.is_finite(loss), tf.math.is_finite(gradient_norm))
        apply = finite
        if self._threshold:
            running = tf.convert_to_tensor(self.running_norm)
            limit = self._threshold * running
            known = running > 0
            apply = tf.logical_and(finite, tf.logical_or(~known, gradient_norm <= limit))
            counted = tf.where(known, tf.minimum(gradient_norm, limit), gradient_norm)
            mean = _NORM_MOMENTUM * running + (1 - _NORM_MOMENTUM) * counted
            updated = tf.where(known, mean, gradient_norm)
            self.running_norm.assign(tf.where(finite, updated, running))
        if self._scales_loss:
            self._adapt_scale(finite)
        self.skipped.assign_add(tf.cast(~apply, tf.int64))
        bad = tf.convert_to_tensor(self.not_finite_in_a_row)
        self.not_finite_in_a_row.assign(tf.where(finite, tf.zeros_like(bad), bad + 1))
        return apply

    def _adapt_scale(self, finite: tf.Tensor) -> None:
        scale, steps = tf.convert_to_tensor(self.loss_scale), self.steps_at_scale + 1
        grows = steps >= _STEPS_TO_GROWTH
        up = tf.where(grows, 2 * scale, scale)
        down = tf.maximum(scale / 2, 1.0)
        self.loss_scale.assign(tf.where(finite, up, down))
        self.steps_at_scale.assign(tf.where(finite & ~grows, steps, tf.zeros_like(steps)))

    def note_rollback(self, rollbacks: int) -> None:
        """Sets the number of rollbacks so far, each of which halves the learning rate.

        Call it after a checkpoint was restored, because the checkpoint's own number is older.
        """
        self.rollbacks.assign(rollbacks)
        self.learning_rate_factor.assign(_LEARNING_RATE_FACTOR**rollbacks)


def _scalar(value: float) -> tf.Variable:
    dtype = tf.int64 if isinstance(value, int) else tf.float32
    return tf.Variable(value, dtype=dtype, trainable=False)
