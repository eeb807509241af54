"""Counter-based random numbers: each number is a pure function of a seed and of its purpose.

No generator state has to be saved or shared: anyone who knows (seed, step, layer, lane) or
(seed, stream, position) can compute the numbers again, in any order, on any worker.
Philox 4x64 gives four 64-bit words per counter (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"), and numpy promises that its stream never changes.

Letters: B lanes in this tensor, H hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.numerics.philox import WORDS, fill_words

# The second word of the key is the purpose, so that no two uses share a stream.
_MASK, _OFFSET, _DRAW, _WEIGHT_MASK, _CANDIDATE, _LABEL, _RESET = 1, 2, 3, 4, 5, 6, 7


class WeightMask(NamedTuple):
    """Which numbers of a weight stay, kept (N, K), and the factor of those that do."""

    kept: NDArray[np.bool_]
    scale: np.float32


def _words(count: int, *, key: tuple[int, int], counter: tuple[int, int, int, int]) -> NDArray[np.uint64]:
    """Return `count` 64-bit words, starting at the given counter."""
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return generator.random_raw(count)


def _rows_of_words(
    count: int, *, keys: Sequence[tuple[int, int]], counters: Sequence[tuple[int, int, int, int]]
) -> NDArray[np.uint64]:
    """Return `count` words for each key and counter, (R, count), in less time than _words takes for many rows."""
    words = np.empty((len(keys), -(-count // WORDS) * WORDS), np.uint64)
    fill_words(np.array(keys, np.uint64), np.array(counters, np.uint64), words)
    return words[:, :count]


def dropout_mask(
    dropout: float, *, seed: int, step: int, layer: int, lanes: Sequence[int], hidden_size: int
) -> NDArray[np.float32]:
    """Make one inverted-dropout mask per lane: 0 where a unit is dropped, 1 / (1 - dropout) elsewhere.

    lanes: global lane numbers. Returns (B, H) float32. The probability is rounded to a
    multiple of 2^-16, and the scale uses the rounded one, so the mean is exactly one.
    Source: Srivastava et al. 2014; one mask for a whole window, Gal & Ghahramani 2016.
    """
    threshold = round((1.0 - dropout) * 65536)
    counters = [(0, step, layer, lane) for lane in lanes]
    words = _rows_of_words(-(-hidden_size // 4), keys=[(seed, _MASK)] * len(lanes), counters=counters)
    draws = words.view(np.uint16)[:, :hidden_size]  # (B, H)
    return (draws < threshold) * np.float32(65536 / max(threshold, 1))


def weight_mask(weight_drop: float, *, seed: int, step: int, layer: int, shape: Sequence[int]) -> WeightMask:
    """Choose the numbers of a layer's recurrent weight that stay; they are multiplied by 1 / (1 - weight_drop).

    The probability is rounded to a multiple of 2^-8, and the scale uses the rounded one.
    Source: Wan et al. 2013; on recurrent weights, Merity et al. 2018.
    """
    threshold = max(1, round((1.0 - weight_drop) * 256))
    size = shape[0] * shape[1]
    words = _rows_of_words(-(-size // 8), keys=[(seed, _WEIGHT_MASK)], counters=[(0, step, layer, 0)])
    draws = words.view(np.uint8)[0, :size].reshape(shape)
    return WeightMask(draws < threshold, np.float32(256 / threshold))


def lane_resets(share: float, *, seed: int, step: int, lanes: Sequence[int]) -> NDArray[np.bool_]:
    """Choose the lanes whose state is set to zeros before a step: each with probability `share`. Returns (B,).

    lanes: global lane numbers.
    """
    words = _rows_of_words(1, keys=[(seed, _RESET)] * len(lanes), counters=[(0, step, 0, lane) for lane in lanes])
    return _fractions(words[:, 0]) < share


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
    """Return what `uniforms` returns for each of S streams: (S, count)."""
    first, skip = np.divmod(positions, WORDS)
    counters = [*zip(first.tolist(), candidates, streams, [0] * len(streams), strict=True)]
    words = _rows_of_words(int(skip.max()) + count, keys=[(seed, _DRAW) for seed in seeds], counters=counters)
    rows = np.take_along_axis(words, skip[:, None] + np.arange(count), axis=1)
    return _fractions(rows)


def candidate_number(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that chooses one of a stream's candidates."""
    return float(_fractions(_words(1, key=(seed, _CANDIDATE), counter=(0, 0, stream, 0)))[0])


def label_number(*, seed: int, stream: int) -> float:
    """Return the number in [0, 1) that draws a stream's label."""
    return float(_fractions(_words(1, key=(seed, _LABEL), counter=(0, 0, stream, 0)))[0])


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
