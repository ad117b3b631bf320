"""Reading of TensorBoard's event files, and continuing them when a run is resumed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.files import new_file

_PATTERN = "events.out.tfevents.*"


def event_files(directory: str) -> list[str]:
    """Returns the paths of a directory's event files, sorted by the second of their creation."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), _PATTERN)))


def events(path: str) -> Iterator[tf.compat.v1.Event]:
    """Yields the events of a file; if its end is damaged, the events before the damage."""
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    while True:
        try:
            record = next(records)
        except (StopIteration, tf.errors.DataLossError):
            return
        yield tf.compat.v1.Event.FromString(record)


def open_writer(directory: str, step: int) -> tf.summary.SummaryWriter:
    """Opens a writer for a run that continues after `step`.

    A run that was killed may have logged steps after its last checkpoint, and will repeat them.
    The old events of these steps are removed, because readers would show both. (TensorBoard's own
    mechanism for this handles summaries in the format of TensorFlow 1 only.)

    Args:
      directory: Directory of the event files. It is created if necessary.
      step: The last step whose events are kept.
    """
    for path in event_files(directory):
        if any(event.step > step for event in events(path)):
            _keep_until(path, step)
    return tf.summary.create_file_writer(directory)


def _keep_until(path: str, step: int) -> None:
    with new_file(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for event in events(path):
            if event.step <= step:
                writer.write(event.SerializeToString())


def read_scalars(directory: str, *prefixes: str) -> dict[int, dict[str, float]]:
    """Reads the scalars whose tags begin with one of the prefixes.

    Returns:
      For each step, in ascending order, the values by tag.
    """
    steps: dict[int, dict[str, float]] = {}
    for path in event_files(directory):
        for event in events(path):
            for value in event.summary.value:
                if value.tag.startswith(prefixes):
                    scalar = float(np.squeeze(tf.make_ndarray(value.tensor)))
                    steps.setdefault(event.step, {})[value.tag] = scalar
    return dict(sorted(steps.items()))
