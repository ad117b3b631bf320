"""Trains a small classifier on idx files, and exports its features as a SavedModel for FID.

    python examples/idx_features.py --data_dir=/usr/share/datasets/fashion-mnist --output=features

The directory holds images and labels of MNIST's format, such as train-images-idx3-ubyte.gz and
train-labels-idx1-ubyte.gz. It prints the accuracy on the test images. The features are the 128
values before the classes; `nvae-evaluate --features=features` measures with them.
"""

from __future__ import annotations

import contextlib
import gzip
import pathlib

import keras
import numpy as np
from absl import app, flags

from nvae_tf.command_line import usage_errors
from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data import load_images
from nvae_tf.files import new_directory

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the idx files.", required=True)
_OUTPUT = flags.DEFINE_string("output", "features", "Directory to create.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "How often training sees each image.", lower_bound=1)
_SIDE = flags.DEFINE_integer("side", 28, "Height and width of the images.", lower_bound=8)

_CLASSES = 10
_FEATURES = 128
_NAMES = {"train": "train", "test": "t10k"}


def labels(split: str, count: int) -> np.ndarray:
    """Reads the labels (N,) of a split.

    Raises:
      ValueError: There are no labels, or fewer or more of them than images.
    """
    path = pathlib.Path(_DATA_DIR.value, f"{_NAMES[split]}-labels-idx1-ubyte")
    packed = path.with_name(f"{path.name}.gz")
    if not (path.exists() or packed.exists()):
        raise ValueError(f"There is neither {path} nor {packed}.")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    values = np.frombuffer(content, np.uint8, offset=8)
    if len(values) != count:
        raise ValueError(f"{path} has {len(values)} labels for {count} images.")
    return values


def build() -> tuple[keras.Model, keras.Model]:
    """Returns the classifier of images (B, h, w, 1) in [0, 1], and the part that gives features."""
    images = keras.Input((_SIDE.value, _SIDE.value, 1))
    x = images
    for filters in (32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    features = keras.layers.Dense(_FEATURES, activation="relu")(x)
    scores = keras.layers.Dense(_CLASSES)(keras.layers.Dropout(0.3)(features))
    return keras.Model(images, scores), keras.Model(images, features)


def train(images: dict[str, np.ndarray], classes: dict[str, np.ndarray], directory: str) -> float:
    """Trains, writes the SavedModel of the features, and returns the accuracy on test images."""
    keras.utils.set_random_seed(0)
    classifier, features = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile("adam", loss, metrics=["accuracy"])
    scaled = {split: np.asarray(values, np.float32) / 255 for split, values in images.items()}
    classifier.fit(
        scaled["train"], classes["train"], batch_size=128, epochs=_EPOCHS.value, verbose=2
    )
    _, accuracy = classifier.evaluate(scaled["test"], classes["test"], batch_size=500, verbose=0)
    features.export(directory, verbose=False)
    return accuracy


def main(argv: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        with usage_errors(argv):
            data = DataConfig(name="idx", data_dir=_DATA_DIR.value)
            shape = (_SIDE.value, _SIDE.value, 1)
            model = ModelConfig(
                image_shape=shape, num_preprocess_blocks=0, num_postprocess_blocks=0
            )
            images = {split: load_images(data, model, split) for split in _NAMES}
            classes = {split: labels(split, len(images[split])) for split in _NAMES}
            directory = stack.enter_context(new_directory(_OUTPUT.value))
        accuracy = train(images, classes, directory)
    print(f"{_OUTPUT.value}: {accuracy:.2%} of the test images are classified correctly")


if __name__ == "__main__":
    app.run(main)
