"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
import types
from typing import Any

# The exit status of a run that a signal has stopped and that the same command continues. It is not
# 0, so no later command of a script takes the run for a finished one.
STOPPED = os.EX_TEMPFAIL
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def handled() -> list[signal.Signals]:
    """Returns the signals that ask a run to stop: those that are not ignored, as by `nohup`.

    Python handles signals in its main thread only, so in another one there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


class Stopped(Exception):
    """What was going on was cut short by a signal."""


class StopRequest:
    """A scope in which signals set `name` instead of ending the process.

    They are SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C, of which `handled` says which count.

    Slurm announces the end of a job's time by the signal of its user's choice, often SIGUSR1. A
    terminal that is closed, or its connection lost, sends SIGHUP.

    The run looks at `name` after each step, so it can save its state before it ends.

    Attributes:
      name: Name of the signal that arrived, such as `"SIGTERM"`, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._outer: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in handled():
            self._outer[number] = signal.signal(number, self._handle)
        return self

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived."""
        if self.name:
            raise Stopped(self.name)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        if signal.SIGINT in self._outer:  # the second Ctrl-C stops at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._outer.items():
            signal.signal(number, handler)
