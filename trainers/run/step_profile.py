"""A trace of some steps by TensorFlow's profiler."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf


class StepRange(NamedTuple):
    """Steps by their numbers, which begin at 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> StepRange:
        """Reads `"100:110"`, both ends included.

        Raises:
          ValueError: for anything else, or if the last step comes before the first.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        steps = cls(*map(int, match.groups())) if match else None
        if not steps or not 1 <= steps.first <= steps.last:
            raise ValueError(
                "profile_steps must be FIRST:LAST, with 1 <= FIRST <= LAST; such as 100:110. "
                f"Received {text!r}."
            )
        return steps


class StepProfile:
    """Traces a range of a run's steps; TensorBoard's profile plugin shows them.

    Args:
      directory: of a run's event files.
      steps: to trace; None: no step is.
    """

    def __init__(self, directory: str, steps: StepRange | None):
        self._directory = directory
        self._steps = steps
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The scope of a step. The trace begins with the first and is written after the last."""
        steps = self._steps
        if not steps or not steps.first <= number <= steps.last:
            yield
            return
        if not self._running:
            tf.profiler.experimental.start(self._directory)
            self._running = True
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            yield
        if number == steps.last:
            self.close()

    def close(self) -> None:
        """Writes what was traced so far, if that has not been done."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
