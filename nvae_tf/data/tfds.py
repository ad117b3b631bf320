"""Image data sets of TensorFlow Datasets (TFDS)."""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import check_shape
from nvae_tf.data.source import Source, decoded_source, files_identity

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


_STORAGE = ("storage.googleapis.com", 443)  # where TFDS asks first


def open_tfds(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens a split of a TFDS data set, or a slice of one such as `train[:90%]`.

    A data set that is not prepared yet is downloaded and prepared.

    Raises:
      ValueError: if the data set, feature or split is unknown, if the data set cannot be
        obtained, if the training and the test split overlap, or if its images do not fit the model.
    """
    import tensorflow_datasets as tfds  # slow to import, and other data sets do not need it

    try:
        with _own_features_only():
            builder = tfds.builder(data.name, data_dir=data.data_dir or None)
            features = builder.info.features or {}
    except _ForeignFeature as error:
        raise ValueError(
            f"The files of the data set {data.name!r} in {data.data_dir or 'its place'!r} name "
            f"the feature {error}; only those of TensorFlow Datasets itself are read."
        ) from error
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"Unknown data set {data.name!r}: data.name must be fashion_mnist_embedded, folder, "
            "idx, tfrecord or the name of a TensorFlow Datasets image set such as mnist or cifar10 "
            f"({_first_line(error)})."
        ) from error
    if data.feature not in features:
        raise ValueError(
            f"The data set {data.name!r} has no feature {data.feature!r} (data.feature), but "
            f"{', '.join(features)}."
        )
    feature = features[data.feature]
    _check_images(data, model, feature)
    if not os.path.exists(builder.data_dir) and not _has_network():
        raise ValueError(
            f"The data set {data.name!r} is not in {builder.data_dir!r}, and there is no network "
            "to download it. Prepare it on a machine with network (python -m tensorflow_datasets "
            f"build {data.name}), and name its place in data.data_dir; or use files that are here, "
            "with data.name=folder, idx or tfrecord."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # the data set's own code, the disk or the network may raise any
        raise ValueError(
            f"The data set {data.name!r} is not in {builder.data_dir!r}, and could not be "
            f"downloaded and prepared ({type(error).__name__}: {_first_line(error)}). "
            "Prepare it on a machine with network, and name its place in data.data_dir."
        ) from error
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"The data set {data.name!r} has no split {split!r}. "
            f"Known: {', '.join(builder.info.splits)}, and slices of them such as train[:90%]."
        ) from error
    _check_apart(data, builder)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({data.feature: True}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    identity = f"{builder.info.full_name}/{split}/{builder.data_dir}/{_files_identity(builder)}"
    images = dataset.map(lambda example: _8_bits(example[data.feature]))
    if None not in feature.shape:
        return Source(images, count, identity)
    return decoded_source(
        images.enumerate(),
        read=lambda _, image: image,
        name=lambda number, _: f"{data.name}, image {number} of {split}",
        count=count,
        identity=identity,
        data=data,
        model=model,
    )


def _files_identity(builder: tfds.core.DatasetBuilder) -> str:
    place = builder.data_dir
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []  # it may be in a bucket
    return files_identity([os.path.join(place, name) for name in names])


class _ForeignFeature(Exception):
    """A kind of feature that is not of TensorFlow Datasets."""


@contextlib.contextmanager
def _own_features_only() -> Iterator[None]:
    """Keeps TFDS from importing whatever module a data set's `features.json` names.

    With `python -m`, that may be a file of the directory in which the program runs. TFDS looks
    names up in one place only, and has no setting for it.
    """
    import tensorflow_datasets as tfds

    connector = tfds.features.FeatureConnector
    original = vars(connector)["cls_from_name"]
    lookup = connector.cls_from_name

    def checked(name: str) -> type[tfds.features.FeatureConnector]:
        if not name.startswith("tensorflow_datasets."):
            raise _ForeignFeature(repr(name))
        return lookup(name)

    connector.cls_from_name = checked
    try:
        yield
    finally:
        connector.cls_from_name = original


def _has_network() -> bool:
    """Returns whether TFDS could download anything; it would try for minutes."""
    if urllib.request.getproxies():
        return True  # the proxy knows
    try:
        socket.create_connection(_STORAGE, timeout=5).close()
    except OSError:
        return False
    return True


def _check_images(
    data: DataConfig, model: ModelConfig, feature: tfds.features.FeatureConnector
) -> None:
    shape, dtype = feature.shape, np.dtype(feature.np_dtype).name
    if len(shape or ()) != 3 or dtype not in ("uint8", "uint16"):
        raise ValueError(
            f"The feature {data.feature!r} of {data.name!r} is no image: {dtype} of shape {shape}."
        )
    check_shape(repr(data.name), shape, data, model)


def _check_apart(data: DataConfig, builder: tfds.core.DatasetBuilder) -> None:
    """Raises a ValueError if an image belongs to both the training and the test split."""
    if data.train_split == data.test_split:
        return  # who trains is told, and who only looks at images may want that
    try:
        train, test = _ranges(builder, data.train_split), _ranges(builder, data.test_split)
    except (KeyError, ValueError):
        return  # one of them is unknown, so it has no images
    shared = sum(
        max(0, min(last, other_last) - max(first, other_first))
        for name, first, last in train
        for other_name, other_first, other_last in test
        if name == other_name
    )
    if shared:
        raise ValueError(
            f"{shared:,} images of {data.name!r} belong to both splits, {data.train_split!r} "
            f"(data.train_split) and {data.test_split!r} (data.test_split): choose slices that do "
            "not overlap, such as train[:90%] and train[90%:]."
        )


def _ranges(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, int, int]]:
    """Returns the names of the whole splits in `split`; of each, the first image and the end."""
    import tensorflow_datasets as tfds

    whole = builder.info.splits
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(whole)
    return [
        (
            part.splitname,
            part.from_ or 0,
            whole[part.splitname].num_examples if part.to is None else part.to,
        )
        for part in parts
    ]


def _8_bits(image: tf.Tensor) -> tf.Tensor:
    if image.dtype == tf.uint8:
        return image
    return tf.cast((tf.cast(image, tf.int32) + 128) // 257, tf.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0]
