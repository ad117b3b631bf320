"""Starts the programs as console scripts: their own lines on the terminal, TensorFlow's in a log.

TensorFlow's libraries write to standard error by themselves, whatever the log level is, from the
moment that they are loaded. So this module imports none of them: first it points the process's
standard error to a file, and Python's own to the terminal; then it imports the program.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import os
import platform
import signal
import sys
import tempfile
import types

_VERBOSE = "--verbose"  # shows the log instead
_INTERRUPTED = 130  # the exit code of shells' commands that Ctrl-C ended
_UNREAD = 141  # of those that SIGPIPE ended
# Their defaults end the process at once, and would leave half-written files.
_ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def _choose_kernels() -> None:
    """Makes TensorFlow use oneDNN's kernels on all x86 CPUs, unless the environment decides.

    By itself it does so only where a CPU has instructions for neural networks. Elsewhere steps take
    longer, and dilated and grouped convolutions have no gradients (docs/training.md).
    """
    if platform.machine() == "x86_64":
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _start(name: str) -> None:
    """Runs the program of a module, whose `run` is its entry point."""
    _choose_kernels()
    if sys.stderr is None:  # it was closed at the start
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if _VERBOSE in sys.argv:
        sys.argv.remove(_VERBOSE)
    else:
        _Log()
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        program = importlib.import_module(name)
        _adopt_help(program)
        try:
            program.run()
        finally:
            if sys.stdout:  # it may have been closed at the start
                sys.stdout.flush()
    except KeyboardInterrupt:  # training has stopped in order then; see trainers/run/signals.py
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # such as of `nvae-train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(_UNREAD)


class _Log:
    """The file that gets what TensorFlow writes; it stays only if the program fails unexpectedly.

    Attributes:
      path: Its path.
    """

    def __init__(self) -> None:
        file, self.path = tempfile.mkstemp(prefix="nvae-", suffix=".log")
        terminal = os.dup(2)
        os.dup2(file, 2)
        os.close(file)
        sys.stderr = open(  # noqa: SIM115 - it stays open as long as the process
            terminal, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1
        )
        faulthandler.enable(sys.stderr)  # a crash of TensorFlow's own has no Python exception
        self._hook = sys.excepthook
        self._keep = False
        sys.excepthook = self._report
        atexit.register(self._remove)

    def _report(
        self,
        kind: type[BaseException],
        error: BaseException,
        traceback: types.TracebackType | None,
    ) -> None:
        self._hook(kind, error, traceback)
        self._keep = True
        print(f"TensorFlow's log: {self.path}", file=sys.stderr)

    def _remove(self) -> None:
        if not self._keep and os.path.exists(self.path):
            os.remove(self.path)


def _adopt_help(program: types.ModuleType) -> None:
    """Makes --help show the program's flags and docstring, not those of the console script."""
    from absl import flags

    sys.modules["__main__"].__doc__ = program.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(program.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def train() -> None:
    """Entry point of `nvae-train`."""
    _start("trainers.train")


def evaluate() -> None:
    """Entry point of `nvae-evaluate`."""
    _start("trainers.evaluate")


def detect() -> None:
    """Entry point of `nvae-detect`."""
    _start("trainers.detect")


def sample() -> None:
    """Entry point of `nvae-sample`."""
    _start("trainers.sample")


def latents() -> None:
    """Entry point of `nvae-latents`."""
    _start("trainers.latents")


def projector() -> None:
    """Entry point of `nvae-projector`."""
    _start("trainers.projector")


def complete() -> None:
    """Entry point of `nvae-complete`."""
    _start("trainers.complete")


def model_card() -> None:
    """Entry point of `nvae-model-card`."""
    _start("trainers.model_card")


def save_preset() -> None:
    """Entry point of `nvae-save-preset`."""
    _start("trainers.save_preset")


def import_nvlabs() -> None:
    """Entry point of `nvae-import-nvlabs`."""
    _start("trainers.import_nvlabs")


def export() -> None:
    """Entry point of `nvae-export`."""
    _start("export.export_model")


def client() -> None:
    """Entry point of `nvae-client`."""
    _start("export.client")
