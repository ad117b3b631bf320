"""Versions of a model in a directory that a server watches: they appear and go whole.

`BASE/<integer>` are versions. Whatever else is there begins with a dot, which servers ignore.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator

from absl import logging

from export.manifest import Manifest, read_manifest
from export.saved_model import write_saved_model
from nvae_tf.model.nvae import NVAE

METRIC = "negative_elbo_bits_per_dim"
_LOCK = ".lock"
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


class WorseModelError(ValueError):
    """A model was refused, because the one being served is better, or nothing says it is not."""


def publish(
    model: NVAE,
    base: str | os.PathLike,
    manifest: Manifest,
    keep_versions: int | None = None,
    allow_worse: bool = False,
) -> str:
    """Writes the model as the next version below a directory, which is created if need be.

    A version is written aside and renamed, so that whoever reads the directory sees all of it or
    nothing, even if this process is killed. Publishers of one directory take turns.

    Args:
      model: in the precision that it is to be served in.
      base: directory of the versions.
      manifest: of the model, as `run_manifest` makes it.
      keep_versions: how many of the newest to keep, this one included; None: all.
      allow_worse: whether to publish without the blessing of `check_blessing`.

    Returns:
      The version's directory.

    Raises:
      WorseModelError: as `check_blessing`, before anything is written.
      ValueError: for `keep_versions` below 1.
      NotADirectoryError: if the base is a file.
    """
    if keep_versions is not None and keep_versions < 1:
        raise ValueError(f"keep_versions must be at least 1, received {keep_versions}.")
    base = os.fspath(base)
    if os.path.exists(base) and not os.path.isdir(base):
        raise NotADirectoryError(f"The export base {base!r} is not a directory.")
    os.makedirs(base, exist_ok=True)
    with _turn(base):
        _remove_leftovers(base)
        present = versions(base)
        newest = max(present, default=0)
        if present and not allow_worse:
            check_blessing(manifest, present[newest])
        path = os.path.join(base, str(newest + 1))
        unfinished = os.path.join(base, f"{_UNFINISHED}{newest + 1}")
        try:
            write_saved_model(model, unfinished, manifest)
            os.rename(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        if keep_versions:
            _remove_old(base, keep_versions)
    return path


def versions(base: str | os.PathLike) -> dict[int, str]:
    """The directories of all versions by their numbers, in ascending order."""
    found = {
        int(name): os.path.join(base, name)
        for name in os.listdir(base)
        if re.fullmatch("[0-9]+", name)
    }
    return dict(sorted(found.items()))


def check_blessing(manifest: Manifest, served: str | os.PathLike) -> None:
    """Compares the validation bits per dimension of a model with those of one being served.

    An equal value is good enough. A served model that says nothing of its own bits per dimension
    is nothing to compare with: everything may follow it.

    Args:
      manifest: of the new model.
      served: directory of the SavedModel that is being served.

    Raises:
      WorseModelError: if the new one has more bits per dimension, was not evaluated, or models
        another kind of images.
    """
    other = read_manifest(served)
    if other is None or METRIC not in other.metrics:
        return
    advice = "Publish it nevertheless with --allow_worse."
    theirs = other.metrics[METRIC]
    compared = f"The version being served, {os.fspath(served)!r}, has {theirs:.4f} bits per dim"
    if manifest.kind != other.kind:
        raise WorseModelError(
            f"{compared} of images of another kind: {other.kind} there, {manifest.kind} here. "
            f"They do not compare. {advice}"
        )
    if METRIC not in manifest.metrics:
        raise WorseModelError(
            f"{compared}, and there is no evaluation of step {manifest.step} to compare with it. "
            f"Run nvae-evaluate on the same workdir and checkpoint first. {advice}"
        )
    ours = manifest.metrics[METRIC]
    if not ours <= theirs:  # NaN is not either
        raise WorseModelError(
            f"{compared} on {_images(other)} (step {other.step}), the new one {ours:.4f} on "
            f"{_images(manifest)} (step {manifest.step}), which is worse. {advice}"
        )


def _images(manifest: Manifest) -> str:
    """On which images the metrics were measured."""
    number = manifest.metrics.get("num_images", "?")
    return f"{number} images of {manifest.metrics.get('split', '?')!r}"


@contextlib.contextmanager
def _turn(base: str) -> Iterator[None]:
    """Waits until nobody else publishes there. The system ends the turn of a killed process."""
    with open(os.path.join(base, _LOCK), "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("Waiting for another process that publishes to %s.", base)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(base: str) -> None:
    """Of killed publishers: one that lives would have the turn."""
    for name in os.listdir(base):
        if name.startswith((_UNFINISHED, _REMOVED)):
            shutil.rmtree(os.path.join(base, name))


def _remove_old(base: str, keep: int) -> None:
    for number, path in list(versions(base).items())[:-keep]:
        # Under its own name it would be there in part while its files go.
        removed = os.path.join(base, f"{_REMOVED}{number}")
        os.rename(path, removed)
        shutil.rmtree(removed)
