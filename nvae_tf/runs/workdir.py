"""The directory of a run, with its configuration, checkpoints, logs and results."""

from __future__ import annotations

import json
import os

from nvae_tf.config import ExperimentConfig
from nvae_tf.files import write_atomically
from nvae_tf.runs.checkpoint_files import newest_checkpoint

CHECKPOINTS = ("latest", "best")
_CONFIG = "config.json"
# What may change from one start of a run to the next: how long it goes on, what it writes, where.
_CHANGEABLE = (
    "data.cache_dir",
    "data.data_dir",
    "train.epochs",
    "train.steps",
    "train.checkpoint_every",
    "train.log_every",
    "train.image_every",
    "train.keep_checkpoints",
    "train.max_rollbacks",
    "train.recompute",
    "train.jit_compile",
    "train.strategy",
)


class Workdir:
    """The paths in a run's directory, and the run's configuration.

    Args:
      path: Path of the directory, which need not exist yet.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)

    def __truediv__(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def checkpoints(self) -> str:
        """The directory of the checkpoints."""
        return self / "checkpoints"

    @property
    def best_checkpoints(self) -> str:
        """The directory of the checkpoint with the lowest validation -ELBO."""
        return os.path.join(self.checkpoints, "best")

    @property
    def tensorboard(self) -> str:
        """The directory of TensorBoard's event files: one for training, one for validation."""
        return self / "tensorboard"

    @property
    def has_config(self) -> bool:
        """True if a run was started here."""
        return os.path.exists(self / _CONFIG)

    def read_config(self) -> ExperimentConfig:
        """Reads the configuration of the run.

        Raises:
          FileNotFoundError: No run was started here.
          ValueError: This version cannot read its configuration.
        """
        if not self.has_config:
            raise FileNotFoundError(f"{self.path!r} is not the workdir of a run: no {_CONFIG}.")
        with open(self / _CONFIG, encoding="utf-8") as file:
            return ExperimentConfig.from_json(file.read())

    def write_config(self, config: ExperimentConfig) -> None:
        """Creates the directory, if need be, and writes the configuration."""
        os.makedirs(self.path, exist_ok=True)
        write_atomically(self / _CONFIG, config.to_json())

    def check_config(self, config: ExperimentConfig) -> None:
        """Raises a ValueError if the run here has another configuration.

        A run may change how long it trains, how often it writes what, and on which devices.
        """
        if not self.has_config:
            return
        differences = [
            phrase
            for name, phrase in config.differences(self.read_config()).items()
            if name not in _CHANGEABLE
        ]
        if differences:
            raise ValueError(
                f"{self.path!r} belongs to another configuration: {'; '.join(differences)}. "
                "Choose another --workdir."
            )

    def checkpoint(self, name: str) -> str | None:
        """Returns the path prefix of a checkpoint's files, which ends in its step; or None.

        Args:
          name: `"latest"`, or `"best"` for the one with the lowest validation -ELBO.

        Raises:
          ValueError: The word is another one.
        """
        if name not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be latest or best, received {name!r}.")
        directory = self.checkpoints if name == "latest" else self.best_checkpoints
        return newest_checkpoint(directory)

    def latest_checkpoint(self) -> str | None:
        """Returns `checkpoint("latest")`."""
        return self.checkpoint("latest")

    def evaluation_of(self, checkpoint: str) -> str:
        """Returns the path of the newest evaluation of the latest or best checkpoint."""
        return self / ("evaluation_best.json" if checkpoint == "best" else "evaluation.json")

    @property
    def evaluation(self) -> str:
        """The path of the newest evaluation of the latest checkpoint."""
        return self.evaluation_of("latest")

    def evaluated_step(self) -> int | None:
        """Returns the step of the newest evaluation, or None."""
        if not os.path.exists(self.evaluation):
            return None
        with open(self.evaluation, encoding="utf-8") as file:
            return json.load(file).get("step")
