"""Random words for many counters at once: Philox 4x64, the generator of numpy's Philox, with its numbers.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

Letters: R rows, each with its own key and counter, W words of a row.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from charrnn.numerics.compilation import compiled

WORDS = 4  # of a counter
_ROUNDS = 10
_FACTORS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_KEY_STEPS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@intrinsic
def _upper_half(typing: Any, one: Any, other: Any) -> Any:
    """Return the upper 64 bits of the product of two 64-bit words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(word, wide) for word in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@compiled
def fill_words(keys: NDArray[np.uint64], counters: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """Fill out (R, W) with the words that follow each row's counter. W: a multiple of WORDS.

    keys: (R, 2); counters: (R, 4), of which the first number counts up before each four words, as numpy's does.
    """
    for row in range(len(out)):
        for start in range(0, out.shape[1], WORDS):
            key, other_key = keys[row, 0], keys[row, 1]
            a, b, c, d = counters[row, 0], counters[row, 1], counters[row, 2], counters[row, 3]
            a += np.uint64(start // WORDS + 1)
            for _ in range(_ROUNDS):
                upper: Any = _upper_half(_FACTORS[0], a)  # type: ignore[call-arg]
                other_upper: Any = _upper_half(_FACTORS[1], c)
                a, b, c, d = other_upper ^ b ^ key, _FACTORS[1] * c, upper ^ d ^ other_key, _FACTORS[0] * a
                key += _KEY_STEPS[0]
                other_key += _KEY_STEPS[1]
            out[row, start], out[row, start + 1], out[row, start + 2], out[row, start + 3] = a, b, c, d
