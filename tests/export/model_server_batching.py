"""How the stand-in server merges requests: see `tests.export.model_server`."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import NamedTuple

import grpc
import numpy as np

Run = Callable[[list[np.ndarray]], list[np.ndarray]]


class Failure(Exception):
    """An answer with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """As in `export/serving/batching_parameters.txt`, whose values are the defaults."""

    max_batch_size: int = 32
    allowed_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    batch_timeout: float = 0.005  # seconds
    max_enqueued_batches: int = 100
    num_batch_threads: int = 4


class Merged(NamedTuple):
    """One batch that was computed."""

    signature: str
    requests: int
    rows: int  # of the requests
    padding: int  # dummy rows behind them


class _Task(NamedTuple):
    inputs: list[np.ndarray]
    rows: int
    outputs: Future[list[np.ndarray]]


@dataclasses.dataclass
class _Batch:
    opened: float
    tasks: list[_Task] = dataclasses.field(default_factory=list)
    rows: int = 0


class Batcher:
    """Merges tasks of the same key, which have the same inputs and the same computation.

    A batch is computed when the next task does not fit in any more, when it is full, or when its
    first task has waited for the timeout. It is filled up to an allowed size with copies of the
    first row of its last task.
    """

    def __init__(self, parameters: BatchingParameters):
        self.merged: list[Merged] = []
        self._parameters = parameters
        self._queues: dict[Hashable, tuple[str, Run, collections.deque[_Batch]]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self, key: Hashable, signature: str, inputs: list[np.ndarray], run: Run
    ) -> list[np.ndarray]:
        """The outputs for these inputs, once they have been computed in some batch.

        Raises:
          Failure: for inputs of different lengths or too many rows, a full queue, or whatever
            failed in the batch.
        """
        rows = _common_rows(inputs)
        limit = self._parameters.max_batch_size
        if rows > limit:
            raise Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {rows} is larger than maximum input batch size {limit}",
            )
        task = _Task(inputs, rows, Future())
        with self._changed:
            _, _, queue = self._queues.setdefault(key, (signature, run, collections.deque()))
            if not queue or queue[-1].rows + rows > limit:
                if len(queue) >= self._parameters.max_enqueued_batches:
                    raise Failure(
                        grpc.StatusCode.UNAVAILABLE,
                        "The batch scheduling queue to which this task was submitted is full",
                    )
                queue.append(_Batch(time.monotonic()))
            queue[-1].tasks.append(task)
            queue[-1].rows += rows
            self._changed.notify_all()
        return task.outputs.result()

    def close(self) -> None:
        """Computes what waits, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (due := self._take()) is None:
                    if self._closing and not any(queue for *_, queue in self._queues.values()):
                        return
                    self._changed.wait(self._seconds_to_next())
            self._compute(*due)

    def _take(self) -> tuple[str, Run, _Batch] | None:
        now = time.monotonic()
        for signature, run, queue in self._queues.values():
            if queue and (
                len(queue) > 1
                or queue[0].rows == self._parameters.max_batch_size
                or now >= queue[0].opened + self._parameters.batch_timeout
                or self._closing
            ):
                return signature, run, queue.popleft()
        return None

    def _seconds_to_next(self) -> float | None:
        opened = [queue[0].opened for *_, queue in self._queues.values() if queue]
        if not opened:
            return None
        return max(min(opened) + self._parameters.batch_timeout - time.monotonic(), 0.0)

    def _compute(self, signature: str, run: Run, batch: _Batch) -> None:
        size = min(n for n in self._parameters.allowed_batch_sizes if n >= batch.rows)
        padding = size - batch.rows
        self.merged.append(Merged(signature, len(batch.tasks), batch.rows, padding))
        try:
            outputs = run(_merge([task.inputs for task in batch.tasks], padding))
            if any(len(output) != size for output in outputs):
                raise Failure(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        except Exception as error:  # for whoever waits
            for task in batch.tasks:
                task.outputs.set_exception(error)
            return
        first = 0
        for task in batch.tasks:
            task.outputs.set_result([output[first : first + task.rows] for output in outputs])
            first += task.rows


def _common_rows(inputs: list[np.ndarray]) -> int:
    if any(value.ndim == 0 for value in inputs):
        raise Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "Batching session Run() input tensors must have at least one dimension",
        )
    lengths = {len(value) for value in inputs}
    if len(lengths) != 1:
        raise Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "Batching session Run() input tensors must have equal 0th-dimension size",
        )
    return lengths.pop()


def _merge(tasks: list[list[np.ndarray]], padding: int) -> list[np.ndarray]:
    """The rows of all tasks, input for input, and dummies behind them."""
    merged = []
    for values in zip(*tasks):
        if len({value.shape[1:] for value in values}) > 1:
            raise Failure(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Tensors with the same name from different tasks have different shapes and padding "
                "is turned off.",
            )
        dummies = np.repeat(values[-1][:1], padding, axis=0)
        merged.append(np.concatenate([*values, dummies]))
    return merged
