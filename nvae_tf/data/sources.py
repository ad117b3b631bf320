"""Where images come from: this package, or TensorFlow Datasets.

Images are held in memory, as uint8.
"""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataConfig, ModelConfig

EMBEDDED = "fashion_mnist_embedded"
_EMBEDDED_TRAINING_IMAGES = 9_000


def load_images(data: DataConfig, model: ModelConfig, split: str) -> np.ndarray:
    """The images of a split as the model's likelihood sees them, before padding.

    Args:
      data: which images, cropped and resized how.
      model: gives the shape that they must have, `content_shape`.
      split: `data.train_split`, `data.test_split` or another of the set's splits.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      ValueError: for an unknown set or split, a set that cannot be had, or images that do not have
        the model's shape after crop and resize.
    """
    if data.name == EMBEDDED:
        dataset, count = _embedded(split)
    else:
        dataset, count = _tfds(data, model, split)
    _check_channels(data, model, dataset.element_spec.shape)
    dataset = dataset.map(_fit(data, model), num_parallel_calls=tf.data.AUTOTUNE)
    images = np.empty((count, *model.content_shape), np.uint8)
    filled = 0
    for batch in dataset.batch(256).prefetch(2).as_numpy_iterator():
        images[filled : filled + len(batch)] = batch
        filled += len(batch)
    if filled != count:
        raise ValueError(f"{data.name!r}, split {split!r}: {count} images promised, {filled} read.")
    return images


def _embedded(split: str) -> tuple[tf.data.Dataset, int]:
    images = read_idx_images(
        importlib.resources.files("nvae_tf.data")
        .joinpath("embedded/t10k-images-idx3-ubyte.gz")
        .read_bytes()
    )
    splits = {
        "train": images[:_EMBEDDED_TRAINING_IMAGES],
        "test": images[_EMBEDDED_TRAINING_IMAGES:],
    }
    if split not in splits:
        raise ValueError(f"{EMBEDDED!r} has the splits train and test, received {split!r}.")
    return tf.data.Dataset.from_tensor_slices(splits[split]), len(splits[split])


def read_idx_images(compressed: bytes) -> np.ndarray:
    """Images (N, H, W, 1) uint8 of a gzipped idx3 file, the format of MNIST and Fashion-MNIST.

    Raises:
      ValueError: if the bytes are not such a file.
    """
    content = gzip.decompress(compressed)
    magic, count, height, width = np.frombuffer(content, ">i4", count=4)
    if magic != 2051 or len(content) != 16 + count * height * width:
        raise ValueError(
            f"Not an idx3 file of {count} images of {height}x{width}: magic number {magic} "
            f"(expected 2051), {len(content)} bytes."
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width, 1)


def _tfds(data: DataConfig, model: ModelConfig, split: str) -> tuple[tf.data.Dataset, int]:
    import tensorflow_datasets as tfds  # slow to import, and the embedded images do without

    try:
        builder = tfds.builder(data.name, data_dir=data.data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"Unknown data set {data.name!r}: DataConfig.name must be {EMBEDDED!r} or the name of "
            f"a TensorFlow Datasets image set, such as mnist, fashion_mnist or cifar10 "
            f"({_first_line(error)})."
        ) from error
    if "image" not in (builder.info.features or {}):
        raise ValueError(
            f"The data set {data.name!r} has no feature 'image', but "
            f"{', '.join(builder.info.features or {})}."
        )
    _check_channels(data, model, builder.info.features["image"].shape)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the set's own code, disk and network come up with
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
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({"image": True}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    return dataset.map(lambda example: example["image"]), count


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0]


def _check_channels(data: DataConfig, model: ModelConfig, shape: Sequence[int | None]) -> None:
    if shape[-1] != model.image_shape[-1]:
        raise ValueError(
            f"The images of {data.name!r} have {shape[-1]} channels, but the model's "
            f"image_shape {model.image_shape} expects {model.image_shape[-1]}."
        )


def _fit(data: DataConfig, model: ModelConfig) -> Callable[[tf.Tensor], tf.Tensor]:
    """Crops and resizes one image to the model's content shape, or fails."""
    height, width, channels = model.content_shape

    def fit(image: tf.Tensor) -> tf.Tensor:
        if data.crop:
            image = tf.image.crop_to_bounding_box(image, *data.crop)
        if data.resize:
            resized = tf.image.resize(image, [height, width], method="area")
            image = tf.cast(tf.round(resized), tf.uint8)
        elif image.shape[:2].is_fully_defined() and image.shape[:2] != [height, width]:
            raise ValueError(
                f"The images of {data.name!r} are {image.shape[0]}x{image.shape[1]}, but the "
                f"model's image_shape {model.image_shape} with padding {model.padding} expects "
                f"{height}x{width}. Change it, set data.crop, or set data.resize."
            )
        return tf.ensure_shape(image, [height, width, channels])

    return fit
