"""SavedModels in versioned directories, which appear whole: written aside, then renamed."""

from __future__ import annotations

import os

import keras

from export.signatures import make_sample
from nvae_tf.files import new_directory
from nvae_tf.model import NVAE


def export_model(model: NVAE, base: str | os.PathLike) -> str:
    """Writes the model as the next version below a directory, which is created if need be.

    Returns:
      The version's directory.

    Raises:
      ValueError: if the base is a file.
    """
    base = os.fspath(base)
    if os.path.exists(base) and not os.path.isdir(base):
        raise ValueError(f"The export base {base!r} is not a directory.")
    os.makedirs(base, exist_ok=True)
    archive = keras.export.ExportArchive()
    archive.track(model)
    sample = make_sample(model)
    archive.add_endpoint("sample", sample)
    version = os.path.join(base, str(next_version(base)))
    with new_directory(version) as temporary:
        archive.write_out(temporary, verbose=False)
    return version


def next_version(base: str | os.PathLike) -> int:
    """One more than the largest version below the directory; 1 if there is none."""
    return max((int(name) for name in os.listdir(base) if name.isdigit()), default=0) + 1
