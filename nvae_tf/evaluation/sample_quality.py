"""The quality of generated images: FID, KID, precision and recall. See docs/evaluation.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from nvae_tf.evaluation.features import FeatureExtractor
from nvae_tf.evaluation.kernel_distance import kernel_distance
from nvae_tf.evaluation.moments import Moments, frechet_distance
from nvae_tf.evaluation.precision_recall import precision_recall
from nvae_tf.evaluation.reference import MAX_KEPT_FEATURES, MIN_SAMPLES, ReferenceFeatures


@dataclasses.dataclass(frozen=True)
class SampleQualityResult:
    """The distances of generated images from real ones, with everything that they depend on.

    Two results are comparable only if the fingerprint, the hash of the real images and all numbers
    of images are the same.

    Attributes:
      features: Name of the feature extractor.
      features_fingerprint: SHA-256 of the feature extractor.
      real_sha256: SHA-256 of the real images, with the values that generated ones can have.
      num_real: Real images in the FID.
      num_generated: Generated images in the FID.
      num_real_kept: Real images in KID, precision and recall.
      num_generated_kept: Generated images in KID, precision and recall.
      seed: Seed of KID's random subsets.
      fid: Fréchet distance.
      kid: Kernel distance, the mean over its subsets.
      kid_standard_deviation: The kernel distance's standard deviation over its subsets.
      precision: Share of generated images that lie among the real ones.
      recall: Share of real images that lie among the generated ones.
    """

    features: str
    features_fingerprint: str
    real_sha256: str
    num_real: int
    num_generated: int
    num_real_kept: int
    num_generated_kept: int
    seed: int
    fid: float
    kid: float
    kid_standard_deviation: float
    precision: float
    recall: float


def sample_quality(
    reference: ReferenceFeatures,
    generated: Iterable[np.ndarray],
    extractor: FeatureExtractor,
    seed: int = 0,
    after_batch: Callable[[int], None] | None = None,
) -> SampleQualityResult:
    """Measures how close generated images are to real ones.

    The FID covers all images. KID, precision and recall compare the individual features in the
    reference with those of the first 10 000 generated images.

    Args:
      reference: Features of the real images, computed by the same extractor.
      generated: Batches (B, h, w, C) uint8.
      extractor: Computes the features of the generated images.
      seed: Seed of KID's random subsets.
      after_batch: Called with the batch's size after each batch, to show progress.

    Raises:
      ValueError: if another extractor computed the reference, or there are fewer generated images
        than the four that precision and recall need.
    """
    if reference.extractor_fingerprint != extractor.fingerprint:
        raise ValueError(
            "Reference and generated images need the same features: the reference has those of "
            f"{reference.extractor_fingerprint}, {extractor.name} is {extractor.fingerprint}."
        )
    moments = Moments(len(reference.moments.mean))
    kept: list[np.ndarray] = []
    for images in generated:
        features = extractor(images)
        if moments.count < MAX_KEPT_FEATURES:
            # A copy, for a view would keep the whole batch.
            kept.append(features[: MAX_KEPT_FEATURES - moments.count].copy())
        moments.update(features)
        if after_batch:
            after_batch(len(features))
    if moments.count < MIN_SAMPLES:
        raise ValueError(
            f"Sample quality needs at least {MIN_SAMPLES} generated images, received "
            f"{moments.count}."
        )
    kept_features = np.concatenate(kept)
    kid, kid_standard_deviation = kernel_distance(reference.features, kept_features, seed=seed)
    precision, recall = precision_recall(reference.features, kept_features)
    return SampleQualityResult(
        features=extractor.name,
        features_fingerprint=extractor.fingerprint,
        real_sha256=reference.images_sha256,
        num_real=reference.moments.count,
        num_generated=moments.count,
        num_real_kept=len(reference.features),
        num_generated_kept=len(kept_features),
        seed=seed,
        fid=frechet_distance(reference.moments, moments),
        kid=kid,
        kid_standard_deviation=kid_standard_deviation,
        precision=precision,
        recall=recall,
    )
