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
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, over random subsets.

    Binkowski et al. 2018 (arXiv 1801.01401, section 4). It may be negative; for two samples of
    one distribution its expectation is 0, however few they are.

    Args:
      real: features (N, D).
      generated: features (M, D).
      num_subsets: how many pairs of subsets, drawn without replacement within each. If the
        subsets are everything there is, they are all the same, so one is enough.
      subset_size: images in each subset; min(N, M) where that is smaller.
      seed: of the subsets.

    Returns:
      Mean and standard deviation (of the population) over the subsets.

    Raises:
      ValueError: for features of different dimensions, or fewer than two on either side or in a
        subset.
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
    """Of two subsets (m, D): mean kernel within each, diagonals left out, less that across."""
    size = len(x)
    within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (size * (size - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
