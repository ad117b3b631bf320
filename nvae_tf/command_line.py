"""What the programs have in common: how they report wrong usage, and how they use the devices."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
from absl import flags

from nvae_tf.runs.workdir import CHECKPOINTS


def define_checkpoint_flag() -> flags.FlagHolder[str]:
    """`--checkpoint`: which of a run's checkpoints to use."""
    return flags.DEFINE_enum(
        "checkpoint", "latest", CHECKPOINTS, "Of the run; best is by the validation -ELBO."
    )


def check_flags_of_mode(mode: str, flags_of_mode: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError for flags that were given, and that the mode has no use for.

    Args:
      mode: that was chosen.
      flags_of_mode: for each mode, the names of the flags that it uses, among those that not all
        modes do.
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
    """Turns errors that a user can mend into one line on stderr and exit code 1.

    Args:
      argv: what absl left over; anything beyond the program's name is an error too.
    """
    if len(argv) > 1:
        sys.exit(f"Error: unexpected argument {argv[1]!r}; options look like --name=value.")
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        sys.exit(f"Error: {message}")


def use_devices() -> None:
    """Settings of TensorFlow that suit the devices of this machine; call before any computation."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        # On CPUs Grappler takes longer than building the graph, and gains nothing in the step.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
