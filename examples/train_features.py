"""Trains a small classifier on labelled images, and exports its features as a SavedModel for FID.

    python examples/train_features.py --data_dir=/usr/share/datasets/fashion-mnist --output=features
    python examples/train_features.py --data_dir=emoji --side=64 --output=emoji_features

The directory holds images and labels of MNIST's format, such as train-images-idx3-ubyte.gz and
train-labels-idx1-ubyte.gz, or pictures in colour in train and test, and a file labels.csv whose
lines are a picture's path, such as test/1.png, and its label. The program prints the accuracy on
the test images. The features are the 128 values before the classes; `nvae-evaluate
--features=features` measures with them.
"""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib

import keras
import numpy as np
from absl import app, flags

from nvae_tf.command_line import usage_errors
from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data import load_images
from nvae_tf.data.idx import load_idx_labels
from nvae_tf.data.pictures import EXTENSIONS
from nvae_tf.files import new_directory

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the images.", required=True)
_OUTPUT = flags.DEFINE_string("output", "features", "Directory to create.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "How often training sees each image.", lower_bound=1)
_SIDE = flags.DEFINE_integer("side", 28, "Height and width of the images.", lower_bound=8)

_FEATURES = 128
_SPLITS = ("train", "test")


def csv_labels(split: str) -> np.ndarray:
    """Reads the labels of a split, in the order of its pictures' names, from labels.csv.

    Raises:
      ValueError: A picture has none, or a line is not a path and a label.
    """
    table = pathlib.Path(_DATA_DIR.value, "labels.csv")
    labels = {}
    with table.open(newline="") as file:
        lines = csv.reader(file)
        for line in lines:
            if len(line) != 2:
                raise ValueError(
                    f"{table}, line {lines.line_num}: a line has a picture's path and its label, "
                    f"received {','.join(line)!r}."
                )
            labels[line[0]] = line[1]
    # The files that load_images takes.
    names = [name for name in os.listdir(table.with_name(split)) if name[0] != "."]
    paths = [f"{split}/{name}" for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    missing = [path for path in paths if path not in labels]
    if missing:
        raise ValueError(f"{table} has no label for {missing[0]}.")
    return np.array([labels[path] for path in paths])


def read() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads the images (N, h, w, c) of 8 bits and the labels (N,) of both splits.

    Raises:
      ValueError: Images or labels are missing, or there is not one label for every image.
    """
    in_folder = pathlib.Path(_DATA_DIR.value, "labels.csv").exists()
    data = DataConfig(name="folder" if in_folder else "idx", data_dir=_DATA_DIR.value)
    shape = (_SIDE.value, _SIDE.value, 3 if in_folder else 1)
    model = ModelConfig(image_shape=shape, num_preprocess_blocks=0, num_postprocess_blocks=0)
    images = {split: load_images(data, model, split) for split in _SPLITS}
    labels = {
        split: csv_labels(split) if in_folder else load_idx_labels(data, split) for split in _SPLITS
    }
    for split in _SPLITS:
        if len(labels[split]) != len(images[split]):
            raise ValueError(
                f"{_DATA_DIR.value} has {len(labels[split])} labels for {len(images[split])} "
                f"images of the split {split!r}."
            )
    unknown = sorted(set(labels["test"]) - set(labels["train"]))
    if unknown:
        raise ValueError(f"No image to train on has the labels {', '.join(map(str, unknown))}.")
    return images, labels


def build(classes: int, channels: int) -> tuple[keras.Model, keras.Model]:
    """Returns the classifier of images (B, h, w, c) in [0, 1], and the part that gives features."""
    images = keras.Input((_SIDE.value, _SIDE.value, channels))
    x, side, filters = images, _SIDE.value, 32
    while side >= 8:
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
        side, filters = side // 2, 2 * filters
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    features = keras.layers.Dense(_FEATURES, activation="relu")(x)
    scores = keras.layers.Dense(classes)(keras.layers.Dropout(0.3)(features))
    return keras.Model(images, scores), keras.Model(images, features)


def train(images: dict[str, np.ndarray], labels: dict[str, np.ndarray], directory: str) -> float:
    """Trains, writes the SavedModel of the features, and returns the accuracy on test images."""
    keras.utils.set_random_seed(0)
    names = np.unique(labels["train"])
    classes = {split: np.searchsorted(names, values) for split, values in labels.items()}
    classifier, features = build(len(names), images["train"].shape[-1])
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
            images, labels = read()
            directory = stack.enter_context(new_directory(_OUTPUT.value))
        accuracy = train(images, labels, directory)
    print(f"{_OUTPUT.value}: {accuracy:.2%} of the test images are classified correctly")


if __name__ == "__main__":
    app.run(main)
