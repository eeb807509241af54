"""The generation loop, compiled: from one character to the next without Python in between.

Streams are drawn side by side, so that each pass over the weights serves them all, and
threads share each character: a thread computes all gates of its own units and the logits
of its own part of the vocabulary, for every stream, and draws for some of the streams. They
meet after each layer, after the logits and after the draw. A sum is made by one thread in one
order (products.py), so a text depends neither on the threads nor on the streams beside it.

A character is a gather of a row of the first layer's table, products, gates, logits,
filters, inverse-CDF draw. Filters come in the order repeat guard, top-k, top-p, min-p,
temperature, as in llama.cpp.

Letters: S streams, L layers, H hidden size, V vocabulary, U units of a thread, N gates * U.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.barrier import meet
from charrnn.kernels.compilation import compiled, inlined
from charrnn.kernels.head import surprisal
from charrnn.kernels.ngrams import Mixture, follow, mix
from charrnn.kernels.products import BLOCK, padded, product
from charrnn.kernels.recurrent import GRU, RNN, gru_step, lstm_step, rnn_step
from charrnn.kernels.vectors import Floats, Stored, exp, narrow


class Part(NamedTuple):
    """A thread's part of a network: all gates of its units, and its part of the vocabulary.

    cell: from recurrent.CELLS. first_unit, num_units: its units; first_char: where its part of
    V begins. table: (V, N), the first layer's input projection with its bias. input: (L - 1, …)
    packed (H, N) of the layers above it; recurrent: (L, …) packed (H, N). bias: (L - 1, N), as
    the table's all but the part inside the GRU's candidate, which is inner_bias (L, U), of the
    others (L, 0). head: packed (H, its part of V), head_bias its part of (V,). Float32; input,
    recurrent and head may be stored in bfloat16.
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


class Team(NamedTuple):
    """What threads share: the barrier they meet at, how many they are, and what each tells the others.

    outputs: (2, L, S, H) in the weights' storage, of the characters at even and at odd places;
    logits: (S, V).
    """

    barrier: NDArray[np.int64]
    size: int
    outputs: Stored
    logits: Floats


class Filters(NamedTuple):
    """What may be drawn; no_repeat_ngram 0, top_k 0, top_p 1 and min_p 0 are off, temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    no_repeat_ngram: int = 0


@inlined
def advance(
    part: Part, chars: NDArray[np.int64], now: int, h: Floats, c: Floats, team: Team, buffers: tuple[Floats, Floats]
) -> None:
    """Feed one character of each stream.

    chars: (S,); now: 0 or 1, whichever of the team's outputs are those of the character before.
    h, c: (L, S, H), of which the thread's units change; c is unused but by the LSTM. buffers:
    two of (S, padded(N)).
    """
    projected, recurrent = buffers
    width = part.table.shape[1]
    mine = slice(part.first_unit, part.first_unit + part.num_units)
    before, after = team.outputs[now], team.outputs[1 - now]
    for layer in range(len(h)):
        product(before[layer], part.recurrent[layer], recurrent)
        if layer > 0:
            product(after[layer - 1], part.input[layer - 1], projected)
        inner = part.inner_bias[layer]
        for stream in range(len(chars)):
            p, r, state = projected[stream, :width], recurrent[stream, :width], h[layer, stream, mine]
            if layer == 0:
                p = part.table[chars[stream]]
            else:
                for i in range(width):
                    p[i] += part.bias[layer - 1, i]
            for i in range(len(inner)):
                r[width - len(inner) + i] += inner[i]
            if part.cell == RNN:
                rnn_step(p, r, state)
            elif part.cell == GRU:
                gru_step(p, r, state)
            else:
                lstm_step(p, r, state, c[layer, stream, mine])
            narrow(state, after[layer, stream, mine])
        meet(team.barrier, team.size)


@inlined
def new_buffers(part: Part, num_streams: int) -> tuple[Floats, Floats]:
    """Buffers for what advance computes."""
    width = padded(part.table.shape[1])
    return np.empty((num_streams, width), np.float32), np.empty((num_streams, width), np.float32)


@compiled
def forbid_repeats(logits: Floats, before: NDArray[np.int64], n: int) -> None:
    """Forbid what would complete an n-gram that stands in `before`, unless nothing would be left.

    logits: (V,), forbidden ones become -inf; before: the text so far.
    Source: Paulus et al. 2017, with characters for words.
    """
    forbidden = np.zeros(len(logits), np.bool_)
    last = len(before) - n + 1  # where the n - 1 characters begin that the next one would complete
    for start in range(last):
        k = n - 2
        while k >= 0 and before[start + k] == before[last + k]:
            k -= 1
        if k < 0:
            forbidden[before[start + n - 1]] = True
    left = len(logits)
    for char in range(len(logits)):
        left -= forbidden[char]
    for char in range(len(logits)):
        if left > 0 and forbidden[char]:
            logits[char] = -np.inf


@compiled
def _sift_down(heap: NDArray[np.int64], size: int, place: int, logits: Floats) -> None:
    """Let a character sink in a heap, the likeliest on top, equal ones by id, to where it belongs."""
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
    """Set the logits of what must not be drawn to -inf, in place; at least one survives.

    logits: (V,). Each filter keeps a prefix of the candidates sorted by logit (equal ones by
    id) and sees the distribution that the one before it left, renormalised, at temperature 1.
    They are taken from a heap, so that no more are sorted than are kept.
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
        count += logits[char] > -np.inf  # what a guard forbade is no candidate
    order = np.empty(len(logits), np.int64)
    sorted_count = 0
    limit = min(count, top_k) if top_k > 0 else count
    if limit < count:
        mass = 0.0
    reached, kept = 0.0, 0
    while kept < limit:
        # all that top-k leaves must be known before top-p can say what its share of them is
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

    logits: (V,). uniform in [0, 1). Temperature 0 is greedy; a tiny one can't make a NaN
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
        weights[char] = exp(power) if power > np.float32(-80.0) else np.float32(0.0)  # exp itself never gets to zero
    for char in range(len(logits)):
        total += np.float64(weights[char])
    # A uniform this close to one could round past the end: the last id with mass is meant then.
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
def new_rooms(logits: Floats) -> tuple[Floats, NDArray[np.float64]]:
    """Buffers for what choose computes from a row of logits (S, V)."""
    return np.empty(logits.shape[1], np.float32), np.empty(logits.shape[1])


@inlined
def choose(
    filters: Filters,
    free: Floats,
    known: NDArray[np.int64],
    uniform: float,
    contexts: NDArray[np.int32],
    mixture: Mixture,
    rooms: tuple[Floats, NDArray[np.float64]],
) -> float:
    """Draw the last of a stream's known characters, by the network's logits (V,); return what it costs.

    The logits become the mixture's.
    """
    allowed, room = rooms
    if len(mixture.weights) > 0:
        mix(mixture, contexts, free, room)
    for v in range(len(free)):
        allowed[v] = free[v]
    if filters.no_repeat_ngram > 0:
        forbid_repeats(allowed, known[:-1], filters.no_repeat_ngram)
    filter_logits(allowed, filters.top_k, filters.top_p, filters.min_p)
    known[len(known) - 1] = draw(allowed, uniform, filters.temperature)
    return surprisal(free, known[len(known) - 1])


@compiled
def generate(
    part: Part,
    rank: int,
    filters: Filters,
    ids: NDArray[np.int64],
    starts: NDArray[np.int64],
    num_fed: int,
    uniforms: NDArray[np.float64],
    h: Floats,
    c: Floats,
    contexts: NDArray[np.int32],
    nats: NDArray[np.float64],
    mixture: Mixture,
    team: Team,
) -> None:
    """Feed num_fed characters of every stream, then draw the next ones.

    ids: (S, …), of which row s is known up to starts[s], and its last num_fed + 1 known
    characters have not been fed yet; the repeat guard sees all of them. uniforms: (S, n), for
    the n to draw; nats: (S, n), what each drawn character costs. h, c: (L, S, H), and contexts,
    (1, S, order), of the mixture's n-grams, are changed in place. Every thread of the team calls
    this with its rank and its part.
    """
    num_streams, count = uniforms.shape
    buffers, chars = new_buffers(part, num_streams), np.empty(num_streams, np.int64)
    logits = np.empty((num_streams, len(part.head) * BLOCK), np.float32)
    rooms = new_rooms(team.logits)
    for layer in range(len(h)):
        for stream in range(rank, num_streams, team.size):
            narrow(h[layer, stream], team.outputs[0, layer, stream])
    meet(team.barrier, team.size)
    for step in range(num_fed + count):
        drawn = step - num_fed
        for stream in range(num_streams):
            chars[stream] = ids[stream, starts[stream] + drawn - 1]
        advance(part, chars, step % 2, h, c, team, buffers)
        for stream in range(rank, num_streams, team.size):
            follow(mixture.trie, contexts[0, stream], chars[stream])
        if drawn < 0:
            continue
        product(team.outputs[1 - step % 2, len(h) - 1], part.head, logits)
        for stream in range(num_streams):
            for v in range(len(part.head_bias)):
                team.logits[stream, part.first_char + v] = logits[stream, v] + part.head_bias[v]
        meet(team.barrier, team.size)
        for stream in range(rank, num_streams, team.size):
            free, known = team.logits[stream], ids[stream, : starts[stream] + drawn + 1]
            nats[stream, drawn] = choose(
                filters, free, known, uniforms[stream, drawn], contexts[0, stream], mixture, rooms
            )
        meet(team.barrier, team.size)
