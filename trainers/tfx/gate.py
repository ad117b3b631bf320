"""The gate before serving: a new model must not have more bits per dimension than the baseline.

Both models are measured as they would be served, by the `log_likelihood` signature of their
SavedModels, on the same images and with the same draws. The numbers that their trainings reported
would not be comparable if the pipeline's examples have changed in between.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from export.manifest import read_manifest
from nvae_tf.data import load_images
from nvae_tf.files import to_json
from nvae_tf.runs.workdir import Workdir

_BATCH = 100
_SIGNATURE = "log_likelihood"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The measurements of a new model and its baseline, and the decision that follows.

    Attributes:
      bits_per_dim: Bits per dimension of the new model.
      baseline_bits_per_dim: Those of the baseline; None if there was none.
      num_images: Number of held-out images.
    """

    bits_per_dim: float
    baseline_bits_per_dim: float | None
    num_images: int

    @property
    def blessed(self) -> bool:
        """True if the new model's bits per dimension are finite and not above the baseline's.

        Every finite model is better than a baseline without finite ones.
        """
        if not math.isfinite(self.bits_per_dim):
            return False
        baseline = self.baseline_bits_per_dim
        return baseline is None or not math.isfinite(baseline) or self.bits_per_dim <= baseline

    def to_json(self) -> str:
        """Returns the fields and `blessed` as JSON text."""
        return to_json({"blessed": self.blessed, **dataclasses.asdict(self)})


def compare_with_baseline(model: str, run: str, baseline: str | None) -> Verdict:
    """Measures a new model and its baseline on the same held-out images.

    Args:
      model: The new SavedModel, written by `run_fn`.
      run: The workdir of its training, which gives the held-out images.
      baseline: The SavedModel that would be replaced, also written by `run_fn`; or None.

    Raises:
      ValueError: if the models' images differ in shape, padding, likelihood or bits, so that their
        bits per dimension are not comparable, or a model has no `log_likelihood` signature.
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
    """Returns a SavedModel's mean bits per dimension, from one draw with a fixed seed per image.

    Args:
      saved_model: Directory of the SavedModel.
      images: (N, h, w, C) uint8.

    Raises:
      ValueError: if the SavedModel has no signature `log_likelihood`, or does not take an image.
    """
    loaded = tf.saved_model.load(saved_model)  # kept, because the signatures do not keep it alive
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
        for error in filter(None, outputs["error"].numpy()):
            raise ValueError(f"{saved_model!r} does not take a held-out image: {error.decode()}")
        bits.append(outputs["bits_per_dim"].numpy())
    return float(np.concatenate(bits).mean(dtype=np.float64))


def _check_comparable(model: str, baseline: str) -> None:
    ours, theirs = map(_image_format, (model, baseline))
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


def _image_format(saved_model: str) -> dict[str, Any]:
    manifest = read_manifest(saved_model)
    if manifest is None:
        raise ValueError(f"{saved_model!r} has no manifest: trainers.tfx_module did not write it.")
    return manifest.image_format
