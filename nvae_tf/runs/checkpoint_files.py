"""Files of checkpoints: values by name, in TensorFlow's own format.

A name is that of a part of the state and the path of the variable that the value belongs to, such
as `model/stem/kernel` or `momentum/stem/kernel`. `tf.train.load_checkpoint` reads the files.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

MODEL, AVERAGE = "model", "average"  # the parts that a model can be loaded from
_LAYOUT = "layout"
_INDEX = re.compile(r"ckpt-(\d+)\.index")
_DATA = re.compile(r"ckpt-(\d+)\.data-.*")
# What TensorFlow leaves behind when it is killed while it saves.
_LEFTOVERS = ("*_temp", "*.tempstate*")


def checkpoint_step(prefix: str | None) -> int:
    """Returns the step after which a checkpoint was saved, by its path; 0 for None."""
    return int(prefix.rpartition("-")[2]) if prefix else 0


def checkpoints(directory: str) -> list[str]:
    """Returns the path prefixes of a directory's checkpoints, by rising step."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    steps = sorted(int(match[1]) for name in names if (match := _INDEX.fullmatch(name)))
    return [os.path.join(directory, f"ckpt-{step}") for step in steps]


def newest_checkpoint(directory: str) -> str | None:
    """Returns the path prefix of the checkpoint with the largest step, or None."""
    return next(reversed(checkpoints(directory)), None)


def layout(variables: Sequence[keras.Variable]) -> list[str]:
    """Returns a line for each variable of a model, in the order of construction: path and shape."""
    return [f"{variable.path} {tuple(variable.shape)}" for variable in variables]


def write_checkpoint(
    directory: str,
    step: int,
    variables: Sequence[keras.Variable],
    items: Mapping[str, tf.Tensor],
    keep: int,
) -> None:
    """Writes a checkpoint, whole or not at all, and then removes those that are not kept.

    The older ones go, and those of later steps: a run that writes this one has taken them back.

    Args:
      directory: Where it goes; created if need be.
      step: The number of steps done.
      variables: The model's variables, whose layout is written as well.
      items: The values by name.
      keep: How many checkpoints stay, this one included.

    Raises:
      OSError: The file system refuses; earlier checkpoints stay as they are.
    """
    os.makedirs(directory, exist_ok=True)
    prefix = os.path.join(directory, f"ckpt-{step}")
    temporary = f"{prefix}.tempstate"
    named = {_LAYOUT: tf.constant(layout(variables)), **items}
    try:
        with tf.device("/cpu:0"):
            tf.raw_ops.SaveV2(
                prefix=temporary,
                tensor_names=list(named),
                shape_and_slices=[""] * len(named),
                tensors=list(named.values()),
            )
    except tf.errors.OpError as error:  # whatever TensorFlow makes of the system's error
        raise OSError(
            f"Cannot write the checkpoint {prefix!r}; earlier ones are intact. {error.message}"
        ) from error
    # First the old index, which must not point into the data of another save. Data without an index
    # is seen as a checkpoint that was damaged, and no run starts anew beside it.
    if os.path.exists(f"{prefix}.index"):
        os.remove(f"{prefix}.index")
    for suffix in (".data-00000-of-00001", ".index"):
        os.replace(temporary + suffix, prefix + suffix)
    others = checkpoints(directory)
    kept = [other for other in others if checkpoint_step(other) <= step][-keep:]
    for other in others:
        if other not in kept:
            _remove(other)


def _remove(prefix: str) -> None:
    for pattern in (".index", ".data-*"):
        for path in glob.glob(glob.escape(prefix) + pattern):
            os.remove(path)


def clear_leftovers(directory: str) -> None:
    """Removes what a save that was killed left in a directory of checkpoints."""
    for pattern in _LEFTOVERS:
        for path in glob.glob(os.path.join(glob.escape(directory), pattern)):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def without_index(directory: str) -> list[str]:
    """Returns the path prefixes of a directory's checkpoints of which only the data is there."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    found = sorted({int(match[1]) for name in names if (match := _DATA.fullmatch(name))})
    prefixes = [os.path.join(directory, f"ckpt-{step}") for step in found]
    return [prefix for prefix in prefixes if not os.path.exists(f"{prefix}.index")]


def set_aside(prefix: str) -> None:
    """Renames a damaged checkpoint's files, so that nothing takes it for one that can be read."""
    directory, name = os.path.split(prefix)
    for path in glob.glob(glob.escape(prefix) + ".*"):
        os.replace(path, os.path.join(directory, f"damaged-{name}{path.removeprefix(prefix)}"))


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files are not whole, or not there."""


class CheckpointReader:
    """Reads values by name out of a checkpoint.

    Args:
      prefix: The path prefix of the checkpoint's files.

    Raises:
      DamagedCheckpointError: The files are not whole, or gone; `read` raises it as well.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        if not os.path.exists(f"{prefix}.index"):  # since it was found
            raise DamagedCheckpointError(
                f"The checkpoint {prefix!r} is not there any more: a run that goes on keeps only "
                "the newest ones. The same command takes one of those."
            )
        with self._damage():
            self._reader = tf.train.load_checkpoint(prefix)
            self._shapes = self._reader.get_variable_to_shape_map()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (tf.errors.OpError, RuntimeError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedCheckpointError(
                f"The checkpoint {self.prefix!r} is damaged: {reason}."
            ) from error

    def has_part(self, part: str) -> bool:
        """Returns whether there are values of a part of the state, such as `"average"`."""
        return any(name.startswith(f"{part}/") for name in self._shapes)

    def read(self, name: str) -> np.ndarray:
        """Reads the value of that name."""
        with self._damage():
            return self._reader.get_tensor(name)

    def check_names(self, expected: Iterable[str], parts: Iterable[str]) -> None:
        """Checks that all values are there, and that these parts of the state have no others.

        Raises:
          ValueError: The message names the first one that is missing or superfluous.
        """
        expected = dict.fromkeys(expected)
        for name in expected:
            if name not in self._shapes:
                raise ValueError(f"The checkpoint {self.prefix!r} does not fit: it lacks {name}.")
        beginnings = tuple(f"{part}/" for part in parts)
        for name in sorted(self._shapes):
            if name.startswith(beginnings) and name not in expected:
                raise ValueError(
                    f"The checkpoint {self.prefix!r} does not fit: it also has {name}."
                )

    def check_layout(self, variables: Sequence[keras.Variable]) -> None:
        """Compares the layout of the checkpoint's model with that of another one.

        Layers that were renamed, added, removed or reordered make another model, even where their
        shapes agree.

        Raises:
          ValueError: They differ. The message names the first variable that does.
        """
        if _LAYOUT not in self._shapes:
            raise ValueError(
                f"The checkpoint {self.prefix!r} does not say of which model it is: this version "
                "of nvae-tf has not written it."
            )
        theirs = [line.decode() for line in self.read(_LAYOUT)]
        ours = layout(variables)
        for number, (a, b) in enumerate(zip(theirs, ours)):
            if a != b:
                raise ValueError(
                    f"The checkpoint {self.prefix!r} does not hold this model: its variable "
                    f"{number} is {a}, that of this model {b}."
                )
        if len(theirs) != len(ours):
            longer = max(theirs, ours, key=len)
            name = "checkpoint" if longer is theirs else "model"
            raise ValueError(
                f"The checkpoint {self.prefix!r} does not hold this model: it has {len(theirs)} "
                f"variables instead of {len(ours)}. The first that only the {name} has is "
                f"{longer[min(len(theirs), len(ours))]}."
            )
