"""Functions that all programs share: flags, one-line reports of wrong usage, device settings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
from absl import flags

from nvae_tf.runs.workdir import CHECKPOINTS


def define_checkpoint_flag() -> flags.FlagHolder[str]:
    """Defines the flag `--checkpoint`, which selects one of a run's checkpoints."""
    return flags.DEFINE_enum(
        "checkpoint",
        "latest",
        CHECKPOINTS,
        "Checkpoint of the run to use. The best one has the lowest validation -ELBO.",
    )


def check_flags_of_mode(mode: str, flags_of_mode: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError if a flag was given that the mode does not use.

    Args:
      mode: The mode that was chosen.
      flags_of_mode: For each mode, the names of the flags that it uses. Flags that all modes use
        are left out.
    """
    known = {name for names in flags_of_mode.values() for name in names}
    for name in sorted(known - set(flags_of_mode[mode])):
        if flags.FLAGS[name].present:
            raise ValueError(
                f"--mode={mode} has no use for --{name}, only for "
                f"--{', --'.join(flags_of_mode[mode])}."
            )


@contextlib.contextmanager
def usage_errors(argv: Sequence[str] = ()) -> Iterator[None]:
    """Turns errors that the user can correct into one line on stderr and exit code 1.

    Args:
      argv: The arguments that absl did not parse. Any beyond the program's name is an error.
    """
    if len(argv) > 1:
        sys.exit(f"Error: unexpected argument {argv[1]!r}; options look like --name=value.")
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        sys.exit(f"Error: {message}")


def use_devices(training: bool = False) -> None:
    """Configures TensorFlow for the devices of this machine, before any computation.

    Args:
      training: Whether the program trains.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    elif training:
        # On CPUs Grappler takes longer than building the graph, and gains nothing in the step. In
        # graphs that only answer it joins convolutions with their biases and activations.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
