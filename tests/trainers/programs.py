"""Programs in processes of their own, which need not import TensorFlow again: it takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile
import warnings

import numpy as np
import tensorflow as tf

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tensorflow", "tensorflow_probability", "keras"])


def _filters() -> list[tuple]:
    """The filters of warnings, which pytest has set, as arguments of `warnings.filterwarnings`."""
    return [
        (
            action,
            getattr(message, "pattern", message) or "",
            category,
            getattr(module, "pattern", module) or "",
            line,
        )
        for action, message, category, module, line in warnings.filters
    ]


def _run(
    module: str, arguments: list[str], directory: str, filters: list[tuple], place: str | None
) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    if place:
        os.chdir(place)
    warnings.resetwarnings()
    for values in reversed(filters):
        warnings.filterwarnings(*values)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Program:
    """`python -m module arguments`, started.

    Args:
      module: Name of the program.
      arguments: Its arguments.
      place: The directory in which it runs; None: this process's.

    Attributes:
      returncode: of the process, after `communicate`.
    """

    def __init__(self, module: str, *arguments: object, place: str | None = None):
        self._directory = tempfile.TemporaryDirectory()
        self._process = _processes.Process(
            target=_run,
            args=(module, list(map(str, arguments)), self._directory.name, _filters(), place),
        )
        self._process.start()
        self.returncode: int | None = None

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits for the end; returns standard output and standard error."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s")
        self.returncode = self._process.exitcode
        directory = pathlib.Path(self._directory.name)
        out, err = ((directory / name).read_text() for name in ("out", "err"))
        self._directory.cleanup()
        return out, err


def run(module: str, *arguments: object, returncode: int = 0) -> str:
    """The standard output of a program that must end with that code."""
    program = Program(module, *arguments)
    out, err = program.communicate()
    assert program.returncode == returncode, err
    return out


def start(module: str, *arguments: object) -> Program:
    """Starts one of the trainers' programs."""
    return Program(f"trainers.{module}", *arguments)


def finish(program: Program) -> str:
    """The standard output of a started program, which must end well."""
    out, err = program.communicate()
    assert program.returncode == 0, err
    return out


def decode(path: pathlib.Path) -> np.ndarray:
    """The pixels of a PNG file, (h, w, C) uint8."""
    return tf.io.decode_png(path.read_bytes()).numpy()
