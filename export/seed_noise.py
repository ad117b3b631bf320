"""The noise that a seed stands for, in NumPy alone: what `sample` draws, for `sample_tensors`.

A client of another runtime asks for the image of a seed with it. Nothing here imports TensorFlow.

#### References

Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011, for Philox4x32-10 and its
constants; Box and Muller, *A Note on the Generation of Random Normal Deviates*, 1958.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)
_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)  # TensorFlow's, for seeds
_SMALLEST = np.float32(1e-7)  # instead of zero, whose logarithm is infinite
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def noise_of_seed(seed: int, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns what the signature `sample` draws for a seed.

    Args:
      seed: From 0 to 2^63 - 1. Of the images that a client asks for at once, image i has the
        seed after i others.
      shapes: For each latent group, the shape (H_l, W_l, C_z): those of the inputs `noise_00`, ….

    Returns:
      Standard-normal arrays of these shapes, float32. They differ from TensorFlow's by a few units
      in the last place, since logarithm and sine are other implementations.

    Raises:
      ValueError: The seed is not allowed.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2^63, received {seed}.")
    return [_normal(_fold_in((seed, 0), group), shape) for group, shape in enumerate(shapes)]


def noise_inputs(seeds: Iterable[int], shapes: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Returns the inputs `noise_00`, … (B, H_l, W_l, C_z) of a portable signature.

    Args:
      seeds: One for each of B rows.
      shapes: As `noise_of_seed` takes them.

    Raises:
      ValueError: A seed is not allowed.
    """
    rows = [noise_of_seed(int(seed), shapes) for seed in seeds]
    return {f"noise_{group:02}": np.stack(values) for group, values in enumerate(zip(*rows))}


def _fold_in(seed: tuple[int, int], number: int) -> tuple[int, int]:
    """Does what `tf.random.experimental.stateless_fold_in` does with int64."""
    key, counter = _key_and_counter(seed)
    first = _philox(counter[None], key)[0].astype(np.uint64)
    return int(first[0] | first[1] << _HALF), number


def _normal(seed: tuple[int, int], shape: Sequence[int]) -> np.ndarray:
    """Does what `tf.random.stateless_normal` does on CPUs and GPUs."""
    size = math.prod(shape)
    key, start = _key_and_counter(seed)
    counters = np.tile(start, (-(-size // 4), 1))
    counters[:, 0] = np.arange(len(counters))  # a group has less than 2^34 values
    bits = _philox(counters, key).reshape(-1, 2)
    # The mantissas of numbers from 1 to 2.
    mantissas = (bits & np.uint32(0x7FFFFF)) | np.uint32(127 << 23)
    uniform = mantissas.view(np.float32) - np.float32(1)
    radius = np.sqrt(np.float32(-2) * np.log(np.maximum(uniform[:, 0], _SMALLEST)))
    angle = np.float32(2 * math.pi) * uniform[:, 1]
    pairs = np.stack([np.sin(angle) * radius, np.cos(angle) * radius], axis=1)
    return pairs.reshape(-1)[:size].reshape(shape)


def _key_and_counter(seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Does what TensorFlow does with a seed: key uint32 (2,), first counter uint32 (4,)."""
    words = [half & 0xFFFFFFFF for number in seed for half in (number, number >> 32)]
    mixed = _philox(np.array([words], np.uint32), _SCRAMBLING_KEY)[0]
    return mixed[:2], np.array([0, 0, mixed[2], mixed[3]], np.uint32)


def _philox(counters: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Returns Philox4x32-10 of counters uint32 (N, 4) with one key (2,): uint32 (N, 4)."""
    words = counters
    for turn in range(_ROUNDS):
        products = words[:, [0, 2]].astype(np.uint64) * _MULTIPLIERS
        high = (products >> _HALF).astype(np.uint32)
        low = (products & _LOW).astype(np.uint32)
        turned = key + np.uint32(turn) * _WEYL
        words = np.stack(
            [
                high[:, 1] ^ words[:, 1] ^ turned[0],
                low[:, 1],
                high[:, 0] ^ words[:, 3] ^ turned[1],
                low[:, 0],
            ],
            axis=1,
        )
    return words
