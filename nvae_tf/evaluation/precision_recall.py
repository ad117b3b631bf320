"""Precision and recall of generated images, from nearest neighbours among their features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 2**22  # distances at a time: 32 MB
# Below this share of |x|^2 + |y|^2, the value of |x|^2 + |y|^2 - 2 x.y is nothing but rounding.
_ROUNDING = 1e-12


def precision_recall(
    real: np.ndarray, generated: np.ndarray, num_neighbours: int = 3
) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-3).

    Precision is the share of generated images within the manifold of the real ones, recall the
    share of real images within the manifold of the generated ones. A manifold is the union of
    balls around its images, each with the distance to the k-th nearest other image as its radius.
    Both depend on the number of images, so compare them only at the same N and M.

    Distances are computed in float64, in blocks of rows to bound the memory.

    Args:
      real: Features (N, D).
      generated: Features (M, D).
      num_neighbours: k.

    Returns:
      Precision and recall, both in [0, 1].

    Raises:
      ValueError: if the dimensions of the features differ, or either side has k features or fewer.
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
    # Subtracting a common mean reduces the rounding error.
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
    """Returns the squared distance (N,) of each vector (N, D) to its k-th nearest other vector."""
    radii = np.empty(len(features))
    for rows, squared in _squared_distances(features, features):
        squared[np.arange(len(squared)), np.arange(len(features))[rows]] = np.inf
        radii[rows] = np.partition(squared, num_neighbours - 1, axis=1)[:, num_neighbours - 1]
    return radii


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields squared distances (N, M) of vectors (N, D) and (M, D), in blocks of rows."""
    x_norms, y_norms = (np.einsum("nd,nd->n", v, v) for v in (x, y))
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = x_norms[rows, None] + y_norms
        squared = norms - 2 * (x[rows] @ y.T)
        squared[squared < _ROUNDING * norms] = 0  # equal images have equal features, exactly
        yield rows, squared
