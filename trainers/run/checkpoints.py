"""Checkpoints of a training run, in a form that `nvae_tf.load_model` reads the model from."""

from __future__ import annotations

import glob
import math
import os
import shutil

import tensorflow as tf

from nvae_tf.model.nvae import NVAE
from nvae_tf.runs.workdir import Workdir, checkpoint_holds, named_variables
from trainers.run.trainer import Trainer

# What TensorFlow leaves behind when it is killed while it saves.
_LEFTOVERS = ("*_temp", "*.tempstate*", "checkpoint.tmp*")

_BEST = "best/.ATTRIBUTES/VARIABLE_VALUE"  # the name of that variable in a checkpoint


def save_weights(model: NVAE, workdir: Workdir) -> None:
    """Saves weights alone, as the state before a run's first step."""
    checkpoint = tf.train.Checkpoint(model=named_variables(model))
    tf.train.CheckpointManager(checkpoint, workdir.checkpoints, max_to_keep=1).save(0)


class Checkpointer:
    """Saves and restores all that a run's future depends on.

    That is weights, moving averages, optimiser, singular vectors, loss scale and other counts of
    the guard, the average of the weights, and the number of steps done. Data and noise are
    functions of that number, so neither has a state of its own.

    A checkpoint is written under temporary names, and then renamed; a run that is killed meanwhile
    goes on from the one before.

    Args:
      trainer: built.
      workdir: where its checkpoints go; nothing is created before the first save.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir):
        self._best = tf.Variable(math.inf, trainable=False)  # -ELBO of the best checkpoint, nats
        parts = {
            "model": named_variables(trainer.model),
            "optimizer": trainer.optimizer,
            "regularizer": trainer.regularizer,
            "guard": trainer.guard,
            "step": trainer.steps_done,
            "best": self._best,
        }
        if trainer.average:
            parts["average"] = trainer.average
        self._checkpoint = tf.train.Checkpoint(**parts)
        self._trainer = trainer
        self._workdir = workdir
        self._managers: dict[str, tf.train.CheckpointManager] = {}

    def restore(self) -> bool:
        """Restores the newest checkpoint; returns whether there was one.

        One of weights alone leaves the rest as it is at a run's start.

        Raises:
          ValueError: if it does not hold exactly this trainer's state.
        """
        latest = self._workdir.latest_checkpoint()
        if latest is None:
            return False
        trainer = self._trainer
        weights_alone = not checkpoint_holds(latest, "optimizer")
        checkpoint = self._checkpoint
        if weights_alone:
            checkpoint = tf.train.Checkpoint(model=named_variables(trainer.model))
        try:
            checkpoint.restore(latest).assert_consumed()
        except AssertionError as error:
            raise ValueError(f"The checkpoint {latest!r} does not fit this run: {error}") from error
        if weights_alone:
            trainer.load()
        else:
            trainer.weights.load()
            trainer.moving_averages.load()
        self._best.assign(self._best_on_disk())
        return True

    def _best_on_disk(self) -> float:
        # Not what the newest checkpoint remembers: going back to it leaves the best one in place.
        path = self._workdir.checkpoint("best")
        return tf.train.load_variable(path, _BEST) if path else math.inf

    def save(self) -> None:
        """Saves the state after the steps done; the newest ones are kept."""
        self._save(self._workdir.checkpoints, self._trainer.config.train.keep_checkpoints)

    def save_if_best(self, negative_elbo: float) -> None:
        """Keeps the state after the steps done as the best one, if no other had a lower -ELBO."""
        if negative_elbo < float(self._best.numpy()):
            self._best.assign(negative_elbo)
            self._save(self._workdir.best_checkpoints, 1)

    def _save(self, directory: str, kept: int) -> None:
        if directory not in self._managers:
            self._managers[directory] = tf.train.CheckpointManager(
                self._checkpoint, directory, max_to_keep=kept
            )
        self._trainer.store()
        step = int(self._trainer.steps_done.numpy())
        self._managers[directory].save(checkpoint_number=step)

    def clear_leftovers(self) -> None:
        """Removes what a save that was killed left behind."""
        for directory in (self._workdir.checkpoints, self._workdir.best_checkpoints):
            for pattern in _LEFTOVERS:
                for path in glob.glob(os.path.join(glob.escape(directory), pattern)):
                    shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
