"""Checkpoints of a training run, in a form that `nvae_tf.load_model` reads the model from."""

from __future__ import annotations

import tensorflow as tf

from nvae_tf.model import NVAE
from nvae_tf.optimizer import AdaMax
from nvae_tf.regularization import Regularizer
from nvae_tf.workdir import Workdir, named_variables
from trainers.loop import Trainer

_KEPT = 3


def make_checkpoint(
    model: NVAE, optimizer: AdaMax, regularizer: Regularizer
) -> tf.train.Checkpoint:
    """All that a run's future depends on; data and noise are functions of the optimiser's step."""
    return tf.train.Checkpoint(
        model=named_variables(model), optimizer=optimizer, regularizer=regularizer
    )


def save_weights(model: NVAE, workdir: Workdir) -> None:
    """Saves weights alone, as the state before a run's first step."""
    checkpoint = tf.train.Checkpoint(model=named_variables(model))
    tf.train.CheckpointManager(checkpoint, workdir.checkpoints, max_to_keep=1).save(0)


def _holds_weights_alone(path: str) -> bool:
    names = [name for name, _ in tf.train.list_variables(path)]
    return not any(name.startswith("optimizer/") for name in names)


class Checkpointer:
    """Saves and restores a trainer's weights, optimiser, step and singular vectors.

    Args:
      trainer: built.
      workdir: where its checkpoints go; nothing is created before the first save.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir):
        self._checkpoint = make_checkpoint(trainer.model, trainer.optimizer, trainer.regularizer)
        self._trainer = trainer
        self._workdir = workdir
        self._manager: tf.train.CheckpointManager | None = None

    def restore(self) -> bool:
        """Restores the newest checkpoint; returns whether there was one.

        One of weights alone leaves the rest as it is at a run's start.

        Raises:
          ValueError: if it does not hold exactly this trainer's state.
        """
        latest = self._workdir.latest_checkpoint()
        if latest is None:
            return False
        checkpoint = self._checkpoint
        if _holds_weights_alone(latest):
            checkpoint = tf.train.Checkpoint(model=named_variables(self._trainer.model))
        try:
            checkpoint.restore(latest).assert_consumed()
        except AssertionError as error:
            raise ValueError(f"The checkpoint {latest!r} does not fit this run: {error}") from error
        return True

    def save(self) -> None:
        """Saves the state after the step that the optimiser has reached."""
        if self._manager is None:
            self._manager = tf.train.CheckpointManager(
                self._checkpoint, self._workdir.checkpoints, max_to_keep=_KEPT
            )
        step = int(self._trainer.optimizer.iterations.numpy())
        self._manager.save(checkpoint_number=step)
