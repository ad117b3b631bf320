"""Data sets that are TFRecord files of tf.Example."""

from __future__ import annotations

import glob
import math
import os

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import check_shape
from nvae_tf.data.pictures import decode_picture
from nvae_tf.data.source import Source, data_directory, decoded_source, files_identity

_HEADER, _CHECKSUM = 12, 4  # bytes around a record: its length with a checksum, another checksum
_LONGEST = 2**31 - 1  # bytes of a record


def open_tfrecord(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens the images in a split's TFRecord files, in the order of the files' names.

    The feature `data.feature` holds the bytes of a picture. With `data.raw_shape` it holds the
    values 0 to 255 of an image instead, as bytes or as a list of integers.

    Raises:
      ValueError: if there are no such files, one is damaged, the training and the test split share
        one, or `data.raw_shape` does not fit the model.
    """
    files = _files(data, split)
    _check_apart(data)
    count = sum(_count_records(file) for file in files)
    if data.raw_shape:
        origin = f"tf.Examples with data.raw_shape {data.raw_shape}"
        check_shape(origin, data.raw_shape, data, model)

    def read(record: bytes, file: bytes, number: int) -> np.ndarray:
        feature = _feature(record, data.feature)
        if data.raw_shape:
            return _raw_image(feature, data.raw_shape)
        return decode_picture(_single_bytes(feature), model.image_shape[-1])

    def name(record: bytes, file: bytes, number: int) -> str:
        return f"{os.fsdecode(file)}, record {number}"

    def records(file: tf.Tensor) -> tf.data.Dataset:
        dataset = tf.data.Dataset.zip((_records(file), tf.data.Dataset.counter()))
        return dataset.map(lambda record, number: (record, file, number))

    def name_damage() -> None:
        for file in files:
            _read_all(file)

    names = [os.fsencode(file) for file in files]
    elements = tf.data.Dataset.from_tensor_slices(names).flat_map(records)
    source = decoded_source(elements, read, name, count, files_identity(files), data, model)
    source.name_damage = name_damage
    return source


def _files(data: DataConfig, split: str) -> list[str]:
    files = _matching(data, split)
    if not files:
        root = data_directory(data)
        directory = os.path.join(root, split)
        present = ", ".join(map(repr, sorted(os.listdir(root))[:10]))
        raise ValueError(
            f"No TFRecord files for the split {split!r}: there is neither a directory {directory!r}"
            f" nor a file whose name begins so. Present: {present or 'nothing'}."
        )
    return files


def _matching(data: DataConfig, split: str) -> list[str]:
    directory = os.path.join(data_directory(data), split)
    pattern = f"{glob.escape(directory)}{'/*' if os.path.isdir(directory) else '*'}"
    return [path for path in sorted(glob.glob(pattern)) if os.path.isfile(path)]


def _check_apart(data: DataConfig) -> None:
    """Raises a ValueError if a file belongs to both the training and the test split."""
    if data.train_split == data.test_split:
        return  # who trains is told, and who only looks at images may want that
    train, test = (
        {os.path.realpath(path) for path in _matching(data, split)}
        for split in (data.train_split, data.test_split)
    )
    if shared := sorted(train & test):
        shorter = min(data.train_split, data.test_split, key=len)
        raise ValueError(
            f"{len(shared)} file(s) such as {shared[0]!r} belong to both splits, "
            f"{data.train_split!r} (data.train_split) and {data.test_split!r} (data.test_split): a "
            "split's files are those whose names begin with its name. Give more of their names, "
            f"such as {shorter + '.'!r} or {shorter + '-'!r}, or put each split's files into a "
            "directory of its name."
        )


def _records(file: tf.Tensor | bytes) -> tf.data.Dataset:
    zipped = tf.equal(tf.strings.substr(file, -3, 3), ".gz")  # no pattern matches what is not UTF-8
    compression = tf.where(zipped, "GZIP", "")
    return tf.data.TFRecordDataset(file, compression_type=compression)


def _count_records(file: str) -> int:
    """Returns the number of records, from their headers alone if the file is not compressed.

    A record that is longer than its file is a ValueError: TensorFlow would ask for as much memory
    as the record claims to need. Of a compressed file it does not know the size, and reads until
    the end. Checksums are verified by whatever reads the records.
    """
    if file.endswith(".gz"):
        return _read_all(file)
    size, position, count = os.path.getsize(file), 0, 0
    with open(file, "rb") as records:
        while header := records.read(_HEADER):
            length = int.from_bytes(header[:8], "little")
            end = position + _HEADER + length + _CHECKSUM
            if len(header) < _HEADER or length > _LONGEST or end > size:
                raise _damaged(file, f"the record at byte {position:,} claims {length:,} bytes")
            records.seek(length + _CHECKSUM, os.SEEK_CUR)
            position = end
            count += 1
    return count


def _read_all(file: str) -> int:
    """Returns the number of records; a ValueError if a checksum is wrong or the file is cut off."""
    try:
        return int(_records(os.fsencode(file)).reduce(np.int64(0), lambda count, _: count + 1))
    except tf.errors.OpError as error:
        raise _damaged(file, error.message.splitlines()[0]) from error


def _damaged(file: str, problem: str) -> ValueError:
    return ValueError(
        f"{file!r} is not a whole TFRecord file ({problem}); if it is compressed, its name must "
        "end in .gz."
    )


def _feature(record: bytes, name: str) -> tf.train.Feature:
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # google.protobuf's DecodeError, which TensorFlow does not export
        raise ValueError(f"not a tf.Example ({error}).") from error
    if name not in features:
        raise ValueError(
            f"no feature {name!r} (data.feature), but {', '.join(sorted(features)) or 'none'}."
        )
    return features[name]


def _single_bytes(feature: tf.train.Feature) -> bytes:
    values = feature.bytes_list.value
    if len(values) != 1:
        raise ValueError(
            f"the feature must hold the bytes of one picture, but it is a "
            f"{feature.WhichOneof('kind')} of {len(values)} values. For raw values set "
            "data.raw_shape."
        )
    return values[0]


def _raw_image(feature: tf.train.Feature, shape: tuple[int, ...]) -> np.ndarray:
    kind = feature.WhichOneof("kind")
    if kind == "bytes_list" and len(feature.bytes_list.value) == 1:
        values = np.frombuffer(feature.bytes_list.value[0], np.uint8)
    elif kind == "int64_list":
        wide = np.array(feature.int64_list.value)
        if wide.size and (wide.min() < 0 or wide.max() > 255):
            raise ValueError(f"values must be 0 to 255, received {wide.min()} to {wide.max()}.")
        values = wide.astype(np.uint8)
    else:
        raise ValueError(f"raw images must be bytes or integers, received a {kind}.")
    if values.size != math.prod(shape):
        raise ValueError(
            f"data.raw_shape {shape} needs {math.prod(shape)} values, received {values.size}."
        )
    return values.reshape(shape)
