"""The generation loop, compiled: from one character to the next without Python in between.

Gather a row of the first layer's table, matrix-vector products, gates, logits, filters,
inverse-CDF draw. All of it is in one file because numba's cache on disk notices an edit
only in the file of the function that is called.

Loops are short and run over contiguous rows, which is what LLVM vectorises: on two layers
of 512 units the weights stream from the cache at the speed it has. Filters come in the order
repeat guard, top-k, top-p, min-p, temperature, as in llama.cpp.

Letters: L layers, H hidden size, V vocabulary, R rows.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])

CELLS = {"rnn": 0, "gru": 1, "lstm": 2}
_LOG2_E = np.float32(math.log2(math.e))


def compiled(function: F) -> F:
    """Compile on first use, keeping the result on disk where a folder for it can be written.

    Sums may be reordered, which vectorising a dot product needs; infinities stay infinite.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither beside this file nor in the user's cache
        return cast(F, numba.njit(**options)(function))


class Weights(NamedTuple):
    """A network for the loop. The first layer's input projection is a table, one row a character.

    cell: from CELLS. table: (V, gates * H); weight_ih, bias_ih: (L - 1, …) of the layers
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
def exponentiate(x: Floats, scratch: Floats) -> None:
    """exp(x) in place, to 2e-7 relative; x is first clamped to -87…88.

    2^n is made by putting n in a float's exponent bits, 2^f for |f| <= 1/2 by a polynomial
    (Cephes' exp2f). x, scratch: (n,).
    """
    exponents = scratch.view(np.int32)
    for i in range(len(x)):
        power = min(max(x[i], np.float32(-87.0)), np.float32(88.0)) * _LOG2_E
        whole = math.floor(power + np.float32(0.5))
        f = power - whole
        exponents[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        p = np.float32(1.535336188319500e-4)
        p = p * f + np.float32(1.339887440266574e-3)
        p = p * f + np.float32(9.618437357674640e-3)
        p = p * f + np.float32(5.550332471162809e-2)
        p = p * f + np.float32(2.402264791363012e-1)
        p = p * f + np.float32(6.931472028550421e-1)
        x[i] = p * f + np.float32(1.0)
    for i in range(len(x)):
        x[i] *= scratch[i]


@compiled
def sigmoid(x: Floats, scratch: Floats) -> None:
    """The logistic function in place."""
    for i in range(len(x)):
        x[i] = -x[i]
    exponentiate(x, scratch)
    for i in range(len(x)):
        x[i] = np.float32(1.0) / (np.float32(1.0) + x[i])


@compiled
def tanh(x: Floats, scratch: Floats) -> None:
    """The hyperbolic tangent in place, to 2e-7 absolute."""
    for i in range(len(x)):
        x[i] = np.float32(-2.0) * x[i]
    exponentiate(x, scratch)
    for i in range(len(x)):
        x[i] = np.float32(2.0) / (np.float32(1.0) + x[i]) - np.float32(1.0)


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
def rnn_step(projected: Floats, recurrent: Floats, h: Floats, scratch: Floats) -> None:
    """h' = tanh(projected + recurrent), all (H,); projected is W_ih x + b_ih, recurrent W_hh h + b_hh."""
    for i in range(len(h)):
        h[i] = projected[i] + recurrent[i]
    tanh(h, scratch)


@compiled
def gru_step(projected: Floats, recurrent: Floats, h: Floats, scratch: Floats) -> None:
    """The GRU with the reset gate applied after the product, as torch.nn.GRU and cuDNN have it.

    projected, recurrent: (3H,), both overwritten; h: (H,). Source: Cho et al. 2014.
    """
    size = len(h)
    gates, n = projected[: 2 * size], recurrent[2 * size :]
    for i in range(2 * size):
        gates[i] += recurrent[i]
    sigmoid(gates, scratch)
    for i in range(size):
        n[i] = projected[2 * size + i] + gates[i] * n[i]
    tanh(n, scratch)
    for i in range(size):
        h[i] = n[i] + gates[size + i] * (h[i] - n[i])


@compiled
def lstm_step(projected: Floats, recurrent: Floats, h: Floats, c: Floats, scratch: Floats) -> None:
    """The LSTM with a forget gate. projected, recurrent: (4H,), the first overwritten; h, c: (H,).

    Source: Gers et al. 2000.
    """
    size = len(h)
    for i in range(4 * size):
        projected[i] += recurrent[i]
    sigmoid(projected[: 2 * size], scratch)
    tanh(projected[2 * size : 3 * size], scratch)
    sigmoid(projected[3 * size :], scratch)
    for i in range(size):
        c[i] = projected[size + i] * c[i] + projected[i] * projected[2 * size + i]
        h[i] = c[i]
    tanh(h, scratch)
    for i in range(size):
        h[i] *= projected[3 * size + i]


@compiled
def advance(weights: Weights, char: int, h: Floats, c: Floats, buffers: Floats) -> None:
    """Feed one character. h: (L, H); c: (L, H), unused but by the LSTM; buffers: (3, gates * H)."""
    projected, recurrent, scratch = buffers[0], buffers[1], buffers[2]
    projected[:] = weights.table[char]
    for layer in range(len(h)):
        if layer > 0:
            matvec(weights.weight_ih[layer - 1], h[layer - 1], weights.bias_ih[layer - 1], projected)
        matvec(weights.weight_hh[layer], h[layer], weights.bias_hh[layer], recurrent)
        if weights.cell == 0:
            rnn_step(projected, recurrent, h[layer], scratch)
        elif weights.cell == 1:
            gru_step(projected, recurrent, h[layer], scratch)
        else:
            lstm_step(projected, recurrent, h[layer], c[layer], scratch)


@compiled
def feed(weights: Weights, ids: NDArray[np.int64], h: Floats, c: Floats) -> None:
    """Feed characters whose predictions nobody wants. ids: (n,); h, c: (L, H), changed in place."""
    buffers = np.empty((3, weights.table.shape[1]), np.float32)
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
def surprisal(logits: Floats, char: int) -> float:
    """Nats that the model, unfiltered and at temperature 1, pays for a character. logits: (V,)."""
    largest = np.float64(logits.max())
    total = 0.0
    for other in range(len(logits)):
        total += math.exp(np.float64(logits[other]) - largest)
    return math.log(total) - (np.float64(logits[char]) - largest)


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
    buffers = np.empty((3, weights.table.shape[1]), np.float32)
    logits = np.empty(len(weights.head_bias), np.float32)
    allowed = np.empty_like(logits)
    for place in range(start, len(ids)):
        advance(weights, ids[place - 1], h, c, buffers)
        matvec(weights.head_weight, h[len(h) - 1], weights.head_bias, logits)
        allowed[:] = logits
        if filters.no_repeat_ngram > 0:
            forbid_repeats(allowed, ids[:place], filters.no_repeat_ngram)
        filter_logits(allowed, filters.top_k, filters.top_p, filters.min_p)
        ids[place] = draw(allowed, uniforms[place - start], filters.temperature)
        nats[place - start] = surprisal(logits, ids[place])
