"""One process for each GPU of this machine, started by the program itself.

Each process is a worker of a cluster on localhost, which traces and feeds one replica. Together
they do what `MultiWorkerMirroredStrategy` does on several machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from trainers.run.signals import STOPPED, handled
from trainers.run.strategies import check_devices

_PATIENCE = 30.0  # seconds that the others have to end after one has failed
_POLL = 0.2  # seconds


def check_launch(number: int, config: ExperimentConfig) -> None:
    """Checks that so many processes can compute a run together.

    Raises:
      ValueError: There are fewer GPUs, this process is a worker already, or the configuration asks
        for something else.
    """
    if os.environ.get("TF_CONFIG"):
        raise ValueError(
            "TF_CONFIG is set, so this process is one of several workers already; --processes "
            "starts all workers of one machine."
        )
    if config.train.strategy not in ("auto", "multi_worker"):
        raise ValueError(
            f"--processes={number} needs train.strategy auto, received {config.train.strategy}."
        )
    check_devices(config.train, number)
    gpus = len(tf.config.list_physical_devices("GPU"))
    if 0 < gpus < number:
        raise ValueError(f"--processes={number} needs as many GPUs, but there are {gpus}.")


def launch(number: int, command: Sequence[str]) -> int:
    """Runs a command once for each worker, and waits for all of them.

    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C reach every worker. When one fails, the others are stopped.
    What workers other than the first write to standard error is shown only of the one that failed
    first.

    Args:
      number: The number of workers.
      command: Program and arguments.

    Returns:
      The exit code of the worker that failed first. If none failed, `STOPPED` if a worker was
      stopped, or else 0.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(number)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # empty: none
    gpus = list(map(str, range(number))) if visible is None else visible.split(",")
    with contextlib.ExitStack() as scope:
        errors = [scope.enter_context(tempfile.TemporaryFile()) for _ in range(number)]
        workers: list[subprocess.Popen] = []
        check = scope.enter_context(_forwarding(workers, number))
        scope.callback(_kill, workers)  # those that are left, if not all of them could be started
        for index in range(number):
            cluster = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            own = {
                "TF_CONFIG": json.dumps(cluster),
                "CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)],
            }
            workers.append(
                subprocess.Popen(
                    command,
                    env=os.environ | own,
                    stderr=errors[index] if index else _terminal(),
                    start_new_session=True,  # Ctrl-C comes from here, once
                )
            )
            check()
        failed = _wait(workers)
        if failed is None:
            return STOPPED if any(worker.returncode for worker in workers) else 0
        if failed:  # the first worker's errors are visible already
            _show(errors[failed])
        code = workers[failed].returncode
        return code if code > 0 else 128 - code  # as shells say that a signal has ended it


def _terminal() -> IO[str] | None:
    """Returns Python's standard error, which a console script has apart from the process's own."""
    try:
        sys.stderr.fileno()
    except OSError:  # it is no file, so a process cannot have it
        return None
    return sys.stderr


def free_ports(number: int) -> list[int]:
    """Returns ports of localhost on which nothing listens at this moment."""
    with contextlib.ExitStack() as scope:
        sockets = [scope.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _forwarding(workers: Sequence[subprocess.Popen], count: int) -> Iterator[Callable[[], None]]:
    """Sends the signals that stop a run on to all workers, once so many have started.

    Yields:
      A function that exits if there was a signal before: nothing has begun that could be saved.
    """
    early: list[int] = []

    def check() -> None:
        if early:
            raise SystemExit(128 + early[0])

    def send(number: int, frame: object) -> None:
        del frame
        if len(workers) < count:
            early.append(number)  # an exception here could lose the process that is being started
            return
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, send) for number in handled()}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen]) -> int | None:
    """Waits for all workers; returns the number of the one that failed first, or None.

    A worker that was stopped has not failed: the others have all the time that they need.
    """
    first: int | None = None
    deadline = float("inf")
    while True:
        codes = [worker.poll() for worker in workers]
        failures = [index for index, code in enumerate(codes) if code and code != STOPPED]
        if first is None and failures:
            first = failures[0]
            deadline = time.monotonic() + _PATIENCE
        if None not in codes:
            return first
        if time.monotonic() > deadline:  # they wait for one that is gone
            _kill(workers)
        time.sleep(_POLL)


def _kill(workers: Sequence[subprocess.Popen]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()


def _show(file: IO[bytes]) -> None:
    file.seek(0)
    sys.stderr.write(file.read().decode(errors="replace"))
