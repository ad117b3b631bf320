"""Features of a data set's images, kept in a file for the next time."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Callable

import numpy as np
from absl import logging

from nvae_tf.evaluation.features import FeatureExtractor
from nvae_tf.evaluation.moments import Moments
from nvae_tf.files import write_atomically

MAX_KEPT_FEATURES = 10_000
_LAYOUT = 1  # of the file; one of another layout has another name


@dataclasses.dataclass(frozen=True)
class ReferenceFeatures:
    """What sample quality has to know of N real images."""

    moments: Moments  # of all images
    features: np.ndarray  # (min(N, 10 000), D) float32
    extractor_fingerprint: str


def reference_features(
    images: np.ndarray,
    extractor: FeatureExtractor,
    cache_dir: str | os.PathLike,
    batch_size: int = 100,
    after_batch: Callable[[int], None] | None = None,
) -> ReferenceFeatures:
    """Features of real images, from the cache if they are there.

    The moments are those of all images. Of more than 10 000 the features of as many are kept,
    chosen at random, always the same ones.

    The file is `features-KEY.npz`, KEY a hash of the images' bytes and shape and of the
    extractor's fingerprint, so that nothing ever has to be deleted by hand. A damaged file is
    computed and written again, with a warning in the log.

    Args:
      images: (N, h, w, C) uint8.
      extractor: of the features.
      cache_dir: directory of the files; it is made if need be.
      batch_size: images at a time.
      after_batch: called after each batch with its size, for progress; not if there is a file.

    Raises:
      ValueError: for images of another type or shape, or fewer than four, which precision and
        recall need.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 4:
        raise ValueError(
            "Reference images must be at least 4, (N, h, w, C) uint8; "
            f"received {images.shape} {images.dtype}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, received {batch_size}.")
    os.makedirs(cache_dir, exist_ok=True)
    path = os.path.join(cache_dir, f"features-{_key(images, extractor)}.npz")
    reference = _read(path, len(images), extractor)
    if reference is None:
        reference = _compute(images, extractor, batch_size, after_batch)
        _write(path, reference)
    return reference


def _key(images: np.ndarray, extractor: FeatureExtractor) -> str:
    facts = f"{_LAYOUT} {MAX_KEPT_FEATURES} {extractor.fingerprint} {images.shape} "
    digest = hashlib.sha256(facts.encode())
    for start in range(0, len(images), 1000):  # images in a mapped file need not fit into memory
        digest.update(np.ascontiguousarray(images[start : start + 1000]).data)
    return digest.hexdigest()[:32]


def _compute(
    images: np.ndarray,
    extractor: FeatureExtractor,
    batch_size: int,
    after_batch: Callable[[int], None] | None,
) -> ReferenceFeatures:
    # At random, because data sets may be sorted.
    order = np.random.default_rng(0).permutation(len(images))
    chosen = np.zeros(len(images), bool)
    chosen[order[:MAX_KEPT_FEATURES]] = True
    moments = Moments(extractor(images[:1]).shape[1])
    kept = []
    for start in range(0, len(images), batch_size):
        features = extractor(images[start : start + batch_size])
        moments.update(features)
        kept.append(features[chosen[start : start + batch_size]])
        if after_batch:
            after_batch(len(features))
    return ReferenceFeatures(moments, np.concatenate(kept), extractor.fingerprint)


def _write(path: str, reference: ReferenceFeatures) -> None:
    content = io.BytesIO()
    moments = reference.moments
    np.savez(
        content,
        count=moments.count,
        mean=moments.mean,
        scatter=moments.scatter,
        features=reference.features,
    )
    write_atomically(path, content.getvalue())


def _read(path: str, num_images: int, extractor: FeatureExtractor) -> ReferenceFeatures | None:
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        with np.load(content) as arrays:  # checks the sums of what it reads
            count, mean, scatter, features = (
                arrays[name] for name in ("count", "mean", "scatter", "features")
            )
        dimension, kept = len(mean), min(num_images, MAX_KEPT_FEATURES)
        if (
            count != num_images
            or scatter.shape != (dimension, dimension)
            or features.shape != (kept, dimension)
        ):
            raise ValueError(f"{count} images, features of shape {features.shape}")
    # What numpy and zipfile raise for damage; a file that may not be read is another matter.
    except (EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged, its features are computed again: %s", path, error)
        return None
    moments = Moments(dimension)
    moments.count, moments.mean, moments.scatter = int(count), mean, scatter
    return ReferenceFeatures(moments, features, extractor.fingerprint)
