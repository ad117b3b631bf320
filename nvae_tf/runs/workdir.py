"""The directory of a run, with its configuration, checkpoints, logs and results."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from nvae_tf.config import ExperimentConfig, some_of
from nvae_tf.files import read_json, read_text, write_atomically
from nvae_tf.runs.checkpoint_files import newest_checkpoint

CHECKPOINTS = ("latest", "best")
_CONFIG = "config.json"
_IMAGES = "images.json"
_INITIAL_WEIGHTS = "initial_weights.json"
_LOCK = ".lock"
# What may change from one start of a run to the next: how long it goes on, what it writes, where.
CHANGEABLE = (
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
        text = read_text(self / _CONFIG)
        try:
            return ExperimentConfig.from_json(text)
        except ValueError as error:
            raise ValueError(f"{self / _CONFIG!r}: {error}") from error

    def check_usable(self) -> None:
        """Raises an OSError if the directory is something else, or cannot be created or written."""
        place = os.path.abspath(self.path)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise NotADirectoryError(f"--workdir={self.path}: {place!r} is not a directory.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(f"--workdir={self.path}: {place!r} cannot be written.")

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A scope in which no other process trains here.

        The system ends it with the process, however that ends.

        Raises:
          ValueError: Another process trains here.
        """
        os.makedirs(self.path, exist_ok=True)
        with open(self / _LOCK, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"Another process trains in {self.path!r} already ({file.read(200).strip()}). "
                    "Stop it first, or choose another --workdir."
                ) from None
            except OSError as error:
                logging.warning("No other process may train in %s: %s", self.path, error)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    def check_images(self, images: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises a ValueError unless the run's images are those that it started with.

        Args:
          images: A description for each split, from `nvae_tf.data.describe`.
        """
        before = self.read_images()
        if not before:
            return
        for split, now in images.items():
            if before.get(split) != now:
                raise ValueError(
                    f"The images of the split {split!r} are not those that the run in "
                    f"{self.path!r} started with: {before.get(split)} then, {dict(now)} now. A "
                    "held-out picture must not become one to train on. Bring the old images "
                    "back, or start another run (--init_from takes the weights along)."
                )

    def read_images(self) -> dict[str, Any]:
        """Returns what `write_images` wrote; empty if nothing was."""
        return self._read(_IMAGES)

    def write_images(self, images: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes what `check_images` compares."""
        write_atomically(self / _IMAGES, json.dumps(images, indent=2) + "\n")

    def check_initial_weights(self, path: str) -> None:
        """Raises a ValueError unless the run here started with the weights of that trained model.

        Args:
          path: The name of a preset, or the path of a directory or a workdir.
        """
        started = self.read_initial_weights()
        if started and os.path.normpath(started["path"]) == os.path.normpath(path):
            return
        weights = f"the weights of {started['path']!r}" if started else "random weights"
        raise ValueError(
            f"The run in {self.path!r} started with {weights}, and goes on with its own: "
            f"--init_from={path} is for a new run. Leave it out, or choose another --workdir."
        )

    def read_initial_weights(self) -> dict[str, Any]:
        """Returns what `write_initial_weights` wrote; empty if the run began with random ones."""
        return self._read(_INITIAL_WEIGHTS)

    def write_initial_weights(self, source: Mapping[str, Any]) -> None:
        """Writes which trained model a new run has its weights from; empty: from none.

        Args:
          source: Its `path`, `name` and `step`.
        """
        path = self / _INITIAL_WEIGHTS
        if source:
            write_atomically(path, json.dumps(source, indent=2) + "\n")
        elif os.path.exists(path):  # of a start that never had a checkpoint
            os.remove(path)

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self / name) if os.path.exists(self / name) else {}

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
            if name not in CHANGEABLE
        ]
        if differences:
            raise ValueError(
                f"{self.path!r} belongs to another configuration: {some_of(differences)}. Choose "
                "another --workdir; without --preset, the run goes on with its own configuration."
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

    def remove_report(self) -> None:
        """Removes the report of an older evaluation of the latest checkpoint."""
        report = f"{os.path.splitext(self.evaluation)[0]}.html"
        if os.path.exists(report):
            os.remove(report)

    def evaluated_step(self) -> int | None:
        """Returns the step of the newest evaluation, or None."""
        if not os.path.exists(self.evaluation):
            return None
        return read_json(self.evaluation).get("step")
