"""Counter-based random numbers: each number is a pure function of a seed and of its purpose.

No generator state has to be saved or shared: anyone who knows (seed, step, layer, lane) or
(seed, stream, position) can compute the numbers again, in any order, on any worker.
Philox 4x64 gives four 64-bit words per counter (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"), and numpy promises that its stream never changes.

Letters: B lanes in this tensor, H hidden size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The second word of the key is the purpose, so that no two uses share a stream.
_MASK, _OFFSET, _DRAW, _WEIGHT_MASK, _CHOICE, _LABEL = 1, 2, 3, 4, 5, 6


def _words(count: int, *, key: tuple[int, int], counter: tuple[int, int, int, int]) -> NDArray[np.uint64]:
    """Return `count` 64-bit words, starting at the given counter."""
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return generator.random_raw(count)


def dropout_mask(
    dropout: float, *, seed: int, step: int, layer: int, lanes: Sequence[int], hidden_size: int
) -> NDArray[np.float32]:
    """Make one inverted-dropout mask per lane: 0 where a unit is dropped, 1 / (1 - dropout) elsewhere.

    lanes: global lane numbers. Returns (B, H) float32. The probability is rounded to a
    multiple of 2^-16, and the scale uses the rounded one, so the mean is exactly one.
    Source: Srivastava et al. 2014; one mask for a whole window, Gal & Ghahramani 2016.
    """
    threshold = round((1.0 - dropout) * 65536)
    words = [_words(-(-hidden_size // 4), key=(seed, _MASK), counter=(0, step, layer, lane)) for lane in lanes]
    draws = np.stack(words).view(np.uint16)[:, :hidden_size]  # (B, H)
    return (draws < threshold) * np.float32(65536 / max(threshold, 1))


def weight_mask(weight_drop: float, *, seed: int, step: int, layer: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Make a mask for a layer's recurrent weight: 0 where a number is dropped, 1 / (1 - weight_drop) elsewhere.

    Returns float32 of that shape. The probability is rounded to a multiple of 2^-8.
    Source: Wan et al. 2013; on recurrent weights, Merity et al. 2018.
    """
    threshold = max(1, round((1.0 - weight_drop) * 256))
    size = shape[0] * shape[1]
    draws = _words(-(-size // 8), key=(seed, _WEIGHT_MASK), counter=(0, step, layer, 0)).view(np.uint8)[:size]
    return ((draws < threshold) * np.float32(256 / threshold)).reshape(shape)  # np.where takes ten times as long


def pass_offset(num_chars: int, *, seed: int, pass_index: int) -> int:
    """Draw where in the text this pass starts to cut its lanes: 0 <= offset < num_chars."""
    word = _words(1, key=(seed, _OFFSET), counter=(0, pass_index, 0, 0))[0]
    return int(word % np.uint64(num_chars))


def uniforms(count: int, *, seed: int, stream: int, position: int, candidate: int = 0) -> NDArray[np.float64]:
    """Return the numbers in [0, 1) that draw characters position, position + 1, … of a stream.

    candidate: which of the texts that may become the stream's. Returns (count,) float64 with 53 random bits each.
    """
    skip = position % 4
    words = _words(skip + count, key=(seed, _DRAW), counter=(position // 4, candidate, stream, 0))
    return _fractions(words[skip:])


def choice(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that chooses one of a stream's candidates."""
    return float(_fractions(_words(1, key=(seed, _CHOICE), counter=(0, 0, stream, 0)))[0])


def label_number(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that draws a stream's label."""
    return float(_fractions(_words(1, key=(seed, _LABEL), counter=(0, 0, stream, 0)))[0])


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
