"""Exports a run for serving: `python -m export.export_model --workdir=DIR --export_base=BASE`.

The SavedModel appears as `BASE/<version>`, whole: it is written aside and renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import keras
from absl import app, flags, logging

from export.signatures import make_sample
from nvae_tf.model import NVAE
from nvae_tf.workdir import load_model
from trainers.programs import usage_errors, use_devices

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_EXPORT_BASE = flags.DEFINE_string(
    "export_base", None, "Directory whose sub-directories are versions.", required=True
)


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
    temporary = tempfile.mkdtemp(prefix=".writing-", dir=base)
    try:
        archive.write_out(temporary, verbose=False)
        version = os.path.join(base, str(next_version(base)))
        os.chmod(temporary, 0o755)
        os.rename(temporary, version)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def next_version(base: str | os.PathLike) -> int:
    """One more than the largest version below the directory; 1 if there is none."""
    return max((int(name) for name in os.listdir(base) if name.isdigit()), default=0) + 1


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        use_devices()
        logging.set_verbosity(logging.WARNING)
        version = export_model(load_model(_WORKDIR.value), _EXPORT_BASE.value)
    print(f"SavedModel with the signature `sample`: {version}")


def run() -> None:
    """Entry point of `nvae-export`."""
    app.run(main)


if __name__ == "__main__":
    run()
