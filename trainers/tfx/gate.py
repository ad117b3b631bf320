"""Whether a model may be served in place of another: no more bits per dimension on the same images.

Both are measured as they would be served, by the `log_likelihood` signature of their SavedModels,
with the same draws. Numbers that the trainings reported would be of different images, once the
pipeline's examples have changed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import tensorflow as tf

from export.manifest import read_manifest
from nvae_tf.data import load_images
from nvae_tf.runs.workdir import Workdir

_BATCH = 100
_SIGNATURE = "log_likelihood"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was measured; `blessed` follows from it."""

    bits_per_dim: float  # of the candidate
    baseline_bits_per_dim: float | None  # None: there was no baseline
    num_images: int

    @property
    def blessed(self) -> bool:
        """Whether the candidate is finite, and no worse than the baseline."""
        if not math.isfinite(self.bits_per_dim):
            return False
        baseline = self.baseline_bits_per_dim
        return baseline is None or self.bits_per_dim <= baseline

    def to_json(self) -> str:
        """As text, `blessed` included."""
        return json.dumps({"blessed": self.blessed, **dataclasses.asdict(self)}, indent=2) + "\n"


def judge(model: str, run: str, baseline: str | None) -> Verdict:
    """Measures a model, and the one it would replace.

    Args:
      model: the candidate's SavedModel, from `run_fn`.
      run: the workdir of its training, whose held-out images both are measured on.
      baseline: the other SavedModel, from `run_fn` too; or None.

    Raises:
      ValueError: if the two do not predict the same thing, so that one number says nothing about
        the other, or a model has no `log_likelihood` signature.
    """
    if baseline:
        _check_comparable(model, baseline)
    config = Workdir(run).read_config()
    images = load_images(config.data, config.model, config.data.test_split)
    return Verdict(
        bits_per_dim=measured_bits_per_dim(model, images),
        baseline_bits_per_dim=measured_bits_per_dim(baseline, images) if baseline else None,
        num_images=len(images),
    )


def measured_bits_per_dim(saved_model: str, images: np.ndarray) -> float:
    """Mean of `bits_per_dim` over images (N, h, w, C) uint8, with one fixed draw each.

    Raises:
      ValueError: if the SavedModel has no signature `log_likelihood`.
    """
    loaded = tf.saved_model.load(saved_model)  # the signatures live no longer than it does
    if _SIGNATURE not in loaded.signatures:
        raise ValueError(
            f"{saved_model!r} cannot be measured: it has no signature {_SIGNATURE!r}, but "
            f"{', '.join(sorted(loaded.signatures)) or 'none'}."
        )
    bits = []
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        outputs = loaded.signatures[_SIGNATURE](
            image_bytes=tf.stack([tf.io.encode_png(image) for image in batch]),
            seed=tf.range(first, first + len(batch), dtype=tf.int64),
        )
        bits.append(outputs["bits_per_dim"].numpy())
    return float(np.concatenate(bits).mean(dtype=np.float64))


def _check_comparable(model: str, baseline: str) -> None:
    ours, theirs = map(_kind, (model, baseline))
    differences = [
        f"{name} {theirs[name]!r} there, {value!r} here"
        for name, value in ours.items()
        if value != theirs[name]
    ]
    if differences:
        raise ValueError(
            f"The model cannot be compared with the baseline {baseline!r}: it has "
            f"{'; '.join(differences)}. For other images start a pipeline of another name."
        )


def _kind(saved_model: str) -> dict[str, Any]:
    manifest = read_manifest(saved_model)
    if manifest is None:
        raise ValueError(f"{saved_model!r} has no manifest: trainers.tfx_module did not write it.")
    return manifest.kind
