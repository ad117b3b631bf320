"""Damage to files and messages, as disks, networks and people do it."""

from __future__ import annotations

import re

import numpy as np

_NUMBERS = (b"-1", b"0", b"1e309", b"NaN", b"99999999999999999999", b"0.5", b"null", b'"7"', b"[]")
_BYTES = (0x00, 0x7F, 0x80, 0xFF)


class Damage:
    """Damage that a seed decides.

    Args:
      seed: Of all choices; None for no damage at all.
    """

    def __init__(self, seed: int | None):
        self._random = None if seed is None else np.random.default_rng(seed)

    def choose(self, count: int) -> int:
        """Returns a number below `count`."""
        return 0 if self._random is None else int(self._random.integers(count))

    def __call__(self, content: bytes) -> bytes:
        """Returns a content that differs in one to four places."""
        if self._random is None:
            return content
        for _ in range(1 + self.choose(4)):
            content = _KINDS[self.choose(len(_KINDS))](content, self._random)
        return content


def _place(content: bytes, random: np.random.Generator) -> int:
    return int(random.integers(max(len(content), 1)))


def _flip_bit(content: bytes, random: np.random.Generator) -> bytes:
    if not content:
        return content
    place = _place(content, random)
    flipped = content[place] ^ (1 << int(random.integers(8)))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _extreme_bytes(content: bytes, random: np.random.Generator) -> bytes:
    place, count = _place(content, random), int(random.integers(1, 9))
    value = _BYTES[random.integers(len(_BYTES))]
    return content[:place] + bytes([value] * count) + content[place + count :]


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: _place(content, random)]


def _remove(content: bytes, random: np.random.Generator) -> bytes:
    place = _place(content, random)
    return content[:place] + content[place + int(random.integers(1, 65)) :]


def _repeat(content: bytes, random: np.random.Generator) -> bytes:
    place = _place(content, random)
    part = content[place : place + int(random.integers(1, 65))]
    return content[:place] + part * int(random.integers(2, 50)) + content[place:]


def _insert(content: bytes, random: np.random.Generator) -> bytes:
    place = _place(content, random)
    return content[:place] + random.bytes(int(random.integers(1, 33))) + content[place:]


def _other_number(content: bytes, random: np.random.Generator) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return content
    chosen = numbers[random.integers(len(numbers))]
    other = _NUMBERS[random.integers(len(_NUMBERS))]
    return content[: chosen.start()] + other + content[chosen.end() :]


_KINDS = (_flip_bit, _extreme_bytes, _cut, _remove, _repeat, _insert, _other_number)
