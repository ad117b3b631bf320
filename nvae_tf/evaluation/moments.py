"""The mean and covariance of features, accumulated in parts, and the Frechet distance."""

from __future__ import annotations

import numpy as np
from absl import logging


class Moments:
    """An accumulator of the number, mean and scatter of vectors, in float64.

    Parts are merged by the pairwise update of Chan, Golub and LeVeque (1979; The American
    Statistician 37, 1983), which stays accurate when the mean is large. Batches and replicas may
    be merged in any order and partition; the result differs by float64 rounding only.

    Attributes:
      count: N, the number of vectors.
      mean: (D,).
      scatter: (D, D), the sum of (x - mean) (x - mean)^T over the vectors x.

    Args:
      dimension: D.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    def update(self, features: np.ndarray) -> None:
        """Adds vectors (N, D).

        Raises:
          ValueError: if the vectors do not have D finite numbers each.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"Features must be (N, {len(self.mean)}), received {features.shape}.")
        if not np.isfinite(features).all():
            raise ValueError("Features must be finite.")
        if len(features) == 0:
            return
        features = features.astype(np.float64)
        part = Moments(len(self.mean))
        part.count = len(features)
        part.mean = features.mean(axis=0)
        centered = features - part.mean
        part.scatter = centered.T @ centered
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Adds the vectors of `other`, which is not changed.

        Raises:
          ValueError: if the vectors of `other` have another dimension.
        """
        if len(other.mean) != len(self.mean):
            raise ValueError(
                f"Moments of {len(self.mean)} features cannot be merged with moments of "
                f"{len(other.mean)}."
            )
        if other.count == 0:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self.scatter = self.scatter + other.scatter
        self.scatter += np.outer(difference, difference) * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Returns the unbiased covariance (D, D).

        Raises:
          ValueError: if there are fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, received {self.count}.")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Computes the squared Frechet distance of two normal distributions with these moments.

    The distance is |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^1/2). For Inception features it is
    the FID (Heusel et al. 2017, arXiv 1706.08500, equation 6). The last trace is computed as the
    sum of the singular values of F1^T F2, where F F^T = C. They are real, whereas the eigenvalues
    of C1 C2 contain rounded zeros, whose square roots would add noise.

    With N <= D samples on either side a covariance is singular. The distance is still defined,
    but its estimate is far too large, so a warning is logged. Compare it only with distances from
    the same number of samples.

    Raises:
      ValueError: if the dimensions differ, or there are fewer than two samples on either side.
    """
    dimension = len(first.mean)
    if dimension != len(second.mean):
        raise ValueError(
            f"Moments of {dimension} features have no distance to moments of {len(second.mean)}."
        )
    first_covariance, second_covariance = first.covariance(), second.covariance()
    if min(first.count, second.count) <= dimension:
        logging.warning(
            "Frechet distance of %d and %d samples with %d features: it is strongly biased "
            "upwards, compare it only with distances of as many samples.",
            first.count,
            second.count,
            dimension,
        )
    product = _factor(first_covariance).T @ _factor(second_covariance)
    cross_trace = np.linalg.svd(product, compute_uv=False).sum()
    difference = first.mean - second.mean
    traces = np.trace(first_covariance) + np.trace(second_covariance)
    return max(0.0, float(difference @ difference + traces - 2 * cross_trace))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Returns a matrix F (D, D) with F F^T = covariance, a positive semi-definite matrix."""
    try:
        return np.linalg.cholesky(covariance)  # many times faster than the eigenvectors
    except np.linalg.LinAlgError:  # singular: not more samples than features, or constant ones
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))
