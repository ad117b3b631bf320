"""Exports a run for serving: `python -m export.export_model --workdir=DIR --export_base=BASE`.

The SavedModel appears as `BASE/<version>`, one more than the largest version there.
"""

from __future__ import annotations

from absl import app, flags, logging

from export.saved_model import export_model
from nvae_tf.workdir import load_model
from trainers.programs import define_checkpoint_flag, usage_errors, use_devices

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_CHECKPOINT = define_checkpoint_flag()
_EXPORT_BASE = flags.DEFINE_string(
    "export_base", None, "Directory whose sub-directories are versions.", required=True
)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        use_devices()
        logging.set_verbosity(logging.WARNING)
        version = export_model(load_model(_WORKDIR.value, _CHECKPOINT.value), _EXPORT_BASE.value)
    print(f"SavedModel with the signature `sample`: {version}")


def run() -> None:
    """Entry point of `nvae-export`."""
    app.run(main)


if __name__ == "__main__":
    run()
