"""Hashes of all stretches of a text that are so many characters long.

A hash is a polynomial in the ids modulo 2^64, which rolls: a stretch one later is a product
and two sums away.

Letters: N characters, M hashes that are looked for.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.vectors import compiled

Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no character is multiplied away
_ONE = np.uint64(1)
_SHIFT = np.uint64(43)  # leaves 21 bits: a table of 2 MB, which stays in the cache


@compiled
def gram_hashes(ids: NDArray[Any], length: int) -> Hashes:
    """The hash of the stretch that begins at each place: (N - length + 1,), none of a shorter text."""
    hashes = np.empty(max(0, len(ids) - length + 1), np.uint64)
    last = _power(length)
    value = np.uint64(0)
    for place in range(len(ids)):
        value = value * _BASE + np.uint64(ids[place]) + _ONE
        if place >= length:
            value -= last * (np.uint64(ids[place - length]) + _ONE)
        if place >= length - 1:
            hashes[place - length + 1] = value
    return hashes


@compiled
def _power(length: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(length):
        value = value * _BASE
    return value


@compiled
def find_hashes(ids: NDArray[Any], length: int, wanted: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes (M,), sorted, some stretch of the text has: (M,)."""
    found = np.zeros(len(wanted), np.bool_)
    may_be = np.zeros(1 << 21, np.bool_)  # most stretches are not looked for, which one byte tells
    for value in wanted:
        may_be[(value * _BASE) >> _SHIFT] = True
    last = _power(length)
    value = np.uint64(0)
    for place in range(len(ids)):
        value = value * _BASE + np.uint64(ids[place]) + _ONE
        if place >= length:
            value -= last * (np.uint64(ids[place - length]) + _ONE)
        if place >= length - 1 and may_be[(value * _BASE) >> _SHIFT]:
            index = np.searchsorted(wanted, value)
            if index < len(wanted) and wanted[index] == value:
                found[index] = True
    return found
