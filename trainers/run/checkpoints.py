"""Checkpoints of a training run, in a form that `nvae_tf.load_model` reads the model from."""

from __future__ import annotations

import math
import os

import tensorflow as tf
from absl import logging

from nvae_tf.runs.checkpoint_files import (
    CheckpointReader,
    DamagedCheckpointError,
    checkpoint_step,
    checkpoints,
    clear_leftovers,
    set_aside,
    without_index,
    write_checkpoint,
)
from nvae_tf.runs.workdir import Workdir
from trainers.run.state import holds_weights_alone
from trainers.run.trainer import DivergedError, Trainer

_BEST = "best"  # the name of the best -ELBO in a checkpoint


class Checkpointer:
    """Saves and restores everything that a run's future depends on.

    That is the trainer's state. Data and noise are functions of the number of steps done, so
    neither has a state of its own. A checkpoint is written under a temporary name, and then
    renamed; a run that is killed meanwhile goes on from the one before.

    Args:
      trainer: The trainer whose state it is.
      workdir: Where the checkpoints go; nothing is created before the first save.

    Attributes:
      restored_weights_alone: Whether the checkpoint that was restored last has nothing else.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir):
        self._trainer = trainer
        self._workdir = workdir
        self._best = math.inf  # -ELBO of the best checkpoint, nats
        self._damaged: list[str] = []
        self.restored_weights_alone = False

    def restore(self) -> bool:
        """Restores the newest checkpoint that is whole; returns whether there was one.

        One of weights alone leaves the rest as it is at a run's start.

        Raises:
          ValueError: It does not hold exactly this trainer's state, or there are checkpoints and
            none of them is whole, or there were some, as the logs show; nothing has changed.
        """
        directory = self._workdir.checkpoints
        faults = {prefix: "it has no index" for prefix in without_index(directory)}
        for prefix in reversed(checkpoints(directory)):
            try:
                reader = CheckpointReader(prefix)
                self._trainer.state.restore(reader)
                self.restored_weights_alone = holds_weights_alone(reader)
            except DamagedCheckpointError as error:
                faults[prefix] = str(error)
                self._damaged.append(prefix)
                continue
            for other, fault in faults.items():
                if checkpoint_step(other) > checkpoint_step(prefix):
                    logging.warning("Going on from %s, not %s: %s", prefix, other, fault)
            self._best = self._best_so_far()
            return True
        if faults:
            raise ValueError(
                f"No checkpoint in {directory!r} can be restored: "
                f"{'; '.join(f'{os.path.basename(p)}: {fault}' for p, fault in faults.items())}. "
                "Bring its files back, or start anew in another --workdir."
            )
        if os.path.isdir(self._workdir.tensorboard):
            raise ValueError(
                f"The run in {self._workdir.path!r} has logs, but its checkpoints are gone. Bring "
                "them back, or start anew in another --workdir."
            )
        return False

    def _best_so_far(self) -> float:
        """Reads the -ELBO of the best checkpoint.

        That is not what the newest one remembers: going back leaves the best one in place.
        """
        best = self._workdir.checkpoint("best")
        if best is None:
            return math.inf
        try:
            return float(CheckpointReader(best).read(_BEST))
        except DamagedCheckpointError as error:
            logging.warning("%s There will be another best one.", error)
            self._damaged.append(best)
            return math.inf

    def save(self) -> None:
        """Saves the state after the steps done; the newest ones are kept.

        Raises:
          DivergedError: Weights are not finite; nothing is written.
        """
        self._save(self._workdir.checkpoints, self._trainer.config.train.keep_checkpoints)

    def save_if_best(self, negative_elbo: float) -> None:
        """Keeps the state after the steps done as the best one, if no other had a lower -ELBO."""
        if negative_elbo < self._best:
            self._best = negative_elbo
            self._save(self._workdir.best_checkpoints, keep=1)

    def _save(self, directory: str, keep: int) -> None:
        state = self._trainer.state
        if (culprit := state.first_not_finite()) is not None:
            raise DivergedError(
                f"Weights were not finite after step {state.steps_done} ({culprit})"
            )
        items = state.checkpoint_items() | {_BEST: tf.constant(self._best, tf.float32)}
        write_checkpoint(directory, state.steps_done, self._trainer.model.variables, items, keep)

    def clear_leftovers(self) -> None:
        """Removes what a save that was killed left behind, and sets damaged checkpoints aside."""
        for prefix in self._damaged:
            set_aside(prefix)
        self._damaged.clear()
        for directory in (self._workdir.checkpoints, self._workdir.best_checkpoints):
            clear_leftovers(directory)
