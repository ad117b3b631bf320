"""Traces of training steps with TensorFlow's profiler."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf


class StepRange(NamedTuple):
    """A range of step numbers, which begin at 1; both ends are included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> StepRange:
        """Reads a text such as `"100:110"`.

        Raises:
          ValueError: if the text has another form, or the last step precedes the first.
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
    """A trace of a range of steps, which TensorBoard's profile plugin shows.

    Args:
      directory: Directory of the run's event files.
      steps: The steps to trace; with None, none is traced.
    """

    def __init__(self, directory: str, steps: StepRange | None):
        self._directory = directory
        self._steps = steps
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Opens the scope of a step.

        The trace begins with the first step of the range, and is written after the last one.
        """
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
        """Writes an unfinished trace; does nothing if there is none."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
