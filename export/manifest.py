"""What a SavedModel says about where it comes from: `assets.extra/nvae_manifest.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.files import write_atomically
from nvae_tf.runs.checkpoint_files import checkpoint_step
from nvae_tf.runs.workdir import Workdir

EXTRA = "assets.extra"  # which loaders ignore, and servers keep beside the model
_FILE = "nvae_manifest.json"
_KIND = ("image_shape", "padding", "likelihood", "num_x_bits")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Where a SavedModel comes from.

    `write_saved_model` fills in the last three fields.
    """

    config: Mapping[str, Any]  # of the run, as its config.json has it
    step: int  # of the checkpoint
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # empty: not evaluated
    signatures: tuple[str, ...] = ()
    precision: str = ""
    software: Mapping[str, str] = dataclasses.field(default_factory=dict)  # versions by name

    @classmethod
    def of(
        cls, config: ExperimentConfig, step: int, metrics: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Of a model that was trained with that configuration for so many steps."""
        return cls(json.loads(config.to_json()), step, metrics or {})

    @property
    def kind(self) -> dict[str, Any]:
        """Of which images it is a model: bits per dimension of other ones are another thing."""
        return {name: self.config["model"][name] for name in _KIND}


def run_manifest(workdir: Workdir, which: str = "latest") -> Manifest:
    """Of a run's checkpoint, with the metrics of its newest evaluation at that step, if any.

    Args:
      workdir: of the run.
      which: `"latest"` or `"best"`; for the best, `evaluation_best.json` is looked at first.

    Raises:
      FileNotFoundError: if no run was started there, or it has no such checkpoint yet.
    """
    config = workdir.read_config()
    checkpoint = workdir.checkpoint(which)
    if checkpoint is None:
        raise FileNotFoundError(f"The run in {workdir.path!r} has no {which} checkpoint yet.")
    step = checkpoint_step(checkpoint)
    files = [workdir.evaluation]
    if which == "best":
        files.insert(0, workdir / "evaluation_best.json")
    return Manifest.of(config, step, _metrics(files, step))


def _metrics(files: list[str], step: int) -> dict[str, Any]:
    """The numbers and words of the first evaluation at that step; no lists."""
    for path in files:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                evaluation = json.load(file)
            if evaluation.pop("step", None) == step:
                return {k: v for k, v in evaluation.items() if isinstance(v, (int, float, str))}
    return {}


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Writes it into a SavedModel's directory, with the versions of the software of the moment."""
    os.makedirs(os.path.join(directory, EXTRA), exist_ok=True)
    fields = dataclasses.asdict(manifest) | {"software": _software()}
    text = json.dumps(fields, indent=2) + "\n"
    write_atomically(os.path.join(directory, EXTRA, _FILE), text)


def read_manifest(directory: str | os.PathLike) -> Manifest | None:
    """The manifest of a SavedModel, or None if it has none.

    Raises:
      ValueError: if it has one that cannot be read.
    """
    path = os.path.join(directory, EXTRA, _FILE)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        return Manifest(**(fields | {"signatures": tuple(fields["signatures"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path!r} is not a manifest of this package: {error!r}") from error


def _software() -> dict[str, str]:
    try:
        package = metadata.version("nvae-tf")
    except metadata.PackageNotFoundError:
        package = "not installed"
    return {
        "nvae_tf": package,
        "nvae_tf_sources": _fingerprint(pathlib.Path(__file__).parents[1], "nvae_tf", "export"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _fingerprint(root: pathlib.Path, *packages: str) -> str:
    """Of the packages' sources: the same text has the same one, with or without git."""
    digest = hashlib.sha256()
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
