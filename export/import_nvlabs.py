"""Makes a workdir from a checkpoint of the paper's own release.

`python -m export.import_nvlabs --checkpoint=F.pt --workdir=DIR`; evaluate, sample, export and train
then work on it as on a run of our own.
"""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf
from absl import app, flags, logging

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig
from nvae_tf.model import NVAE
from nvae_tf.nvlabs import load_checkpoint
from nvae_tf.optimizer import AdaMax
from nvae_tf.regularization import Regularizer
from nvae_tf.workdir import Workdir
from trainers.checkpoints import make_checkpoint
from trainers.programs import usage_errors, use_devices

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The .pt file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory to create.", required=True)
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "Where data, optimiser and training settings come from; default: by shape and likelihood.",
)


def import_checkpoint(path: str, workdir: Workdir, preset: str | None = None) -> NVAE:
    """Loads a checkpoint and writes it as a run that has made no step yet.

    Raises:
      ValueError: if the workdir holds a run, or for what `nvlabs.load_checkpoint` refuses.
    """
    if workdir.has_config:
        raise ValueError(f"{workdir.path!r} holds a run already. Choose another --workdir.")
    base = presets.get(preset) if preset else None
    model = load_checkpoint(path)
    config = dataclasses.replace(base or _nearest_preset(model), model=model.config)
    checkpoint = make_checkpoint(
        model, AdaMax(model.trainable_variables, config.optimizer), Regularizer(model)
    )
    os.makedirs(workdir.checkpoints, exist_ok=True)
    tf.train.CheckpointManager(checkpoint, workdir.checkpoints, max_to_keep=1).save(0)
    workdir.write_config(config)  # last, for it makes the directory a run
    return model


def _nearest_preset(model: NVAE) -> ExperimentConfig:
    """The first of the paper's presets with images of the same shape and likelihood."""
    wanted = model.config.image_shape, model.config.likelihood
    for name in presets.names():
        config = presets.get(name)
        if name != "quickstart" and (config.model.image_shape, config.model.likelihood) == wanted:
            return config
    return ExperimentConfig()


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        use_devices()
        logging.set_verbosity(logging.WARNING)
        workdir = Workdir(_WORKDIR.value)
        model = import_checkpoint(_CHECKPOINT.value, workdir, _PRESET.value)
    print(
        f"{model.num_trainable_parameters:,} parameters in {model.config.num_groups} groups: "
        f"{workdir.path}"
    )


def run() -> None:
    """Entry point of `nvae-import-nvlabs`."""
    app.run(main)


if __name__ == "__main__":
    run()
