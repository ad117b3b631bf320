"""Files for TensorBoard's projector: latent variables as points, with the images beside them.

The projector reads `projector_config.pbtxt`, which names for each latent group a file of vectors,
and for all of them one file of labels and one sprite, which is a sheet of the images.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from nvae_tf.sampling.images import encode_png, sheet

CONFIG = "projector_config.pbtxt"
_METADATA, _SPRITE = "metadata.tsv", "sprite.png"
_SPRITE_PIXELS = 8192  # on each side; the projector draws no larger one
_TILE = 64  # pixels of an image's longer side, of which the projector shows no more


def write_projection(
    directory: str | os.PathLike,
    latents: Sequence[np.ndarray],
    images: np.ndarray,
    labels: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
) -> None:
    """Writes a directory that TensorBoard's projector shows, with a tensor for each group.

    An event file is among its files, without which TensorBoard would not take it for a run.

    Args:
      directory: An empty directory.
      latents: L arrays (N, H_l, W_l, C_z), which become vectors.
      images: (N, h, w, C) uint8 with 1, 3 or 4 channels.
      labels: A label for each image, by which the projector can colour the points.
      files: A name for each image, in place of its number.

    Raises:
      ValueError: The sprite would be too large, or a label or name cannot be in a table.
    """
    check_projection(len(images), images.shape[1:], [*(labels or ()), *(files or ())])
    names = [str(number) for number in range(len(images))] if files is None else files
    tiles = _tiles(images)
    height, width = tiles.shape[1:3]
    columns = math.ceil(math.sqrt(len(tiles)))  # the projector counts on a square
    config = ProjectorConfig()

    def write(name: str, content: bytes) -> None:
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)

    for group, means in enumerate(latents):
        vectors = np.ascontiguousarray(means.reshape(len(means), -1), "<f4")
        embedding = config.embeddings.add(
            tensor_name=f"group_{group:02d}",
            tensor_path=f"group_{group:02d}.bytes",
            tensor_shape=vectors.shape,
            metadata_path=_METADATA,
        )
        embedding.sprite.image_path = _SPRITE
        embedding.sprite.single_image_dim.extend([width, height])
        write(embedding.tensor_path, vectors.tobytes())
    lines = names  # a file of one column has no line of names
    if labels is not None:
        lines = ["image\tclass", *(f"{name}\t{label}" for name, label in zip(names, labels))]
    write(_METADATA, ("\n".join(lines) + "\n").encode())
    square = np.full((columns * columns, *tiles.shape[1:]), 255, np.uint8)
    square[: len(tiles)] = tiles
    write(_SPRITE, encode_png(sheet(square, columns, margin=0)))
    write(CONFIG, text_format.MessageToString(config).encode())
    with tf.summary.create_file_writer(os.fspath(directory)).as_default(step=0):
        tf.summary.text("projector", f"{len(images)} images, {len(latents)} latent groups")


def check_projection(count: int, shape: tuple[int, int, int], labels: Sequence[str] = ()) -> None:
    """Raises a ValueError if the projector cannot show so many images (h, w, C), or a label."""
    for label in labels:
        if re.search(r"[\t\r\n\ud800-\udfff]", label):
            raise ValueError(
                "A label has no tabulators, line breaks or bytes that are not UTF-8, received "
                f"{label!r}."
            )
    tiles = _tiles(np.zeros((1, *shape), np.uint8))
    if count > _most_images(tiles):
        raise ValueError(
            f"The projector shows up to {_most_images(tiles)} images of {shape[0]}x{shape[1]} "
            f"pixels, received {count}."
        )


def _most_images(tiles: np.ndarray) -> int:
    return (_SPRITE_PIXELS // max(tiles.shape[1:3])) ** 2


def _tiles(images: np.ndarray) -> np.ndarray:
    """Makes images smaller that are larger than the projector shows them."""
    height, width = images.shape[1:3]
    if max(height, width) <= _TILE:
        return images
    scale = _TILE / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    small = tf.image.resize(images, size, method="area")
    return np.round(small.numpy()).astype(np.uint8)
