"""Checkpoints of a training run, in a form that `nvae_tf.load_model` reads the model from."""

from __future__ import annotations

import math

import tensorflow as tf

from nvae_tf.runs.checkpoint_files import CheckpointReader, clear_leftovers, write_checkpoint
from nvae_tf.runs.workdir import Workdir
from trainers.run.trainer import Trainer

_BEST = "best"  # the name of the best -ELBO in a checkpoint


class Checkpointer:
    """Saves and restores everything that a run's future depends on.

    That is the trainer's state. Data and noise are functions of the number of steps done, so
    neither has a state of its own. A checkpoint is written under a temporary name, and then
    renamed; a run that is killed meanwhile goes on from the one before.

    Args:
      trainer: The trainer whose state it is.
      workdir: Where the checkpoints go; nothing is created before the first save.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir):
        self._trainer = trainer
        self._workdir = workdir
        self._best = math.inf  # -ELBO of the best checkpoint, nats

    def restore(self) -> bool:
        """Restores the newest checkpoint; returns whether there was one.

        One of weights alone leaves the rest as it is at a run's start.

        Raises:
          ValueError: It does not hold exactly this trainer's state; nothing has changed.
        """
        newest = self._workdir.latest_checkpoint()
        if newest is None:
            return False
        self._trainer.state.restore(CheckpointReader(newest))
        # Not what the newest checkpoint remembers: going back to it leaves the best one in place.
        best = self._workdir.checkpoint("best")
        self._best = float(CheckpointReader(best).read(_BEST)) if best else math.inf
        return True

    def save(self) -> None:
        """Saves the state after the steps done; the newest ones are kept."""
        self._save(self._workdir.checkpoints, self._trainer.config.train.keep_checkpoints)

    def save_if_best(self, negative_elbo: float) -> None:
        """Keeps the state after the steps done as the best one, if no other had a lower -ELBO."""
        if negative_elbo < self._best:
            self._best = negative_elbo
            self._save(self._workdir.best_checkpoints, keep=1)

    def _save(self, directory: str, keep: int) -> None:
        state = self._trainer.state
        items = state.checkpoint_items() | {_BEST: tf.constant(self._best, tf.float32)}
        write_checkpoint(directory, state.steps_done, self._trainer.model.variables, items, keep)

    def clear_leftovers(self) -> None:
        """Removes what a save that was killed left behind."""
        for directory in (self._workdir.checkpoints, self._workdir.best_checkpoints):
            clear_leftovers(directory)
