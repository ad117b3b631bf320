"""Publishing of versions in a directory that a server watches; they appear and vanish complete.

The versions are `BASE/<integer>`. All other names in BASE begin with a dot, so servers ignore them.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Sequence

from absl import logging

from export.manifest import Manifest, read_manifest
from export.portable_names import PORTABLE_NAMES
from export.saved_model import write_saved_model
from nvae_tf.files import locked
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import first_not_finite

METRIC = "negative_elbo_bits_per_dim"
_DIGEST = "images_sha256"  # of the images on which it was measured
_LOCK = ".lock"
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


class WorseModelError(ValueError):
    """A refusal to publish a model that is worse than the served one, or cannot be compared."""


def publish(
    model: NVAE,
    base: str | os.PathLike,
    manifest: Manifest,
    keep_versions: int | None = None,
    allow_worse: bool = False,
    write: Callable[[NVAE, str, Manifest], None] | None = None,
    index: Callable[[str, Sequence[int]], None] | None = None,
) -> str:
    """Writes a model as the next version in a directory, which is created if necessary.

    A version is written under another name and then renamed, so readers of the directory see it
    complete or not at all, even if this process is killed. Concurrent publishers wait for each
    other.

    Args:
      model: The model, in the precision in which it is served.
      base: Directory of the versions.
      manifest: The model's manifest, from `manifest_of`.
      keep_versions: Number of the newest versions to keep, including this one; None for all.
      allow_worse: Whether to skip `check_blessing`.
      write: Writes the version's files, such as `write_onnx`; None: `write_saved_model`.
      index: Brings up to date what lists the versions, such as `update_repository`, given the base
        and the numbers of those that are kept. The new version is there then, and the old ones are.

    Returns:
      The version's directory.

    Raises:
      WorseModelError: if `check_blessing` refuses the model. No version is written then.
      ValueError: if `keep_versions` is below 1, or a weight is not finite.
      NotADirectoryError: if the base is a file.
    """
    if keep_versions is not None and keep_versions < 1:
        raise ValueError(f"keep_versions must be at least 1, received {keep_versions}.")
    if wrong := first_not_finite(model.variables):
        raise ValueError(f"The values of {wrong} are not finite: nothing was exported.")
    base = os.fspath(base)
    if os.path.exists(base) and not os.path.isdir(base):
        raise NotADirectoryError(f"The export base {base!r} is not a directory.")
    os.makedirs(base, exist_ok=True)
    with locked(os.path.join(base, _LOCK), f"publishes to {base}"):
        _remove_leftovers(base)
        present = versions(base)
        if present and not allow_worse:
            check_blessing(manifest, present[max(present)])
        version = max(_numbers(base), default=0) + 1  # a name that nothing else has
        path = os.path.join(base, str(version))
        unfinished = os.path.join(base, f"{_UNFINISHED}{version}")
        try:
            (write or write_saved_model)(model, unfinished, manifest)
            os.rename(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        kept = list(versions(base))[-(keep_versions or 0) :]  # without a number, all
        if index:
            index(base, kept)
        _remove_old(base, kept)
    return path


def versions(base: str | os.PathLike) -> dict[int, str]:
    """Returns the directories of all versions by number, in ascending order.

    Files and links are no versions, whatever their names.
    """
    paths = {number: os.path.join(base, name) for number, name in _numbers(base).items()}
    real = {
        n: path for n, path in paths.items() if os.path.isdir(path) and not os.path.islink(path)
    }
    return dict(sorted(real.items()))


def _numbers(base: str | os.PathLike) -> dict[int, str]:
    return {int(name): name for name in os.listdir(base) if re.fullmatch("[0-9]+", name)}


def check_blessing(manifest: Manifest, served: str | os.PathLike) -> None:
    """Compares the validation bits per dimension of a new model with those of the served one.

    Equal values pass. If the served model's manifest has no bits per dimension, or none that are
    finite, every model passes.

    Args:
      manifest: The new model's manifest.
      served: Directory of the SavedModel that is being served.

    Raises:
      WorseModelError: if the new model has more bits per dimension, was not evaluated, has another
        image format, or was evaluated on other images.
    """
    other = read_manifest(served)
    if other is None or not math.isfinite(other.metrics.get(METRIC, math.nan)):
        return
    advice = "Publish it nevertheless with --allow_worse."
    theirs = other.metrics[METRIC]
    compared = f"The version being served, {os.fspath(served)!r}, has {theirs:.4f} bits per dim"
    if manifest.image_format != other.image_format:
        raise WorseModelError(
            f"{compared} of images of another kind: {other.image_format} there, "
            f"{manifest.image_format} here. They do not compare. {advice}"
        )
    if METRIC not in manifest.metrics:
        raise WorseModelError(
            f"{compared}, and there is no evaluation of step {manifest.step} to compare with it. "
            f"Run nvae-evaluate on the same workdir and checkpoint first. {advice}"
        )
    digests = {m.metrics.get(_DIGEST, "") for m in (manifest, other)}
    others = len(digests) > 1 and "" not in digests
    if others or _images(manifest) != _images(other):
        raise WorseModelError(
            f"{compared} on {_images(other)}, the new one was evaluated on "
            f"{'other ' if others else ''}{_images(manifest)}. "
            f"They do not compare. Run nvae-evaluate on the same images first. {advice}"
        )
    ours = manifest.metrics[METRIC]
    if not ours <= theirs:  # true for NaN as well
        raise WorseModelError(
            f"{compared} on {_images(other)} (step {other.step}), the new one {ours:.4f} on "
            f"{_images(manifest)} (step {manifest.step}), which is worse. {advice}"
        )


def check_files(base: str | os.PathLike, onnx: bool) -> None:
    """Checks that a directory's newest version has files for the same servers.

    Args:
      base: Directory of versions, which need not exist.
      onnx: Whether ONNX files are to be published, and not a SavedModel.

    Raises:
      ValueError: It has the others.
    """
    present = versions(base) if os.path.isdir(base) else {}
    others = "saved_model.pb" if onnx else f"{PORTABLE_NAMES[0]}.onnx"
    if present and os.path.exists(os.path.join(present[max(present)], others)):
        there, here = ("SavedModels", "ONNX files") if onnx else ("ONNX files", "SavedModels")
        raise ValueError(
            f"{os.fspath(base)!r} has {there}, which other servers read than {here}: choose "
            "another directory."
        )


def _images(manifest: Manifest) -> str:
    """Returns a phrase for the images on which the metrics were measured."""
    number = manifest.metrics.get("num_images", "?")
    return f"{number} images of {manifest.metrics.get('split', '?')!r}"


def _remove_leftovers(base: str) -> None:
    """Removes unfinished directories. Their publishers were killed, because the lock is ours."""
    for name in os.listdir(base):
        if name.startswith((_UNFINISHED, _REMOVED)):
            _remove(os.path.join(base, name))


def _remove(path: str) -> None:
    """Removes a directory. One that cannot be removed is in nobody's way, so that is a warning."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        logging.warning("Could not remove %s: %s", path, error)


def _remove_old(base: str, kept: Sequence[int]) -> None:
    for number, path in versions(base).items():
        if number in kept:
            continue
        # Under its own name the version would be visible while its files are removed.
        removed = os.path.join(base, f"{_REMOVED}{number}")
        try:
            os.rename(path, removed)
        except OSError as error:
            logging.warning("Could not remove version %d: %s", number, error)
            continue
        _remove(removed)
