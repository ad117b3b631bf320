"""The test images of Fashion-MNIST inside this package."""

from __future__ import annotations

import importlib.resources

import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.fit import check_shape
from nvae_tf.data.idx import read_idx_images
from nvae_tf.data.source import Source

_TRAINING_IMAGES = 9_000


def open_embedded(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens Fashion-MNIST's 10,000 test images: 9,000 for training, 1,000 as the test split.

    Raises:
      ValueError: if the split is neither train nor test, if `data.data_dir` names a directory,
        or if the images do not fit the model.
    """
    if data.data_dir:
        raise ValueError(
            f"The images of {data.name!r} are part of the package, so data.data_dir must be empty, "
            f"received {data.data_dir!r}. To read what is there, set data.name to folder, idx, "
            "tfrecord or a name of TensorFlow Datasets."
        )
    images = read_idx_images(
        importlib.resources.files("nvae_tf.data")
        .joinpath("embedded/t10k-images-idx3-ubyte.gz")
        .read_bytes()
    )
    splits = {"train": images[:_TRAINING_IMAGES], "test": images[_TRAINING_IMAGES:]}
    if split not in splits:
        raise ValueError(f"{data.name!r} has the splits train and test, received {split!r}.")
    check_shape(repr(data.name), images.shape[1:], data, model)
    dataset = tf.data.Dataset.from_tensor_slices(splits[split])
    return Source(dataset, len(splits[split]), f"{data.name}/{split}")
