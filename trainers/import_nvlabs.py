"""Makes a workdir from a checkpoint of the paper's released code. See docs/importing.md.

After `nvae-import-nvlabs --checkpoint=F.pt --workdir=DIR` all other programs accept the workdir.
"""

from __future__ import annotations

import dataclasses

from absl import app, flags

from nvae_tf import presets
from nvae_tf.command_line import log_warnings_only, usage_errors, use_devices
from nvae_tf.config import ExperimentConfig, ModelConfig
from nvae_tf.files import new_directory
from nvae_tf.model.nvae import NVAE
from nvae_tf.nvlabs import load_checkpoint
from nvae_tf.runs.load import save_weights
from nvae_tf.runs.workdir import Workdir

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Checkpoint of the released code, a .pt file.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory to create.", required=True)
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "Preset for the data, optimiser and training settings; default: a preset with the same image "
    "shape and likelihood.",
)


def import_checkpoint(path: str, workdir: Workdir, preset: str | None = None) -> NVAE:
    """Loads a checkpoint, and writes a workdir with its weights at step 0.

    Raises:
      ValueError: if the workdir exists and is not empty, if `nvlabs.load_checkpoint` does not
        accept the checkpoint, or if the preset is for other images.
    """
    base = presets.get(preset) if preset else None
    with new_directory(workdir.path) as directory:
        model = load_checkpoint(path)
        if base and _images_of(base.model) != _images_of(model.config):
            raise ValueError(
                "The checkpoint's image_shape and likelihood are {} and {}, those of the preset "
                "{} are {} and {}.".format(
                    *_images_of(model.config), preset, *_images_of(base.model)
                )
            )
        config = dataclasses.replace(base or _nearest_preset(model), model=model.config)
        save_weights(model, Workdir(directory))
        Workdir(directory).write_config(config)
    return model


def _nearest_preset(model: NVAE) -> ExperimentConfig:
    """Returns the paper's preset with the model's image shape and likelihood, or the defaults."""
    for name in presets.paper_names():
        config = presets.get(name)
        if _images_of(config.model) == _images_of(model.config):
            return config
    return ExperimentConfig()


def _images_of(config: ModelConfig) -> tuple[tuple[int, ...], str]:
    """Returns what a preset and a model must share."""
    return config.image_shape, config.likelihood


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        use_devices()
        log_warnings_only()
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
