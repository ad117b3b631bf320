"""The `run_fn` of TFX's Trainer, which trains on a pipeline's tf.Examples. See docs/tfx.md.

A pipeline uses it as `Trainer(run_fn="trainers.tfx_module.run_fn", custom_config={"preset": ...})`.
This module does not import TFX: `run_fn` accepts any object with the attributes of `FnArgs`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

# TFX imports tensorflow_transform, which selects Keras 2 for the whole process. TensorFlow reads
# the variable late, so setting it here works even if TFX was imported before.
os.environ["TF_USE_LEGACY_KERAS"] = "0"

from export.manifest import manifest_of
from export.saved_model import write_saved_model
from nvae_tf import presets
from nvae_tf.command_line import use_devices
from nvae_tf.config import ExperimentConfig
from nvae_tf.files import check_new_directory, new_directory
from nvae_tf.runs.checkpoint_files import checkpoint_step
from nvae_tf.runs.load import TrainedModel, save_weights
from nvae_tf.runs.workdir import Workdir
from trainers.run.experiment import train
from trainers.tfx.examples import DataAccessor, copy_images
from trainers.tfx.places import local_directory

TRAIN_SPLIT, EVAL_SPLIT = "train", "eval"
_CUSTOM_KEYS = ("preset", "overrides")
_TFX_KEYS = "ai_platform_"  # prefix of the keys that TFX's own runners put into custom_config
_TUNER_KEYS = "tuner/"  # prefix of the keys that Keras Tuner's Hyperband adds to the values
_FROM_PIPELINE = (
    "data.name",
    "data.data_dir",
    "data.train_split",
    "data.test_split",
    "data.test_fraction",
    "data.split_seed",
)
_RUN = "Run"  # directory beside Format-Serving, in the Model artifact


class FnArgs(Protocol):
    """The attributes of `tfx.components.FnArgs` that this module uses.

    Attributes:
      train_files: Patterns of the paths of the training examples.
      eval_files: Patterns of the paths of the evaluation examples.
      data_accessor: Opens them.
      train_steps: Length of the run; None: the configuration's.
      eval_steps: Batches of `train.global_batch_size` to evaluate; None: all images.
      model_run_dir: Where the run's workdir is made.
      serving_model_dir: Where the SavedModel is written.
      base_model: Model whose weights the run starts with, or None.
      hyperparameters: What a tuner found: under `values`, values by dotted field name; or None.
      custom_config: What to train: `preset`, and in `overrides` values by dotted field name.
    """

    train_files: Sequence[str]
    eval_files: Sequence[str]
    data_accessor: DataAccessor
    train_steps: int | None
    eval_steps: int | None
    model_run_dir: str
    serving_model_dir: str
    base_model: str | None
    hyperparameters: dict[str, Any] | None
    custom_config: dict[str, Any] | None


def run_fn(fn_args: FnArgs) -> None:
    """Trains on the pipeline's examples, and exports a SavedModel.

    `model_run_dir` becomes the run's workdir, which all programs of this package accept: it holds
    the configuration, checkpoints, TensorBoard files, `evaluation.json` and, in `examples`, a copy
    of the images. `serving_model_dir` becomes a SavedModel with all signatures and with the
    evaluation in its manifest. The directory `Run` beside it holds the configuration and the
    weights, from which a later training can start.

    Raises:
      ValueError: if the configuration is not allowed, the base model does not fit or
        `serving_model_dir` is not empty (raised before anything is written), or the images do not
        fit (raised before the training).
      FileNotFoundError: if `base_model` was not trained by this function.
      RuntimeError: if a signal stopped the training. Nothing is exported then.
    """
    run_dir = local_directory("model_run_dir", fn_args.model_run_dir)
    serving_dir = local_directory("serving_model_dir", fn_args.serving_model_dir)
    check_new_directory(serving_dir)
    for name in ("train_files", "eval_files"):
        if not getattr(fn_args, name):
            raise ValueError(
                f"{name} is empty: the examples need a split to train on, and another."
            )
    workdir = Workdir(run_dir)
    config = requested_config(fn_args)
    base = _base_run(fn_args.base_model, config) if fn_args.base_model else None
    use_devices(training=True)
    _copy_examples(fn_args, config)
    if not train(config, workdir, init_from=base):
        step = checkpoint_step(workdir.latest_checkpoint())
        raise RuntimeError(f"The training was stopped after step {step}; nothing is exported.")
    _export(workdir, serving_dir)


def requested_config(fn_args: FnArgs) -> ExperimentConfig:
    """Returns the preset, changed by the overrides, the hyperparameters and the Trainer's steps.

    Later changes take precedence. The data set is the copy of the images that `run_fn` makes.

    Raises:
      ValueError: if a key, preset or field is unknown, or a value is not allowed.
    """
    custom = fn_args.custom_config or {}
    unknown = [key for key in custom if key not in _CUSTOM_KEYS and not key.startswith(_TFX_KEYS)]
    if unknown:
        raise ValueError(
            f"custom_config has the keys {' and '.join(_CUSTOM_KEYS)}, received "
            f"{', '.join(map(repr, unknown))}."
        )
    if "preset" not in custom:
        raise ValueError(
            "custom_config['preset'] must say what to train: " + ", ".join(presets.names()) + "."
        )
    config = presets.get(custom["preset"])
    overrides = _fields("custom_config['overrides']", custom.get("overrides"))
    tuned = _tuned(fn_args.hyperparameters)
    for name in (*overrides, *tuned):
        if name in _FROM_PIPELINE:
            raise ValueError(f"{name} cannot be overridden: the images come from the pipeline.")
    config = config.override(overrides).override(tuned)
    for name in ("train_steps", "eval_steps"):
        steps = getattr(fn_args, name)
        if steps is not None and steps < 1:
            raise ValueError(f"{name} must be at least 1, or None; received {steps}.")
    if fn_args.train_steps:
        config = config.override({"train.steps": fn_args.train_steps})
    return config.override(
        {
            "data.name": "tfrecord",
            "data.data_dir": os.path.join(
                local_directory("model_run_dir", fn_args.model_run_dir), "examples"
            ),
            "data.train_split": TRAIN_SPLIT,
            "data.test_split": EVAL_SPLIT,
        }
    )


def run_beside(saved_model: str) -> str:
    """Returns the directory where `run_fn` keeps the configuration and weights of a SavedModel."""
    return os.path.join(os.path.dirname(os.path.normpath(saved_model)), _RUN)


def _fields(where: str, values: Any) -> dict[str, Any]:
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(
            f"{where} must be a dictionary of dotted configuration fields, received {values!r}."
        )
    return values


def _tuned(hyperparameters: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the fields in a dictionary from `keras_tuner.HyperParameters.get_config`."""
    if hyperparameters is None:
        return {}
    if "values" not in hyperparameters:
        raise ValueError(
            "hyperparameters must have the key 'values', received "
            f"{', '.join(map(repr, hyperparameters)) or 'none'}."
        )
    values = _fields("hyperparameters['values']", hyperparameters["values"])
    return {name: value for name, value in values.items() if not name.startswith(_TUNER_KEYS)}


def _base_run(base_model: str, config: ExperimentConfig) -> TrainedModel:
    """Finds the weights of a base model.

    Args:
      base_model: A SavedModel that `run_fn` exported, as TFX passes it, or a workdir.
      config: The new run's configuration, whose model must be the same.
    """
    base_model = local_directory("base_model", base_model)
    places = (base_model, run_beside(base_model))
    for workdir in map(Workdir, places):
        if workdir.has_config:
            break
    else:
        raise FileNotFoundError(
            f"base_model {base_model!r} has no weights to start from: neither it nor {places[1]!r} "
            "is the workdir of a run. Only models that trainers.tfx_module trained have one."
        )
    trained = TrainedModel.of_run(workdir)
    trained.check_same_model(config)
    return trained


def _copy_examples(fn_args: FnArgs, config: ExperimentConfig) -> None:
    limit = fn_args.eval_steps and fn_args.eval_steps * config.train.global_batch_size
    for split, patterns, count in (
        (TRAIN_SPLIT, fn_args.train_files, None),
        (EVAL_SPLIT, fn_args.eval_files, limit),
    ):
        path = os.path.join(config.data.data_dir, f"{split}.tfrecord")
        copy_images(fn_args.data_accessor, patterns, config.data.feature, path, count)


def _export(workdir: Workdir, directory: str) -> None:
    trained = TrainedModel.of_run(workdir)
    model = trained.load()
    keep = Workdir(run_beside(directory))
    keep.write_config(trained.config)
    save_weights(model, keep)
    with new_directory(directory) as temporary:
        write_saved_model(model, temporary, manifest_of(trained))
