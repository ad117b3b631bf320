"""Precision and recall of generated images, by nearest neighbours among their features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 2**22  # distances at a time: 32 MB
# Relative to |x|^2 + |y|^2: below this the rounding of |x|^2 + |y|^2 - 2 x.y is all there is.
_ROUNDING = 1e-12


def precision_recall(
    real: np.ndarray, generated: np.ndarray, num_neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1-3).

    Precision is the share of generated images within the manifold of the real ones, recall the
    share of real images within the manifold of the generated ones. A manifold is the union of
    balls around its images, each up to the k-th nearest neighbour among the others. Both depend
    on the number of images: compare only with the same N and M.

    Distances are computed in blocks of rows, in float64, so that memory stays bounded.

    Args:
      real: features (N, D).
      generated: features (M, D).
      num_neighbours: k.

    Raises:
      ValueError: for features of different dimensions, or not more than k on either side.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"Features must be (N, D) and (M, D), received {real.shape} and {generated.shape}."
        )
    if num_neighbours < 1 or min(len(real), len(generated)) <= num_neighbours:
        raise ValueError(
            "Precision and recall need at least 1 neighbour and more samples than neighbours, "
            f"received {len(real)} and {len(generated)} samples, {num_neighbours} neighbours."
        )
    # Without their common mean, less is lost to rounding.
    center = real.mean(axis=0, dtype=np.float64)
    real, generated = real - center, generated - center
    real_radii = _squared_radii(real, num_neighbours)
    generated_radii = _squared_radii(generated, num_neighbours)
    precise = np.zeros(len(generated), bool)
    recalled = 0
    for rows, squared in _squared_distances(real, generated):
        precise |= (squared <= real_radii[rows, None]).any(axis=0)
        recalled += int((squared <= generated_radii).any(axis=1).sum())
    return float(precise.mean()), recalled / len(real)


def _squared_radii(features: np.ndarray, num_neighbours: int) -> np.ndarray:
    """(N,) squared distances of vectors (N, D) to their k-th nearest among the others."""
    radii = np.empty(len(features))
    for rows, squared in _squared_distances(features, features):
        squared[np.arange(len(squared)), np.arange(len(features))[rows]] = np.inf
        radii[rows] = np.partition(squared, num_neighbours - 1, axis=1)[:, num_neighbours - 1]
    return radii


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of the matrix of squared distances (N, M) of vectors (N, D) and (M, D)."""
    x_norms, y_norms = (np.einsum("nd,nd->n", v, v) for v in (x, y))
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = x_norms[rows, None] + y_norms
        squared = norms - 2 * (x[rows] @ y.T)
        squared[squared < _ROUNDING * norms] = 0  # equal images have equal features, exactly
        yield rows, squared
