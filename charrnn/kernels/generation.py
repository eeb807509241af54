"""The compiled generation loop: no Python runs between one character and the next.

Several streams are drawn at once, so that each pass over the weights serves all of them.
Several threads can share each character: a thread computes all gates of its own units and the logits
of its own part of the vocabulary, for every stream, and draws for some of the streams. Threads
wait for each other after each layer, after the logits and after the draw. One thread computes a
sum, always in the same order (products.py), so a text depends neither on the number of threads
nor on the other streams.

A character takes a lookup in the first layer's table, products, gates, logits, filters and an
inverse-CDF draw. The order is repeat guard, top-k, top-p, min-p, temperature, as in llama.cpp.

Letters: S streams, L layers, H hidden size, V vocabulary, U units of a thread, N gates * U.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.barrier import wait
from charrnn.kernels.cells import GRU, RNN, gru_step, lstm_step, rnn_step
from charrnn.kernels.compilation import compiled, inlined
from charrnn.kernels.head import surprisal
from charrnn.kernels.ngrams import Mixture, extend_contexts, mix
from charrnn.kernels.products import BLOCK, padded, product
from charrnn.kernels.vectors import Doubles, Floats, Stored, exp, narrow


class Shard(NamedTuple):
    """A thread's shard of a network: all gates of its units, and its part of the vocabulary.

    cell: from cells.CELLS. first_unit, num_units: its units; first_char: where its part of V
    begins. table: (V, N), the first layer's input projection with its bias. input: (L - 1, …)
    packed (H, N) of the other layers; recurrent: (L, …) packed (H, N). bias: (L - 1, N) of the
    other layers, without the bias inside the GRU's candidate, which is inner_bias (L, U), else
    (L, 0). head: packed (H, its part of V), head_bias: (its part of V,). All are float32, but
    input, recurrent and head may be stored in bfloat16.
    """

    cell: int
    first_unit: int
    num_units: int
    first_char: int
    table: Floats
    input: Stored
    recurrent: Stored
    bias: Floats
    inner_bias: Floats
    head: Stored
    head_bias: Floats


class SharedBuffers(NamedTuple):
    """Memory that all threads read and write.

    barrier: where they wait; num_threads: for how many. outputs: (2, L, S, H) as the weights are
    stored: the layers' outputs for characters at even and at odd positions. logits: (S, V).
    """

    barrier: NDArray[np.int64]
    num_threads: int
    outputs: Stored
    logits: Floats


class Filters(NamedTuple):
    """Sampling settings. no_repeat_ngram 0, top_k 0, top_p 1 and min_p 0 are off; temperature 0 is greedy.

    end: the id that ends a document, which no_repeat_ngram never forbids; -1 if there is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    no_repeat_ngram: int = 0
    end: int = -1


@inlined
def step_network(
    shard: Shard,
    chars: NDArray[np.int64],
    parity: int,
    h: Floats,
    c: Floats,
    shared: SharedBuffers,
    buffers: tuple[Floats, Floats],
) -> None:
    """Feed one character of each stream to a thread's shard.

    chars: (S,); parity: the index in shared.outputs of the previous character's outputs, 0 or 1.
    h, c: (L, S, H), of which the thread's units are updated; only the LSTM uses c. buffers: from
    new_step_buffers.
    """
    projected, recurrent = buffers
    width = shard.table.shape[1]
    units = slice(shard.first_unit, shard.first_unit + shard.num_units)
    before, after = shared.outputs[parity], shared.outputs[1 - parity]
    for layer in range(len(h)):
        product(before[layer], shard.recurrent[layer], recurrent)
        if layer > 0:
            product(after[layer - 1], shard.input[layer - 1], projected)
        inner = shard.inner_bias[layer]
        for stream in range(len(chars)):
            p, r, state = projected[stream, :width], recurrent[stream, :width], h[layer, stream, units]
            if layer == 0:
                p = shard.table[chars[stream]]
            else:
                for i in range(width):
                    p[i] += shard.bias[layer - 1, i]
            for i in range(len(inner)):
                r[width - len(inner) + i] += inner[i]
            if shard.cell == RNN:
                rnn_step(p, r, state)
            elif shard.cell == GRU:
                gru_step(p, r, state)
            else:
                lstm_step(p, r, state, c[layer, stream, units])
            narrow(state, after[layer, stream, units])
        wait(shared.barrier, shared.num_threads)


@inlined
def new_step_buffers(shard: Shard, num_streams: int) -> tuple[Floats, Floats]:
    """Allocate the products that step_network computes: two of (S, padded(N))."""
    width = padded(shard.table.shape[1])
    return np.empty((num_streams, width), np.float32), np.empty((num_streams, width), np.float32)


@compiled
def forbid_repeats(logits: Floats, history: NDArray[np.int64], n: int, end: int) -> None:
    """Forbid characters, but not `end`, that would complete an n-gram of the history, unless that leaves none.

    logits: (V,), forbidden ones become -inf; history: the ids so far.
    Source: Paulus et al. 2017, with characters instead of words.
    """
    forbidden = np.zeros(len(logits), np.bool_)
    last = len(history) - n + 1  # where the last n - 1 characters begin
    for start in range(last):
        k = n - 2
        while k >= 0 and history[start + k] == history[last + k]:
            k -= 1
        if k < 0:
            forbidden[history[start + n - 1]] = True
    if end >= 0:
        forbidden[end] = False
    left = len(logits)
    for char in range(len(logits)):
        left -= forbidden[char]
    for char in range(len(logits)):
        if left > 0 and forbidden[char]:
            logits[char] = -np.inf


@compiled
def _sift_down(heap: NDArray[np.int64], size: int, place: int, logits: Floats) -> None:
    """Move a character down to its place in a heap: the largest logit on top, equal ones by id."""
    char = heap[place]
    logit = logits[char]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        likeliest = logits[heap[child]]
        if child + 1 < size:
            other = logits[heap[child + 1]]
            if other > likeliest or (other == likeliest and heap[child + 1] < heap[child]):
                child, likeliest = child + 1, other
        if logit > likeliest or (logit == likeliest and char < heap[child]):
            break
        heap[place], place = heap[child], child
    heap[place] = char


@compiled
def filter_logits(logits: Floats, top_k: int, top_p: float, min_p: float) -> None:
    """Set the logits of filtered characters to -inf, in place; at least one character survives.

    logits: (V,). Each filter keeps a prefix of the candidates, sorted by logit and equal ones by
    id. It sees the distribution that the previous filter left, renormalised, at temperature 1.
    Candidates come from a heap, so only the surviving ones get sorted.
    Source: Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return
    heap = np.empty(len(logits), np.int64)
    for place in range(len(heap)):
        heap[place] = place
    for place in range(len(heap) // 2 - 1, -1, -1):
        _sift_down(heap, len(heap), place, logits)
    best = np.float64(logits[heap[0]])
    weights = np.empty(len(logits), np.float64)
    mass, count = 0.0, 0
    for char in range(len(logits)):
        weights[char] = math.exp(np.float64(logits[char]) - best)
        mass += weights[char]
        count += logits[char] > -np.inf  # characters that the repeat guard forbade are no candidates
    order = np.empty(len(logits), np.int64)
    sorted_count = 0
    limit = min(count, top_k) if top_k > 0 else count
    if limit < count:
        mass = 0.0
    reached, kept = 0.0, 0
    while kept < limit:
        # top-p needs the mass of all candidates that top-k leaves, so these are sorted first
        while sorted_count < (limit if limit < count else kept + 1):
            order[sorted_count] = heap[0]
            mass += weights[heap[0]] if limit < count else 0.0
            sorted_count += 1
            heap[0] = heap[len(heap) - sorted_count]
            _sift_down(heap, len(heap) - sorted_count, int(np.int64(0)), logits)  # a bare 0 would compile it again
        weight = weights[order[kept]]
        if kept > 0 and (weight < min_p or (top_p < 1.0 and reached >= top_p * mass)):
            break
        reached += weight
        kept += 1
    for place in range(kept):
        weights[order[place]] = -1.0  # marks what stays
    for char in range(len(logits)):
        if weights[char] >= 0.0:
            logits[char] = -np.inf


@compiled
def draw(logits: Floats, uniform: float, temperature: float) -> int:
    """Draw one id from softmax(logits / temperature) by inverting its distribution function.

    logits: (V,); uniform: in [0, 1). Temperature 0 is greedy. A tiny temperature can't make a NaN,
    because the largest logit is subtracted before the division.
    """
    best = 0
    for char in range(len(logits)):
        best = char if logits[char] > logits[best] else best
    if temperature == 0.0:
        return best
    weights = np.empty(len(logits), np.float32)
    total = 0.0
    for char in range(len(logits)):
        power = np.float32((np.float64(logits[char]) - np.float64(logits[best])) / temperature)
        weights[char] = exp(power) if power > np.float32(-80.0) else np.float32(0.0)  # exp never reaches zero
    for char in range(len(logits)):
        total += np.float64(weights[char])
    # A uniform close to one could round past the end; then the last id with mass is drawn.
    reached, char, last = 0.0, 0, best
    while char < len(logits):
        if weights[char] > 0.0:
            reached += np.float64(weights[char])
            last = char
            if uniform * total < reached:
                break
        char += 1
    return last


@inlined
def new_sampling_buffers(logits: Floats) -> tuple[Floats, Doubles]:
    """Allocate the filtered logits and the n-grams' log probabilities for a row of logits (S, V): (V,) each."""
    return np.empty(logits.shape[1], np.float32), np.empty(logits.shape[1])


@inlined
def sample_char(
    filters: Filters,
    logits: Floats,
    ids: NDArray[np.int64],
    uniform: float,
    contexts: NDArray[np.int32],
    mixture: Mixture,
    buffers: tuple[Floats, Doubles],
) -> float:
    """Draw a stream's next character into the last place of ids; return its nats.

    logits: (V,), the network's, which are replaced by the mixture's; buffers: from
    new_sampling_buffers.
    """
    filtered, log_probabilities = buffers
    if len(mixture.weights) > 0:
        mix(mixture, contexts, logits, log_probabilities)
    for v in range(len(logits)):
        filtered[v] = logits[v]
    if filters.no_repeat_ngram > 0:
        forbid_repeats(filtered, ids[:-1], filters.no_repeat_ngram, filters.end)
    filter_logits(filtered, filters.top_k, filters.top_p, filters.min_p)
    ids[len(ids) - 1] = draw(filtered, uniform, filters.temperature)
    return surprisal(logits, ids[len(ids) - 1])


@compiled
def generate(
    shard: Shard,
    rank: int,
    filters: Filters,
    ids: NDArray[np.int64],
    starts: NDArray[np.int64],
    num_fed: int,
    uniforms: Doubles,
    h: Floats,
    c: Floats,
    contexts: NDArray[np.int32],
    nats: Doubles,
    mixture: Mixture,
    shared: SharedBuffers,
) -> None:
    """Feed num_fed characters of every stream, then draw the next n.

    ids: (S, …); row s is known up to starts[s], and its last num_fed + 1 known characters are not
    fed yet. The repeat guard sees all known characters. uniforms: (S, n), one for each character
    to draw; nats: (S, n), filled with the surprisal of each. h, c: (L, S, H), and contexts:
    (1, S, order), of the mixture's n-grams, are updated in place. Every thread calls this with
    its rank and its shard.
    """
    num_streams, count = uniforms.shape
    step_buffers, chars = new_step_buffers(shard, num_streams), np.empty(num_streams, np.int64)
    logits = np.empty((num_streams, len(shard.head) * BLOCK), np.float32)
    sampling_buffers = new_sampling_buffers(shared.logits)
    for layer in range(len(h)):
        for stream in range(rank, num_streams, shared.num_threads):
            narrow(h[layer, stream], shared.outputs[0, layer, stream])
    wait(shared.barrier, shared.num_threads)
    for step in range(num_fed + count):
        drawn = step - num_fed
        for stream in range(num_streams):
            chars[stream] = ids[stream, starts[stream] + drawn - 1]
        step_network(shard, chars, step % 2, h, c, shared, step_buffers)
        for stream in range(rank, num_streams, shared.num_threads):
            extend_contexts(mixture.trie, contexts[0, stream], chars[stream])
        if drawn < 0:
            continue
        product(shared.outputs[1 - step % 2, len(h) - 1], shard.head, logits)
        for stream in range(num_streams):
            for v in range(len(shard.head_bias)):
                shared.logits[stream, shard.first_char + v] = logits[stream, v] + shard.head_bias[v]
        wait(shared.barrier, shared.num_threads)
        for stream in range(rank, num_streams, shared.num_threads):
            row, known = shared.logits[stream], ids[stream, : starts[stream] + drawn + 1]
            nats[stream, drawn] = sample_char(
                filters, row, known, uniforms[stream, drawn], contexts[0, stream], mixture, sampling_buffers
            )
        wait(shared.barrier, shared.num_threads)
