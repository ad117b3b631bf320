"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import types
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """A scope in which signals set `name` instead of ending the process.

    They are SIGTERM, SIGUSR1 and the first Ctrl-C.

    Slurm announces the end of a job's time by the signal of its user's choice, often SIGUSR1.

    The run looks at `name` after each step, so it can save its state before it ends.

    Attributes:
      name: Name of the signal that arrived, such as `"SIGTERM"`, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._outer: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._outer[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second Ctrl-C stops at once

    def __exit__(self, *error: object) -> None:
        for number, handler in self._outer.items():
            signal.signal(number, handler)
