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

_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)  # of Philox 4x64
_KEY_STEPS = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
# The second word of the key is the purpose, so that no two uses share a stream.
_MASK, _OFFSET, _DRAW, _WEIGHT_MASK, _CANDIDATE, _LABEL = 1, 2, 3, 4, 5, 6


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


def stream_uniforms(
    count: int, *, seeds: Sequence[int], streams: Sequence[int], positions: Sequence[int], candidates: Sequence[int]
) -> NDArray[np.float64]:
    """Return what `uniforms` returns for each of S streams: (S, count), in much less time for many of them."""
    if len(streams) == 1:
        numbers = uniforms(count, seed=seeds[0], stream=streams[0], position=positions[0], candidate=candidates[0])
        return numbers[None]
    first, skip = np.divmod(np.array(positions, np.uint64), np.uint64(4))
    num_blocks = (int(skip.max()) + count + 3) // 4
    shape = len(streams), num_blocks
    counters = np.empty((4, *shape), np.uint64)
    counters[0] = first[:, None] + np.arange(1, num_blocks + 1, dtype=np.uint64)  # numpy counts up before it draws
    for word, values in zip(counters[1:], (candidates, streams, [0] * len(streams)), strict=True):
        word[...] = np.array(values, np.uint64)[:, None]
    keys = np.array([seeds, [_DRAW] * len(seeds)], np.uint64).repeat(num_blocks, axis=1)
    words = _philox(counters.reshape(4, -1), keys).T.reshape(len(streams), -1)
    rows = np.take_along_axis(words, skip[:, None].astype(np.int64) + np.arange(count), axis=1)
    return _fractions(rows)


def _philox(counters: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute the four words of each counter: (4, n), from counters (4, n) and keys (2, n)."""
    for _ in range(10):
        factors = counters[::2]
        high, low = _multiply_high(_MULTIPLIERS, factors), _MULTIPLIERS * factors
        counters = np.stack([high[1] ^ counters[1] ^ keys[0], low[1], high[0] ^ counters[3] ^ keys[1], low[0]])
        keys = keys + _KEY_STEPS
    return counters


def _multiply_high(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the upper 64 bits of each product of 64-bit numbers."""
    one_high, one_low, high, low = one >> _HALF, one & _LOW, other >> _HALF, other & _LOW
    middle, cross = one_high * low, one_low * high
    carry = (one_low * low >> _HALF) + (middle & _LOW) + (cross & _LOW)
    found: NDArray[np.uint64] = one_high * high + (middle >> _HALF) + (cross >> _HALF) + (carry >> _HALF)
    return found


def candidate_number(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that chooses one of a stream's candidates."""
    return float(_fractions(_words(1, key=(seed, _CANDIDATE), counter=(0, 0, stream, 0)))[0])


def label_number(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that draws a stream's label."""
    return float(_fractions(_words(1, key=(seed, _LABEL), counter=(0, 0, stream, 0)))[0])


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
