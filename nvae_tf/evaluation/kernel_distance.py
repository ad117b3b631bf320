"""The kernel inception distance (KID)."""

from __future__ import annotations

import numpy as np


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the unbiased squared MMD with the kernel (x.y / D + 1)^3, over random subsets.

    See Binkowski et al. 2018 (arXiv 1801.01401, section 4). The distance may be negative. For two
    samples of the same distribution its expectation is 0, whatever their size.

    Args:
      real: Features (N, D).
      generated: Features (M, D).
      num_subsets: Number of pairs of subsets. Each subset is drawn without replacement. If both
        subsets hold all features, a single pair is used.
      subset_size: Number of features in each subset, at most min(N, M).
      seed: Seed of the random subsets.

    Returns:
      The mean and the (population) standard deviation over the pairs of subsets.

    Raises:
      ValueError: if the dimensions of the features differ, or a subset would have fewer than two
        features.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"Features must be (N, D) and (M, D), received {real.shape} and {generated.shape}."
        )
    size = min(subset_size, len(real), len(generated))
    if size < 2 or num_subsets < 1:
        raise ValueError(
            "A kernel distance needs at least 1 subset of at least 2 samples, received "
            f"{len(real)} and {len(generated)} samples, num_subsets={num_subsets} and "
            f"subset_size={subset_size}."
        )
    if size == len(real) == len(generated):
        num_subsets = 1
    rng = np.random.default_rng(seed)
    distances = [
        _unbiased_squared_mmd(_subset(real, size, rng), _subset(generated, size, rng))
        for _ in range(num_subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def _subset(features: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.choice(len(features), size, replace=False, shuffle=False)
    return features[chosen].astype(np.float64)


def _unbiased_squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the unbiased squared MMD of two subsets (m, D).

    It is the mean kernel within each subset, without the diagonal, minus twice the mean across.
    """
    size = len(x)
    within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (size * (size - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
