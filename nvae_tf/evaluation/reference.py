"""Features of a data set's images, cached in a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable

import numpy as np
from absl import logging

from nvae_tf.data.storage import image_blocks
from nvae_tf.evaluation.features import FeatureExtractor
from nvae_tf.evaluation.moments import Moments
from nvae_tf.files import keep_arrays, read_arrays
from nvae_tf.fingerprints import sources_fingerprint

MAX_KEPT_FEATURES = 10_000
MIN_SAMPLES = 4  # that precision and recall need


@dataclasses.dataclass(frozen=True)
class ReferenceFeatures:
    """The features of N real images that sample quality compares with."""

    moments: Moments  # of all N images
    features: np.ndarray  # (min(N, 10 000), D) float32, of a random subset
    extractor_fingerprint: str
    images_sha256: str  # of shape and bytes of all N images


def reference_features(
    images: np.ndarray,
    extractor: FeatureExtractor,
    cache_dir: str | os.PathLike,
    batch_size: int = 100,
    after_batch: Callable[[int], None] | None = None,
    prepare: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> ReferenceFeatures:
    """Computes the features of real images, or reads them from the cache.

    The moments cover all images. Individual features are kept for at most 10 000 images, which
    are chosen at random with a fixed seed.

    The file is called `features-KEY.npz`, where KEY is a hash of the images' bytes and shape, of
    the extractor's fingerprint and of the library's sources, so outdated files are never read. If
    the file is damaged, it is computed and written again, and a warning is logged.

    Args:
      images: (N, h, w, C) uint8.
      extractor: Computes the features.
      cache_dir: Directory of the files, created if need be. If it cannot be written, that is
        logged, and the features are not kept.
      batch_size: Number of images that are computed at a time.
      after_batch: Called with the batch's size after each batch, to show progress. It is not
        called if the features are read from the cache.
      prepare: Makes of some images (B, h, w, C) uint8, and the number of the first of them, those
        that count; None: they count as they are.

    Raises:
      ValueError: if the images have another type or shape, or are fewer than the four that
        precision and recall need.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < MIN_SAMPLES:
        raise ValueError(
            f"Reference images must be at least {MIN_SAMPLES}, (N, h, w, C) uint8; "
            f"received {images.shape} {images.dtype}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, received {batch_size}.")
    rows = functools.partial(_rows, images, prepare)
    images_sha256 = _digest(images, rows)
    facts = f"{sources_fingerprint('nvae_tf')} {extractor.fingerprint} {images_sha256}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:32]
    path = os.path.join(cache_dir, f"features-{key}.npz")
    found = _read(path, len(images))
    if found is None:
        found = _compute(len(images), rows, extractor, batch_size, after_batch)
        _keep(path, *found)
    return ReferenceFeatures(*found, extractor.fingerprint, images_sha256)


def _rows(
    images: np.ndarray,
    prepare: Callable[[np.ndarray, int], np.ndarray] | None,
    chosen: slice,
) -> np.ndarray:
    """Returns some of the images; those in a mapped file need not all fit into memory."""
    some = images[chosen]
    return np.ascontiguousarray(prepare(some, chosen.start) if prepare else some)


def _digest(images: np.ndarray, rows: Callable[[slice], np.ndarray]) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    for block in image_blocks(images):
        digest.update(rows(block).data)
    return digest.hexdigest()


def _compute(
    count: int,
    rows: Callable[[slice], np.ndarray],
    extractor: FeatureExtractor,
    batch_size: int,
    after_batch: Callable[[int], None] | None,
) -> tuple[Moments, np.ndarray]:
    # The choice is random because data sets may be sorted.
    order = np.random.default_rng(0).permutation(count)
    chosen = np.zeros(count, bool)
    chosen[order[:MAX_KEPT_FEATURES]] = True
    moments = Moments(extractor(rows(slice(0, 1))).shape[1])
    kept = []
    for start in range(0, count, batch_size):
        features = extractor(rows(slice(start, start + batch_size)))
        moments.update(features)
        kept.append(features[chosen[start : start + batch_size]])
        if after_batch:
            after_batch(len(features))
    return moments, np.concatenate(kept)


def _keep(path: str, moments: Moments, features: np.ndarray) -> None:
    arrays = {"count": moments.count, "mean": moments.mean, "scatter": moments.scatter}
    keep_arrays(path, arrays | {"features": features})


def _read(path: str, num_images: int) -> tuple[Moments, np.ndarray] | None:
    arrays = read_arrays(path)
    if arrays is None:
        return None
    dimension, kept = len(arrays.get("mean", ())), min(num_images, MAX_KEPT_FEATURES)
    shapes = {
        "count": (),
        "mean": (dimension,),
        "scatter": (dimension, dimension),
        "features": (kept, dimension),
    }
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes or arrays["count"] != num_images:
        logging.warning("%s is damaged, so it is computed again: it holds %s", path, found)
        return None
    moments = Moments(dimension)
    moments.count = int(arrays["count"])
    moments.mean, moments.scatter = arrays["mean"], arrays["scatter"]
    return moments, arrays["features"]
