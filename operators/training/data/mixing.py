"""Numbers that look random and follow from a key alone: the same on every machine and with every release of NumPy.

What is drawn at place i needs no draws before it, so a run that resumes need not replay any.
Source of the mixer: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), splitmix64.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6


def key_of(*facts: str | int) -> int:
    """A 64-bit key that follows from these facts."""
    return int.from_bytes(hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).digest(), "little")


def mixed(values: NDArray[np.uint64], key: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each value (any shape but a scalar, which NumPy would warn of), different for each key.

    One key for all, or one for each value.
    """
    bits = (values ^ np.asarray(key, np.uint64)) + np.uint64(_GOLDEN)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    return bits ^ (bits >> np.uint64(31))


class Permutation:
    """A random order of 0 .. size - 1 of which any part is computed alone, in no memory.

    A keyed bijection of the next power of two (add, multiply by an odd number, fold the high half into the low one);
    what falls outside goes round again (Black, Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    def __init__(self, size: int, key: int) -> None:
        assert size > 0, "there is an order of something only"
        self._size = np.uint64(size)
        bits = max(2, (size - 1).bit_length())
        self._mask, self._fold = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
        self._keys = mixed(np.arange(2 * _ROUNDS, dtype=np.uint64), key)

    def __call__(self, start: int, end: int) -> NDArray[np.int64]:
        """What stands at the places [start, end) of the order."""
        found = self._scrambled(np.arange(start, end, dtype=np.uint64))
        outside = np.flatnonzero(found >= self._size)
        while len(outside):
            found[outside] = self._scrambled(found[outside])
            outside = outside[found[outside] >= self._size]
        return found.astype(np.int64)

    def _scrambled(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        for add, multiply in zip(self._keys[:_ROUNDS], self._keys[_ROUNDS:], strict=True):
            values = ((values + add) * (multiply | np.uint64(1))) & self._mask
            values = values ^ (values >> self._fold)
        return values
