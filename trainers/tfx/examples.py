"""Copies of a pipeline's tf.Examples in files that `nvae_tf.data` reads.

TFX passes examples through a *data accessor*, which hides the format of its files. The images are
copied once, so the run can be resumed exactly, and evaluated after the pipeline's own files are
gone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from nvae_tf.files import new_file

_ROWS = 256  # records that are read at a time


class RecordBatchesOptions(NamedTuple):
    """A copy of `tfx_bsl.tfxio.RecordBatchesOptions`, by default every record once, in order."""

    batch_size: int = _ROWS
    drop_final_batch: bool = False
    num_epochs: int | None = 1
    shuffle: bool = False
    shuffle_buffer_size: int = 1
    shuffle_seed: int | None = None


class RecordBatch(Protocol):
    """The method of `pyarrow.RecordBatch` that this module uses."""

    def to_pydict(self) -> dict[str, list[Any]]:
        """Returns, for each column's name, a list of values or None for each row."""


class DataAccessor(Protocol):
    """The property of `tfx.components.DataAccessor` that this module uses."""

    @property
    def record_batch_factory(
        self,
    ) -> Callable[[list[str], RecordBatchesOptions, Any], Iterable[RecordBatch]]:
        """A function from file patterns, options and a schema (or None) to batches of records."""


def copy_images(
    accessor: DataAccessor,
    patterns: Sequence[str],
    feature: str,
    path: str,
    limit: int | None = None,
) -> None:
    """Copies one feature of a split's records to a TFRecord file of tf.Example.

    The file appears complete or not at all. If it exists, nothing is read.

    Args:
      accessor: Reads the pipeline's files.
      patterns: Patterns of the files' paths.
      feature: Name of the feature that holds the image.
      path: Path of the TFRecord file. Its directory is created if necessary.
      limit: The number of records to copy, from the start; None for all.

    Raises:
      ValueError: if the records do not have the feature.
    """
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with new_file(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for values in itertools.islice(_values(accessor, patterns, feature), limit):
            example = tf.train.Example()
            if values is not None:
                example.features.feature[feature].CopyFrom(_feature(values))
            writer.write(example.SerializeToString())


def _values(
    accessor: DataAccessor, patterns: Sequence[str], feature: str
) -> Iterator[list[Any] | None]:
    for batch in accessor.record_batch_factory(list(patterns), RecordBatchesOptions(), None):
        columns = batch.to_pydict()
        if feature not in columns:
            raise ValueError(
                f"The examples {', '.join(patterns)} have no feature {feature!r} (data.feature), "
                f"but {', '.join(sorted(columns)) or 'none'}."
            )
        yield from columns[feature]


def _feature(values: list[Any]) -> tf.train.Feature:
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
