"""Exports a run for serving: `nvae-export --workdir=DIR --export_base=BASE`.

The model appears as `BASE/<version>`, where the version is one above the largest in BASE.
"""

from __future__ import annotations

import pathlib
import time

from absl import app, flags

from export.manifest import manifest_of, read_manifest
from export.onnx_files import check_installed, write_onnx
from export.publish import check_files, publish
from export.triton_repository import update_existing, update_repository
from nvae_tf.command_line import define_model_flags, log_warnings_only, usage_errors, use_devices
from nvae_tf.config import PRECISIONS

# What writes a version's files, and what lists the versions.
_FORMATS = {
    "saved_model": (None, None),
    "onnx": (write_onnx, update_existing),
    "triton": (write_onnx, update_repository),
}
_find_model = define_model_flags()
_EXPORT_BASE = flags.DEFINE_string(
    "export_base", None, "Directory whose sub-directories are the versions.", required=True
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "saved_model",
    list(_FORMATS),
    "saved_model, for TensorFlow Serving; onnx, files of the portable signatures, for ONNX "
    "Runtime and others (extra onnx); or triton, these files and BASE/triton, a model repository.",
)
_KEEP_VERSIONS = flags.DEFINE_integer(
    "keep_versions", None, "Number of the newest versions to keep; default: all.", lower_bound=1
)
_ALLOW_WORSE = flags.DEFINE_bool(
    "allow_worse",
    False,
    "Publish even if the newest version has fewer validation bits per dimension, or if the two "
    "cannot be compared.",
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "Precision of the served model, independent of the precision in training.",
)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        start = time.perf_counter()
        use_devices()
        log_warnings_only()
        write, index = _FORMATS[_FORMAT.value]
        if write:
            if _PRECISION.value != "float32":
                raise ValueError(f"--format={_FORMAT.value} is in float32; leave --precision out.")
            check_installed()
        check_files(_EXPORT_BASE.value, onnx=write is not None)
        trained = _find_model()
        version = publish(
            trained.load(_PRECISION.value),
            _EXPORT_BASE.value,
            manifest_of(trained),
            _KEEP_VERSIONS.value,
            _ALLOW_WORSE.value,
            write,
            index,
        )
        written = read_manifest(version)
    assert written
    size = sum(path.stat().st_size for path in pathlib.Path(version).rglob("*") if path.is_file())
    print(
        f"{version}: step {written.step}, {written.precision}, {size / 1e6:.1f} MB, "
        f"{time.perf_counter() - start:.1f} s; signatures {', '.join(written.signatures)}"
    )


def run() -> None:
    """Entry point of `nvae-export`."""
    app.run(main)


if __name__ == "__main__":
    run()
