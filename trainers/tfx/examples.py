"""A pipeline's tf.Examples, as files that `nvae_tf.data` reads.

TFX hands examples over through a *data accessor*, whatever the format of its files. The images are
copied out of it once, so that a run on them is one like any other: it can be resumed exactly, and
evaluated after the pipeline's own files are gone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from nvae_tf.files import new_file

_ROWS = 256  # read at a time


class RecordBatchesOptions(NamedTuple):
    """The fields of `tfx_bsl.tfxio.RecordBatchesOptions`: every record once, in order."""

    batch_size: int = _ROWS
    drop_final_batch: bool = False
    num_epochs: int | None = 1
    shuffle: bool = False
    shuffle_buffer_size: int = 1
    shuffle_seed: int | None = None


class RecordBatch(Protocol):
    """What is used of a `pyarrow.RecordBatch`."""

    def to_pydict(self) -> dict[str, list[Any]]:
        """Column name to one list of values, or None, per row."""


class DataAccessor(Protocol):
    """What is used of `tfx.components.DataAccessor`."""

    @property
    def record_batch_factory(
        self,
    ) -> Callable[[list[str], RecordBatchesOptions, Any], Iterable[RecordBatch]]:
        """From file patterns, options and a schema (or None) to batches of records."""


def copy_images(
    accessor: DataAccessor,
    patterns: Sequence[str],
    feature: str,
    path: str,
    limit: int | None = None,
) -> None:
    """Writes one feature of a split's records to a TFRecord file, which appears whole.

    Nothing is read if the file is there already.

    Args:
      accessor: reads the pipeline's files.
      patterns: of these files.
      feature: name of the feature that holds the image.
      path: of the TFRecord file of tf.Example; its directory is made if need be.
      limit: only the first so many records.

    Raises:
      ValueError: if no record has the feature.
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
