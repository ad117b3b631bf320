"""The registry of data sets, and a function that loads the images of any of them.

To add a data set, write a function that returns a `Source`, and enter it in `_OPENERS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.embedded import open_embedded
from nvae_tf.data.fit import crop_and_resize
from nvae_tf.data.folder import open_folder
from nvae_tf.data.idx import open_idx
from nvae_tf.data.pipeline import untuned
from nvae_tf.data.source import Source, data_directory
from nvae_tf.data.storage import Stored, cache_directory, store
from nvae_tf.data.tfds import open_tfds
from nvae_tf.data.tfrecord import open_tfrecord
from nvae_tf.fingerprints import sources_fingerprint

_OPENERS: dict[str, Callable[[DataConfig, ModelConfig, str], Source]] = {
    "fashion_mnist_embedded": open_embedded,
    "folder": open_folder,
    "idx": open_idx,
    "tfrecord": open_tfrecord,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line breaks among them
_LISTED = 5  # images whose names the log gives if some were left out


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """The images of a split, and where they are from.

    Attributes:
      images: (N, H, W, C) uint8; an `np.memmap` if there are many.
      files: [N], the path of each image's own file, relative to `data.data_dir`, with escapes in
        place of control characters and of bytes that are not UTF-8. None if images are not files.
    """

    images: np.ndarray
    files: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int | None) -> ImageSet:
        """Returns the first `count` images, which are not copied; None: all."""
        return ImageSet(self.images[:count], self.files and self.files[:count])


def load_images(data: DataConfig, model: ModelConfig, split: str) -> np.ndarray:
    """Loads the images of a split, cropped and resized to the model's shape without padding.

    Many images are decoded once into a file, which is then mapped.

    Args:
      data: The data set, and how its images are cropped and resized.
      model: Gives the shape of the images, `content_shape`.
      split: `data.train_split`, `data.test_split` or another split of the data set.

    Returns:
      (N, H, W, C) uint8; an `np.memmap` if there are many.

    Raises:
      ValueError: if the data set or the split is unknown or cannot be obtained, if an image does
        not fit the model, or if one is damaged and `data.skip_corrupt` is off; the message names
        the image. Or if a file of many images is damaged; the message names it or the split.
    """
    return _load(data, model, split)[1].images


def load_image_set(data: DataConfig, model: ModelConfig, split: str) -> ImageSet:
    """Does what `load_images` does, and returns the images with the names of their files."""
    source, stored = _load(data, model, split)
    if source.files is None:
        return ImageSet(stored.images)
    root = data_directory(data)
    used = [path for path in source.files if path not in stored.left_out]
    return ImageSet(stored.images, [_printable(os.path.relpath(path, root)) for path in used])


def _load(data: DataConfig, model: ModelConfig, split: str) -> tuple[Source, Stored]:
    """Does the work of `load_images`, and returns what it knows of the images as well."""
    source = _OPENERS.get(data.name, open_tfds)(data, model, split)
    preparation = (data.crop, data.center_crop, data.resize, data.feature, data.raw_shape)
    code = sources_fingerprint("nvae_tf/data")
    identity = repr((code, source.identity, preparation, data.skip_corrupt, model.content_shape))
    stored = store(
        lambda: _batches(source, data, model, split),
        source.count,
        model.content_shape,
        cache_directory(data),
        hashlib.sha256(identity.encode()).hexdigest()[:32],
        lambda: source.unreadable,
    )
    _warn(stored.left_out, source.count)
    if len(stored.images) == 0:
        raise ValueError(f"{data.name!r}: the split {split!r} has no images.")
    return source, stored


def load_classes(
    directory: str | os.PathLike, data: DataConfig, model: ModelConfig
) -> dict[str, ImageSet]:
    """Loads pictures that are sorted by class: a directory with a sub-directory for each class.

    Args:
      directory: The directory.
      data: How the pictures are cropped and resized, and where many of them are kept.
      model: Gives the shape of the images.

    Returns:
      For each class, by name, its pictures.

    Raises:
      ValueError: There is no such directory, it has no sub-directories, or as from `load_images`.
    """
    root = os.path.expanduser(directory)
    if not os.path.isdir(root):
        raise ValueError(f"There is no directory {root!r} of classes.")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ValueError(f"{root!r} must have a sub-directory of pictures for each class.")
    data = dataclasses.replace(data, name="folder", data_dir=root)
    return {name: load_image_set(data, model, name) for name in names}


def _batches(
    source: Source, data: DataConfig, model: ModelConfig, split: str
) -> Iterator[np.ndarray]:
    dataset = source.images.filter(lambda image: tf.size(image) > 0)
    dataset = dataset.map(
        lambda image: crop_and_resize(image, data, model), num_parallel_calls=tf.data.AUTOTUNE
    )
    seen = 0
    try:
        for batch in untuned(dataset.batch(256).prefetch(2)).as_numpy_iterator():
            _raise_problems(source, data)
            seen += len(batch)
            yield batch
    except tf.errors.DataLossError as error:
        source.name_damage()
        problem = error.message.splitlines()[0]
        raise ValueError(
            f"{data.name!r}: a file of the split {split!r} is damaged ({problem})."
        ) from error
    _raise_problems(source, data)
    if seen + len(source.unreadable) != source.count:
        raise ValueError(f"{data.name!r}: {source.count} images promised, {seen} read.")


def _printable(path: str) -> str:
    """Returns a path with escapes in place of what no text has."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def _warn(left_out: dict[str, str], count: int) -> None:
    if left_out:
        some = sorted(left_out)[:_LISTED]
        named = "; ".join(f"{_printable(name)}: {left_out[name]}" for name in some)
        more = f"; and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        logging.warning("Left out %d of %d images: %s%s", len(left_out), count, named, more)


def _raise_problems(source: Source, data: DataConfig) -> None:
    if source.unfit:
        name = min(source.unfit)
        raise ValueError(f"{name}: {source.unfit[name]}")
    if source.unreadable and not data.skip_corrupt:
        name = min(source.unreadable)
        raise ValueError(
            f"{name}: {source.unreadable[name]}. With data.skip_corrupt such images are left out."
        )
