"""Functions that XLA compiles, for long chains of elementwise operations.

TensorFlow computes such a chain operation by operation, and on a CPU each of them reads and writes
the whole memory again. A compiled function passes over its data once or twice. Convolutions stay
outside: XLA's are several times slower on CPUs. So do exported signatures, for a server need not
have a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of tensors one that is compiled, once for each of their shapes."""
    return tf.function(function, autograph=False, jit_compile=True)
