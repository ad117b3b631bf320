"""Features of a data set's images, cached in a file."""

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
_LAYOUT = 1  # version of the file's layout, which is part of the key in its name


@dataclasses.dataclass(frozen=True)
class ReferenceFeatures:
    """The features of N real images that sample quality compares with."""

    moments: Moments  # of all N images
    features: np.ndarray  # (min(N, 10 000), D) float32, of a random subset
    extractor_fingerprint: str


def reference_features(
    images: np.ndarray,
    extractor: FeatureExtractor,
    cache_dir: str | os.PathLike,
    batch_size: int = 100,
    after_batch: Callable[[int], None] | None = None,
) -> ReferenceFeatures:
    """Computes the features of real images, or reads them from the cache.

    The moments cover all images. Individual features are kept for at most 10 000 images, which
    are chosen at random with a fixed seed.

    The file is called `features-KEY.npz`, where KEY is a hash of the images' bytes and shape and
    of the extractor's fingerprint, so outdated files are never read. If the file is damaged, it
    is computed and written again, and a warning is logged.

    Args:
      images: (N, h, w, C) uint8.
      extractor: Computes the features.
      cache_dir: Directory of the files. It is created if necessary.
      batch_size: Number of images that are computed at a time.
      after_batch: Called with the batch's size after each batch, to show progress. It is not
        called if the features are read from the cache.

    Raises:
      ValueError: if the images have another type or shape, or are fewer than the four that
        precision and recall need.
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
    # The choice is random because data sets may be sorted.
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
        with np.load(content) as arrays:  # zipfile verifies the checksums
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
    # numpy and zipfile raise these for damage. An OSError, for lack of permission, is passed on.
    except (EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged, its features are computed again: %s", path, error)
        return None
    moments = Moments(dimension)
    moments.count, moments.mean, moments.scatter = int(count), mean, scatter
    return ReferenceFeatures(moments, features, extractor.fingerprint)
