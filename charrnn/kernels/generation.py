"""The generation loop, compiled: from one character to the next without Python in between.

Gather a row of the first layer's table, matrix-vector products, gates, logits, filters,
inverse-CDF draw. On two layers of 512 units the weights stream from the cache at the speed
it has. Filters come in the order repeat guard, top-k, top-p, min-p, temperature, as in
llama.cpp.

Letters: L layers, H hidden size, V vocabulary, R rows.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.head import surprisal
from charrnn.kernels.recurrent import GRU, RNN, gru_step, lstm_step, rnn_step
from charrnn.kernels.vectors import Floats, compiled


class Weights(NamedTuple):
    """A network for the loop. The first layer's input projection is a table, one row a character.

    cell: from recurrent.CELLS. table: (V, gates * H); weight_ih, bias_ih: (L - 1, …) of the layers
    above the first; weight_hh, bias_hh: (L, …); head_weight (V, H), head_bias (V,). Float32.
    """

    cell: int
    table: Floats
    weight_ih: Floats
    bias_ih: Floats
    weight_hh: Floats
    bias_hh: Floats
    head_weight: Floats
    head_bias: Floats


class Filters(NamedTuple):
    """What may be drawn; no_repeat_ngram 0, top_k 0, top_p 1 and min_p 0 are off, temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    no_repeat_ngram: int = 0


@compiled
def matvec(weight: Floats, x: Floats, bias: Floats, out: Floats) -> None:
    """out = weight x + bias, four rows at a time so that each part of x is loaded once for them.

    weight: (R, K); x: (K,); bias, out: (R,).
    """
    num_rows, width = weight.shape
    blocked = num_rows - num_rows % 4
    for row in range(0, blocked, 4):
        w0, w1, w2, w3 = weight[row], weight[row + 1], weight[row + 2], weight[row + 3]
        s0 = s1 = s2 = s3 = np.float32(0.0)
        for k in range(width):
            s0 += w0[k] * x[k]
            s1 += w1[k] * x[k]
            s2 += w2[k] * x[k]
            s3 += w3[k] * x[k]
        out[row] = s0 + bias[row]
        out[row + 1] = s1 + bias[row + 1]
        out[row + 2] = s2 + bias[row + 2]
        out[row + 3] = s3 + bias[row + 3]
    for row in range(blocked, num_rows):
        total = np.float32(0.0)
        for k in range(width):
            total += weight[row, k] * x[k]
        out[row] = total + bias[row]


@compiled
def advance(weights: Weights, char: int, h: Floats, c: Floats, buffers: Floats) -> None:
    """Feed one character. h: (L, H); c: (L, H), unused but by the LSTM; buffers: (2, gates * H)."""
    recurrent = buffers[1]
    for layer in range(len(h)):
        projected = weights.table[char]
        if layer > 0:
            projected = buffers[0]
            matvec(weights.weight_ih[layer - 1], h[layer - 1], weights.bias_ih[layer - 1], projected)
        matvec(weights.weight_hh[layer], h[layer], weights.bias_hh[layer], recurrent)
        if weights.cell == RNN:
            rnn_step(projected, recurrent, h[layer])
        elif weights.cell == GRU:
            gru_step(projected, recurrent, h[layer])
        else:
            lstm_step(projected, recurrent, h[layer], c[layer])


@compiled
def feed(weights: Weights, ids: NDArray[np.int64], h: Floats, c: Floats) -> None:
    """Feed characters whose predictions nobody wants. ids: (n,); h, c: (L, H), changed in place."""
    buffers = np.empty((2, weights.table.shape[1]), np.float32)
    for char in ids:
        advance(weights, char, h, c, buffers)


@compiled
def forbid_repeats(logits: Floats, before: NDArray[np.int64], n: int) -> None:
    """Forbid what would complete an n-gram that stands in `before`, unless nothing would be left.

    logits: (V,), forbidden ones become -inf; before: the text so far.
    Source: Paulus et al. 2017, with characters for words.
    """
    forbidden = np.zeros(len(logits), np.bool_)
    last = len(before) - n + 1  # where the n - 1 characters begin that the next one would complete
    for start in range(last):
        same = True
        for k in range(n - 1):
            same = same and before[start + k] == before[last + k]
        if same:
            forbidden[before[start + n - 1]] = True
    left = len(logits)
    for char in range(len(logits)):
        left -= forbidden[char]
    for char in range(len(logits)):
        if left > 0 and forbidden[char]:
            logits[char] = -np.inf


@compiled
def filter_logits(logits: Floats, top_k: int, top_p: float, min_p: float) -> None:
    """Set the logits of what must not be drawn to -inf, in place; at least one survives.

    logits: (V,). Each filter keeps a prefix of the candidates sorted by logit (equal ones by
    id) and sees the distribution that the one before it left, renormalised, at temperature 1.
    Source: Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return
    order = np.argsort(-logits, kind="mergesort")
    weights = np.empty(len(order), np.float64)
    count = 0
    for place in range(len(order)):
        weights[place] = math.exp(np.float64(logits[order[place]]) - np.float64(logits[order[0]]))
        count += logits[order[place]] > -np.inf  # what a guard forbade stands behind
    if top_k > 0:
        count = min(count, top_k)
    if top_p < 1.0:
        mass = 0.0
        for place in range(count):
            mass += weights[place]
        reached, kept = weights[0], 1
        while reached < top_p * mass and kept < count:
            reached += weights[kept]
            kept += 1
        count = kept
    if min_p > 0.0:
        while count > 1 and weights[count - 1] < min_p:
            count -= 1
    for place in range(count, len(order)):
        logits[order[place]] = -np.inf


@compiled
def draw(logits: Floats, uniform: float, temperature: float) -> int:
    """Draw one id from softmax(logits / temperature) by inverting its distribution function.

    logits: (V,). uniform in [0, 1). Temperature 0 is greedy; a tiny one can't make a NaN
    because the largest logit is subtracted before the division.
    """
    best = int(np.argmax(logits))
    if temperature == 0.0:
        return best
    weights = np.empty(len(logits), np.float64)
    total = 0.0
    for char in range(len(logits)):
        weights[char] = math.exp((np.float64(logits[char]) - np.float64(logits[best])) / temperature)
        total += weights[char]
    # A uniform this close to one could round past the end: the last id with mass is meant then.
    reached, char, last = 0.0, 0, best
    while char < len(logits):
        if weights[char] > 0.0:
            reached += weights[char]
            last = char
            if uniform * total < reached:
                break
        char += 1
    return last


@compiled
def generate(
    weights: Weights,
    filters: Filters,
    ids: NDArray[np.int64],
    start: int,
    uniforms: NDArray[np.float64],
    h: Floats,
    c: Floats,
    nats: NDArray[np.float64],
) -> None:
    """Draw ids[start:], each from what the ones before it make of the state.

    ids: (start + n,), the last known character at start - 1 has not been fed yet; the repeat
    guard sees all of them. uniforms: (n,); nats: (n,), what each drawn character costs.
    h, c: (L, H), changed in place.
    """
    buffers = np.empty((2, weights.table.shape[1]), np.float32)
    logits = np.empty(len(weights.head_bias), np.float32)
    allowed = np.empty_like(logits)
    for place in range(start, len(ids)):
        advance(weights, ids[place - 1], h, c, buffers)
        matvec(weights.head_weight, h[len(h) - 1], weights.head_bias, logits)
        for char in range(len(logits)):
            allowed[char] = logits[char]
        if filters.no_repeat_ngram > 0:
            forbid_repeats(allowed, ids[:place], filters.no_repeat_ngram)
        filter_logits(allowed, filters.top_k, filters.top_p, filters.min_p)
        ids[place] = draw(allowed, uniforms[place - start], filters.temperature)
        nats[place - start] = surprisal(logits, ids[place])
