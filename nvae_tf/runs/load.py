"""Trained models, from the checkpoints of runs and from presets."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvae_tf.config import DataConfig, ExperimentConfig, some_of
from nvae_tf.data.storage import cache_directory
from nvae_tf.files import read_json
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.pretrained import Pretrained, builtin_names, is_saved_model
from nvae_tf.model.stacks import read_values
from nvae_tf.runs.checkpoint_files import (
    AVERAGE,
    MODEL,
    CheckpointReader,
    checkpoint_step,
    write_checkpoint,
)
from nvae_tf.runs.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model that has weights, whether a run trained it or it comes with this package.

    Attributes:
      name: A word for it: the last part of the path of a workdir or a directory, or a preset.
      path: What it was found by: the path of a workdir or a directory, or a preset.
      origin: Where it is from: the path of a workdir and the checkpoint, or a preset.
      flags: The flags by which a program finds it.
      config: The configuration of the experiment.
      step: The number of steps of training.
      init_from: `name` and `step` of the trained model whose weights the training started with;
        empty if those were random.
      images: What its images were, by split, as from `nvae_tf.data.describe`; empty if not known.
      evaluation: The newest evaluation of exactly these weights; empty if there is none.
      evaluation_path: Where its evaluations go; None: nowhere, unless the user says so.
      workdir: Path of the run's workdir; None for a preset.
      read: Returns the model in a precision, the name of a Keras dtype policy.
    """

    name: str
    path: str
    origin: str
    flags: str
    config: ExperimentConfig
    step: int
    init_from: Mapping[str, Any]
    images: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    evaluation_path: str | None
    workdir: str | None
    read: Callable[[str], NVAE]

    @classmethod
    def of_run(cls, workdir: Workdir, checkpoint: str = "latest") -> TrainedModel:
        """Finds the model of a run.

        Args:
          workdir: The run's directory.
          checkpoint: `"latest"`, or `"best"` for the one with the lowest validation -ELBO.

        Raises:
          FileNotFoundError: No run was started there, or it has no such checkpoint yet.
          ValueError: This version cannot read the configuration, or the word is another one.
        """
        if not workdir.has_config and workdir.path in builtin_names():
            raise FileNotFoundError(
                f"{workdir.path!r} is not a run, but a model of this package: --preset, or "
                "NVAE.from_preset, takes it."
            )
        config = workdir.read_config()
        prefix = workdir.checkpoint(checkpoint)
        if prefix is None and is_saved_model(workdir.path):
            raise FileNotFoundError(
                f"{workdir.path!r} is not a run, but the directory of a saved model: --preset, or "
                "NVAE.from_preset, takes it."
            )
        if prefix is None:
            raise FileNotFoundError(
                f"The run in {workdir.path!r} has no {checkpoint} checkpoint yet."
            )
        step = checkpoint_step(prefix)
        evaluations = [workdir.evaluation_of("latest")]
        if checkpoint == "best":
            evaluations.insert(0, workdir.evaluation_of("best"))
        return cls(
            name=_last_part(workdir.path),
            path=workdir.path,
            origin=f"{workdir.path}, {checkpoint} checkpoint",
            flags=shlex.quote(f"--workdir={workdir.path}")
            + (" --checkpoint=best" if checkpoint == "best" else ""),
            config=config,
            step=step,
            init_from=workdir.read_initial_weights(),
            images=workdir.read_images(),
            evaluation=_evaluation(evaluations, step),
            evaluation_path=evaluations[0],
            workdir=workdir.path,
            read=lambda precision: _load_checkpoint(config, prefix, precision),
        )

    @classmethod
    def of_preset(cls, preset: str | os.PathLike) -> TrainedModel:
        """Finds the model of a preset, by its name or its directory.

        Raises:
          ValueError: There is none, it has no weights, or its files are damaged.
        """
        found = Pretrained.find(preset)
        return cls(
            name=_last_part(found.name),
            path=found.name,
            origin=found.name,
            flags=shlex.quote(f"--preset={found.name}"),
            config=found.config,
            step=found.metadata.get("step", 0),
            init_from=found.metadata.get("init_from", {}),
            images={},
            evaluation=found.metadata.get("evaluation", {}),
            evaluation_path=None,
            workdir=None,
            read=lambda precision: NVAE.from_preset(found.directory, dtype=precision),
        )

    @classmethod
    def of(cls, path_or_preset: str | os.PathLike) -> TrainedModel:
        """Finds the model of this package by its name, of a run, or of a preset's directory."""
        workdir = Workdir(path_or_preset)
        is_run = workdir.has_config and os.path.isdir(workdir.checkpoints)
        is_run = is_run and workdir.path not in builtin_names()
        return cls.of_run(workdir) if is_run else cls.of_preset(path_or_preset)

    def load(self, precision: str = "float32") -> NVAE:
        """Reads the model, whatever Keras's global precision is.

        Args:
          precision: The name of a Keras dtype policy.

        Raises:
          ValueError: The files are damaged, or do not fit this version.
        """
        return self.read(precision)

    def kept(self, kind: str, data: DataConfig) -> str:
        """Returns the directory for results of a kind that can be computed again.

        It is in a run's workdir, and for a preset in the data's cache directory.

        Args:
          kind: Such as `"batch_norm"`.
          data: The data set that says where caches are.
        """
        return os.path.join(self.workdir or cache_directory(data), kind)

    def check_same_model(self, config: ExperimentConfig) -> None:
        """Raises a ValueError if a configuration is that of another model, which names the fields.

        Args:
          config: The configuration of what is to start from these weights.
        """
        differences = [
            phrase
            for name, phrase in config.differences(self.config).items()
            if name.startswith("model.")
        ]
        if differences:
            raise ValueError(f"{self.origin!r} is another model: {some_of(differences)}.")


def _last_part(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _evaluation(paths: Sequence[str], step: int) -> Mapping[str, Any]:
    """Returns the first of the evaluations that was made at that step."""
    for path in paths:
        if os.path.exists(path):
            fields = read_json(path)
            if fields.pop("step", None) == step:
                return fields
    return {}


def load_model(workdir: str | os.PathLike, checkpoint: str = "latest") -> NVAE:
    """Loads the model of a run, in float32, with the weights of a checkpoint.

    They are the moving average of the weights, if the run keeps one.

    Args:
      workdir: The directory of the run.
      checkpoint: `"latest"`, or `"best"` for the one with the lowest validation -ELBO.

    Raises:
      FileNotFoundError: No run was started there, or it has no such checkpoint yet.
      ValueError: Configuration or checkpoint do not fit this version, or the word is another one.
    """
    return TrainedModel.of_run(Workdir(workdir), checkpoint).load()


def _load_checkpoint(config: ExperimentConfig, prefix: str, precision: str) -> NVAE:
    reader = CheckpointReader(prefix)
    model = NVAE(config.model, dtype=precision)
    reader.check_layout(model.variables)
    weights = AVERAGE if reader.has_part(AVERAGE) else MODEL
    names = {f"{MODEL}/{v.path}" for v in model.variables}
    names |= {f"{weights}/{v.path}" for v in model.trainable_variables}
    reader.check_names(sorted(names), {MODEL, weights})
    for variable in model.variables:
        part = weights if variable.trainable else MODEL
        variable.assign(reader.read(f"{part}/{variable.path}"))
    return model


def save_weights(model: NVAE, workdir: Workdir) -> None:
    """Saves weights and moving averages alone: the state before a run's first step.

    Args:
      model: The model whose weights they are.
      workdir: The directory of the run, which must not have started yet.
    """
    values = {f"{MODEL}/{path}": value for path, value in read_values(model.variables).items()}
    write_checkpoint(workdir.checkpoints, 0, model.variables, values, keep=1)
