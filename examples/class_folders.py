r"""Sorts labelled images of idx files into a directory of pictures for each class.

    python examples/class_folders.py --data_dir=/usr/share/datasets/fashion-mnist \
        --names=t-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,boot --output=clothes

`nvae-latents --mode=direction --classes=clothes` and `nvae-projector --classes=clothes` read such a
directory.
"""

from __future__ import annotations

import os

import numpy as np
from absl import app, flags
from PIL import Image

from nvae_tf.command_line import usage_errors
from nvae_tf.config import DataConfig
from nvae_tf.data.idx import load_idx_images, load_idx_labels
from nvae_tf.files import new_directory

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the idx files.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Split whose images are taken.")
_NAMES = flags.DEFINE_list("names", None, "Names of the classes 0, 1, ….", required=True)
_PER_CLASS = flags.DEFINE_integer(
    "per_class", 500, "Images of each class, the first ones.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to create.", required=True)


def read() -> tuple[np.ndarray, np.ndarray]:
    """Reads images (N, H, W, C) uint8 and labels (N,).

    Raises:
      ValueError: They are missing or damaged, or do not fit each other or the names.
    """
    data = DataConfig(name="idx", data_dir=_DATA_DIR.value)
    images, labels = load_idx_images(data, _SPLIT.value), load_idx_labels(data, _SPLIT.value)
    if len(labels) != len(images):
        raise ValueError(f"There are {len(labels)} labels for {len(images)} images.")
    found, names = np.unique(labels).tolist(), _NAMES.value
    if found != list(range(len(names))):
        raise ValueError(
            f"--names must name each class, which the images have of {found}; received "
            f"{len(names)} names."
        )
    return images, labels


def main(argv: list[str]) -> None:
    count = 0
    with usage_errors(argv):
        images, labels = read()
        with new_directory(_OUTPUT.value) as directory:
            for label, name in enumerate(_NAMES.value):
                os.mkdir(os.path.join(directory, name))
                for number in np.flatnonzero(labels == label)[: _PER_CLASS.value]:
                    pixels = images[number]
                    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
                    picture.save(os.path.join(directory, name, f"{number:05d}.png"))
                    count += 1
    print(f"{count} pictures of {len(_NAMES.value)} classes in {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
