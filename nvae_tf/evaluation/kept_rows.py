"""The bounds of images, which a long computation keeps so that another can go on after them."""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
from absl import logging

from nvae_tf.files import read_arrays, write_arrays


class NotFiniteError(ValueError):
    """Bounds are not finite, so the weights of the model are of no use."""


class KeptRows:
    """Arrays with a row for each image, which grow batch by batch and are kept in a file.

    Whoever stops after hours, or is stopped, makes another object with the same path, which has all
    rows but those of the last minute. Work that takes less than a minute writes nothing.

    Args:
      path: Path of the file. It names what the rows depend on, say by a hash. None: they are in
        memory only.
      seconds: The time between two writings.
    """

    def __init__(self, path: str | os.PathLike | None = None, seconds: float = 60.0):
        self._path = path
        self._seconds = seconds
        self._batches: list[tuple[np.ndarray, ...]] = []
        kept = read_arrays(path) if path else None
        if kept:
            self._batches.append(tuple(kept[str(number)] for number in range(len(kept))))
        self._written = time.monotonic()

    @property
    def count(self) -> int:
        """The number of images whose rows there are, which are the first ones."""
        return sum(len(arrays[0]) for arrays in self._batches)

    def add(self, arrays: tuple[np.ndarray, ...]) -> None:
        """Takes the rows of the next batch, in as many arrays as the ones before.

        Rows that cannot be written are no reason to end what computes them: this is logged, once,
        and they stay in memory.

        Raises:
          NotFiniteError: A number is not finite. The batch is not taken.
        """
        count = len(arrays[0])
        finite = [np.isfinite(array).reshape(count, -1).all(axis=1) for array in arrays]
        wrong = count - int(np.sum(np.all(finite, axis=0)))
        if wrong:
            raise NotFiniteError(
                f"The bounds of {wrong} of {count} images are not finite: the weights of this "
                "model are of no use."
            )
        self._batches.append(arrays)
        if time.monotonic() - self._written >= self._seconds:
            try:
                self.write()
            except OSError as error:
                logging.warning("An evaluation that is stopped will begin again: %s", error)
                self._path = None

    def all(self) -> tuple[np.ndarray, ...]:
        """Returns the arrays with the rows of all batches.

        Raises:
          ValueError: There are none.
        """
        if not self._batches:
            raise ValueError("There are no images to evaluate.")
        return tuple(map(np.concatenate, zip(*self._batches, strict=True)))

    def write(self) -> None:
        """Writes all rows, if there is a path.

        Raises:
          OSError: The file cannot be written.
        """
        if self._path:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            arrays = {str(number): array for number, array in enumerate(self.all())}
            write_arrays(self._path, arrays)
            self._written = time.monotonic()

    def remove(self) -> None:
        """Removes the file, if there is one, once the results are elsewhere."""
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path)
