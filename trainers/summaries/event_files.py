"""Event files that go on where a run goes on."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.files import new_file

_PATTERN = "events.out.tfevents.*"


def event_files(directory: str) -> list[str]:
    """Paths of a directory's event files, in the order in which they were begun."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), _PATTERN)))


def _events(path: str) -> Iterator[tf.compat.v1.Event]:
    """The events of a file; one whose run was killed is read up to where its end is missing."""
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    while True:
        try:
            record = next(records)
        except (StopIteration, tf.errors.DataLossError):
            return
        yield tf.compat.v1.Event.FromString(record)


def open_writer(directory: str, step: int) -> tf.summary.SummaryWriter:
    """A writer for what comes after a step.

    A run that was killed has logged steps after its last checkpoint, which it will take again. They
    are removed: readers would show both. (TensorBoard itself can be told, but only of summaries as
    TensorFlow 1 wrote them.)

    Args:
      directory: of the event files; it need not exist.
      step: the last one that counts.
    """
    for path in event_files(directory):
        if any(event.step > step for event in _events(path)):
            _keep_until(path, step)
    return tf.summary.create_file_writer(directory)


def _keep_until(path: str, step: int) -> None:
    with new_file(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for event in _events(path):
            if event.step <= step:
                writer.write(event.SerializeToString())


def read_scalars(directory: str, prefix: str) -> dict[int, dict[str, float]]:
    """Scalars whose tags begin with a prefix, by step, rising, and tag."""
    steps: dict[int, dict[str, float]] = {}
    for path in event_files(directory):
        for event in _events(path):
            for value in event.summary.value:
                if value.tag.startswith(prefix):
                    scalar = float(np.squeeze(tf.make_ndarray(value.tensor)))
                    steps.setdefault(event.step, {})[value.tag] = scalar
    return dict(sorted(steps.items()))
