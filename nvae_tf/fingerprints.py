"""Hashes that tell weights, arrays and sources apart, and names of what depends on them."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable

import keras
import numpy as np


def variables_fingerprint(variables: Iterable[keras.Variable]) -> str:
    """Returns a hash of the variables' paths and values, in hexadecimal digits."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.path.encode())
        digest.update(np.ascontiguousarray(variable.numpy()).data)
    return digest.hexdigest()


def array_fingerprint(array: np.ndarray) -> str:
    """Returns a hash of an array's shape, type and values, in hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def sources_fingerprint(*directories: str) -> str:
    """Returns a hash of the source files below directories of this project, 16 hexadecimal digits.

    It does not depend on git.

    Args:
      *directories: Their paths, such as `"nvae_tf"`.
    """
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(
        path for directory in directories for path in (root / directory).rglob("*.py")
    ):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def result_path(
    directory: str | os.PathLike, variables: Iterable[keras.Variable], *facts: object
) -> str:
    """Returns the path of the file that keeps a result, so that none is taken for another.

    Its name is a hash of the weights, of the facts, and of the library's sources.

    Args:
      directory: The directory of such results.
      variables: The variables whose values the result depends on.
      *facts: All else that it depends on, as objects whose `repr` says all of them.
    """
    facts = (sources_fingerprint("nvae_tf"), variables_fingerprint(variables), *facts)
    return os.path.join(directory, f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.npz")
