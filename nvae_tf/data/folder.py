"""Data sets that are directories of pictures."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from nvae_tf.config import DataConfig, ModelConfig
from nvae_tf.data.pictures import EXTENSIONS, decode_picture
from nvae_tf.data.source import (
    Source,
    UnreadableError,
    data_directory,
    decoded_source,
    files_identity,
)
from nvae_tf.files import read_bytes

_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # errors of a link that leads nowhere

# TFDS can read directories as well, but only PNG and JPEG files in `split/label/`. It scales 16-bit
# files silently, and its errors do not name the file.


def open_folder(data: DataConfig, model: ModelConfig, split: str) -> Source:
    """Opens the pictures of a split, in the order of their paths.

    If `data.data_dir` has a sub-directory with the split's name, the pictures below it are the
    split. If it has a sub-directory for neither the training nor the test split, a share of about
    `data.test_fraction` of all pictures becomes the test split. A picture's path and
    `data.split_seed` alone decide whether it belongs to that share; only if that leaves a split
    empty, one picture goes there. The split `"."` is the directory as a whole.

    Raises:
      ValueError: if the directory or the split does not exist or has no pictures, or if the two
        splits share a directory.
    """
    root = data_directory(data)
    names = (data.train_split, data.test_split)
    present = [name for name in dict.fromkeys((split, *names)) if os.path.isdir(f"{root}/{name}")]
    if split in present:
        directory = os.path.join(root, split)
        places = list(_walk(directory))
        # The same name is for whoever trains to refuse: others may want that.
        if split == data.train_split != data.test_split and data.test_split in present:
            _check_apart(places, root, data)
        paths = _pictures(directory, places)
    elif not present and split in names:
        paths = _share(_pictures(root, _walk(root)), root, data, split)
    else:
        raise ValueError(
            f"{root!r} has no directory {split!r} for that split, but "
            f"{', '.join(map(repr, sorted(os.listdir(root))[:10]))}. Name one of them "
            "(data.train_split, data.test_split), or leave all pictures in one directory for a "
            "split by data.test_fraction."
        )

    def read(path: bytes) -> np.ndarray:
        try:
            content = read_bytes(path)
        except ValueError as error:
            raise UnreadableError("it is not a regular file") from error
        except OSError as error:
            if error.errno in _NOWHERE:
                raise UnreadableError(error.strerror) from error
            # It may be whole, and be read another time: nothing to leave out.
            raise ValueError(f"it cannot be read ({error.strerror})") from error
        return decode_picture(content, model.image_shape[-1])

    files = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    identity = files_identity(paths)
    return decoded_source(files, read, os.fsdecode, len(paths), identity, data, model, paths)


def _check_apart(training: Sequence[tuple[str, list[str]]], root: str, data: DataConfig) -> None:
    """Raises a ValueError if the test split shares a directory with those of the training split."""
    held_out = _walk(os.path.join(root, data.test_split))
    train, test = ({os.path.realpath(place) for place, _ in walk} for walk in (training, held_out))
    if shared := sorted(train & test):
        raise ValueError(
            f"The pictures in {shared[0]!r} belong to both splits, {data.train_split!r} "
            f"(data.train_split) and {data.test_split!r} (data.test_split): put each split's "
            "pictures into a directory that is not inside the other's."
        )


def _walk(directory: str) -> Iterator[tuple[str, list[str]]]:
    """Yields a directory and all below it, once each, with their files; hidden ones are left out.

    Raises:
      ValueError: A directory cannot be read.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"Cannot read {error.filename!r}: {error.strerror}.")

    for place, directories, files in os.walk(directory, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to a directory that was visited before
            directories.clear()
            continue
        seen.add(os.path.realpath(place))
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        yield place, files


def _pictures(directory: str, places: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Returns the paths of all pictures below a directory, of which `_walk` yields these places."""
    found: list[str] = []
    others: list[str] = []
    for place, files in places:
        for name in sorted(files):
            if not name.startswith("."):
                is_picture = name.lower().endswith(EXTENSIONS)
                (found if is_picture else others).append(os.path.join(place, name))
    example = f" (such as {os.path.basename(others[0])!r})" if others else ""
    if found and others:
        logging.warning(
            "%d files below %r%s are not read: they do not end in %s.",
            len(others),
            directory,
            example,
            ", ".join(EXTENSIONS),
        )
    if not found:
        raise ValueError(
            f"There are no pictures ({', '.join(EXTENSIONS)}) below {directory!r}, but "
            f"{len(others)} other files{example}."
        )
    return found


def _share(paths: list[str], root: str, data: DataConfig, split: str) -> list[str]:
    def rank(path: str) -> float:
        name = os.path.relpath(path, root)
        key = f"{data.split_seed}/{name}".encode(errors="surrogateescape")
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64

    if len(paths) < 2:
        raise ValueError(
            f"{root!r} has a single picture: too few for two splits. The split '.' is all pictures."
        )
    # By itself, so that more pictures never move a held-out one to those to train on.
    test = {path for path in paths if rank(path) < data.test_fraction}
    if not 0 < len(test) < len(paths):
        by_rank = sorted(paths, key=rank)
        test = {by_rank[0]} if not test else set(by_rank[:-1])
    if split == data.test_split:  # not everybody who asks a model expects a share
        logging.warning(
            "%r: the split %r is %d of the %d pictures (data.test_fraction); '.' is all of them.",
            root,
            split,
            len(test),
            len(paths),
        )
    return [path for path in paths if (path in test) == (split == data.test_split)]
