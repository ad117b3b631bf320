"""Turns what `train_compiled_step` wrote into a workdir, which all programs read.

`python -m benchmarks.read_compiled_state --steps=steps/a --trained=trained/a --workdir=runs/a`

The workdir has the weights that evaluations use, the average of those of the last steps. It is a
finished run of as many steps: to go on training, start a new one with `nvae-train --init_from`.
"""

from __future__ import annotations

import json
import os

import numpy as np
from absl import app, flags

from benchmarks.step_modules import description
from nvae_tf.command_line import usage_errors, use_devices
from nvae_tf.config import ExperimentConfig
from nvae_tf.data import describe, load_images
from nvae_tf.files import read_text
from nvae_tf.runs.workdir import Workdir
from trainers.run.checkpoints import Checkpointer
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

_STEPS = flags.DEFINE_string("steps", None, "What `compiled_step` wrote.", required=True)
_TRAINED = flags.DEFINE_string("trained", None, "What `train_compiled_step` wrote.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the new run.", required=True)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        facts = json.loads(read_text(os.path.join(_STEPS.value, "facts.json")))
        config = ExperimentConfig.from_json(json.dumps(facts["config"]))
        with np.load(os.path.join(_TRAINED.value, "weights.npz")) as arrays:
            weights = dict(arrays)
        done = int(weights.pop("steps"))
        config = config.override({"train.jit_compile": "none", "train.steps": done})
        workdir = Workdir(_WORKDIR.value)
        if workdir.has_config:
            raise ValueError(f"{workdir.path!r} holds a run already.")
        use_devices(training=True)
        splits = (config.data.train_split, config.data.test_split)
        images = {split: load_images(config.data, config.model, split) for split in splits}
    trainer = Trainer(config, make_strategy("one_device"), len(images[splits[0]]))
    state = trainer.state
    with usage_errors():
        ours = [description(variable)[:3] for variable in state.variables]
        if ours != [fields[:3] for fields in facts["variables"]]:
            raise ValueError(
                f"The steps in {_STEPS.value!r} have other variables than this version's training: "
                "read their state with the version that wrote them."
            )
    for number, variable in enumerate(state.variables):
        if str(number) in weights:
            variable.assign(weights[str(number)])
    state.step.assign(done)
    if state.average:
        state.weights.assign(state.average.values())
    Checkpointer(trainer, workdir).save()
    workdir.write_images({split: describe(images[split]) for split in splits})
    workdir.write_config(config)  # last: it makes a run of the directory
    print(f"{workdir.path}: {done} steps")


if __name__ == "__main__":
    app.run(main)
