"""Trains an NVAE: `nvae-train --preset=quickstart --workdir=DIR`.

Every field of the configuration has a flag, such as `--config.model.num_latent_scales=3`. The same
command continues a run that was interrupted, from its newest checkpoint.
"""

from __future__ import annotations

import sys

from absl import app, flags

from nvae_tf import presets
from nvae_tf.command_line import (
    config_changes,
    define_config_flag,
    log_warnings_only,
    usage_errors,
    use_devices,
)
from nvae_tf.config import ExperimentConfig
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from trainers.run.experiment import train
from trainers.run.launch import check_launch, launch
from trainers.run.signals import STOPPED
from trainers.run.step_profile import StepRange
from trainers.run.trainer import DivergedError

_PRESET = flags.DEFINE_string(
    "preset", None, f"Configuration to start from: {', '.join(presets.names())}."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_LIST_PRESETS = flags.DEFINE_bool("list_presets", False, "Print the presets, and end.")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "Steps to trace for TensorBoard's profiler, such as 100:110."
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Trained model whose weights a new run starts with, and without --preset its configuration: a "
    "preset with weights, its directory, or a workdir.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes",
    None,
    "Number of processes to start on this machine, each with a GPU of its own, in place of one "
    "process for all GPUs.",
    lower_bound=1,
)


def requested_config(workdir: Workdir) -> ExperimentConfig:
    """Returns the configuration that the flags change.

    It is that of the preset; without one, the workdir's; in a new workdir, that of the model whose
    weights a run starts with.

    Raises:
      ValueError: if the preset is unknown, a value is not allowed, or nothing says what to train.
    """
    if _PRESET.value is not None:
        base = presets.get(_PRESET.value)
    elif workdir.has_config:
        base = workdir.read_config()
    elif _INIT_FROM.value:
        base = TrainedModel.of(_INIT_FROM.value).config
    else:
        raise ValueError(
            f"{workdir.path!r} holds no run yet: --preset must say what to train "
            f"({', '.join(presets.names())})."
        )
    return config_changes(base)


def main(argv: list[str]) -> None:
    if _LIST_PRESETS.value:
        width = max(map(len, presets.names()))
        for name in presets.names():
            print(f"{name:{width}} {presets.description(name)}")
        return
    with usage_errors(argv):
        if not _WORKDIR.value:
            raise ValueError("--workdir must say where the run goes, or is.")
        workdir = Workdir(_WORKDIR.value)
        config = requested_config(workdir)
        steps = StepRange.parse(_PROFILE_STEPS.value) if _PROFILE_STEPS.value else None
        init_from = None
        if _INIT_FROM.value and workdir.latest_checkpoint():
            workdir.check_initial_weights(_INIT_FROM.value)  # by name, for they may be gone by now
        elif _INIT_FROM.value:
            init_from = TrainedModel.of(_INIT_FROM.value)
        if _PROCESSES.value and _PROCESSES.value > 1:
            check_launch(_PROCESSES.value, config)
            # The last value of a flag counts: these processes start no others.
            sys.exit(launch(_PROCESSES.value, [*sys.orig_argv, "--processes=1"]))
        use_devices(training=True)
        log_warnings_only()
        try:
            if not train(config, workdir, steps, init_from):
                sys.exit(STOPPED)
        except DivergedError as error:
            sys.exit(f"Error: {error}")


def run() -> None:
    """Entry point of `nvae-train`."""
    define_config_flag(
        "Changes to the fields of the preset, or of the run. Defaults are those of fields that the "
        "preset does not set."
    )
    app.run(main)


if __name__ == "__main__":
    run()
