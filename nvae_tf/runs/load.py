"""Models out of the checkpoints of runs."""

from __future__ import annotations

import os

from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import read_values
from nvae_tf.runs.checkpoint_files import AVERAGE, MODEL, CheckpointReader, write_checkpoint
from nvae_tf.runs.workdir import Workdir


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
    directory = Workdir(workdir)
    config = directory.read_config()
    prefix = directory.checkpoint(checkpoint)
    if prefix is None:
        raise FileNotFoundError(
            f"The run in {directory.path!r} has no {checkpoint} checkpoint yet."
        )
    reader = CheckpointReader(prefix)
    model = NVAE(config.model)
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
