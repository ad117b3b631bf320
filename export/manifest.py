"""The manifest in which a version records its origin: `assets.extra/nvae_manifest.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.files import read_json, write_atomically
from nvae_tf.fingerprints import sources_fingerprint
from nvae_tf.model.pretrained import package_version
from nvae_tf.runs.load import TrainedModel

EXTRA = "assets.extra"  # a directory that loaders ignore, and servers keep beside the model
_FILE = "nvae_manifest.json"
_IMAGE_FORMAT = ("image_shape", "padding", "likelihood", "num_x_bits")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The origin of a SavedModel: its run's configuration, step and metrics, and the software.

    Whoever writes the files fills in the last three fields.
    """

    config: Mapping[str, Any]  # the run's configuration, as in its config.json
    step: int  # the checkpoint's step
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # empty: not evaluated
    signatures: tuple[str, ...] = ()
    precision: str = ""
    software: Mapping[str, str] = dataclasses.field(default_factory=dict)  # versions by name

    @classmethod
    def of(
        cls, config: ExperimentConfig, step: int, metrics: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Returns the manifest of a model that was trained with `config` for `step` steps."""
        return cls(json.loads(config.to_json()), step, metrics or {})

    @property
    def image_format(self) -> dict[str, Any]:
        """The fields that must be equal for two models' bits per dimension to be comparable."""
        return {name: self.config["model"][name] for name in _IMAGE_FORMAT}


def manifest_of(trained: TrainedModel) -> Manifest:
    """Returns the manifest of a trained model, with the numbers and strings of its evaluation."""
    numbers = {k: v for k, v in trained.evaluation.items() if isinstance(v, (int, float, str))}
    return Manifest.of(trained.config, trained.step, numbers)


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Writes a manifest, with the current software versions, into a SavedModel's directory."""
    os.makedirs(os.path.join(directory, EXTRA), exist_ok=True)
    fields = dataclasses.asdict(manifest) | {"software": _software()}
    text = json.dumps(fields, indent=2) + "\n"
    write_atomically(os.path.join(directory, EXTRA, _FILE), text)


def read_manifest(directory: str | os.PathLike) -> Manifest | None:
    """Reads the manifest of a SavedModel; returns None if it has none.

    Raises:
      ValueError: if the manifest is damaged or was not written by this package.
    """
    path = os.path.join(directory, EXTRA, _FILE)
    if not os.path.exists(path):
        return None
    try:
        fields = read_json(path)
        manifest = Manifest(**(fields | {"signatures": tuple(fields["signatures"])}))
        kinds = (manifest.config, dict), (manifest.metrics, dict), (manifest.step, int)
        wrong = [value for value, kind in kinds if not isinstance(value, kind)]
        if wrong or not manifest.image_format:
            raise TypeError(f"{wrong} of a wrong kind")
        return manifest
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path!r} is not a manifest of this package: {error!r}") from error


def _software() -> dict[str, str]:
    return {
        "nvae_tf": package_version(),
        "nvae_tf_sources": sources_fingerprint("nvae_tf", "export"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
