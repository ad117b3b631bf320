"""What decides whether a step's gradients are fit to be applied."""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.config import TrainConfig

_INITIAL_SCALE = 2.0**15
_STEPS_TO_GROWTH = 2000  # finite steps after which the loss scale doubles
_NORM_MOMENTUM = 0.99
_LEARNING_RATE_FACTOR = 0.5  # of a rollback


class Guard(tf.Module):
    """Loss scale, running gradient norm and counts of skipped steps; all in the checkpoint.

    Create it under the strategy's scope. `judge` is called outside of replicas, once a step, with
    values of the global batch, so that all replicas and workers do the same.

    Args:
      config: precision, and the threshold for large gradients.
    """

    def __init__(self, config: TrainConfig):
        super().__init__(name="guard")
        self._scales_loss = config.precision == "mixed_float16"
        self._threshold = config.skip_gradient_norm
        self.loss_scale = _scalar(_INITIAL_SCALE if self._scales_loss else 1.0)
        self.steps_at_scale = _scalar(0)
        self.running_norm = _scalar(0.0)
        self.skipped = _scalar(0)  # steps, in all
        self.not_finite_in_a_row = _scalar(0)
        self.rollbacks = _scalar(0)
        self.learning_rate_factor = _scalar(1.0)

    def judge(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Whether to apply this step's gradients (scalar bool); keeps count.

        They are not if loss or norm is not finite; then the loss scale halves. Nor if the norm
        exceeds `skip_gradient_norm` times its running mean. What such a step adds to that mean is
        limited, but not nothing, so a norm that has grown for good is accepted in the end.

        Args:
          loss: of the global batch, without the loss scale.
          gradient_norm: of the global batch's gradients, without the loss scale.
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
        """To be called after the state was restored: so many rollbacks have happened.

        The learning rate is halved for each of them.
        """
        self.rollbacks.assign(rollbacks)
        self.learning_rate_factor.assign(_LEARNING_RATE_FACTOR**rollbacks)


def _scalar(value: float) -> tf.Variable:
    dtype = tf.int64 if isinstance(value, int) else tf.float32
    return tf.Variable(value, dtype=dtype, trainable=False)
