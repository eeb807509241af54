"""The compiled generation loop: no Python runs between one character and the next.

Several streams are drawn at once, so that each pass over the weights serves all of them.
Several threads can share each character: a thread computes all gates of its own units and the logits
of its own part of the vocabulary, for every stream, and draws for some of the streams. Threads
wait for each other after each layer, after the logits and after the draw. One thread computes a
sum, always in the same order (products.py), so a text depends neither on the number of threads
nor on the other streams.

A character takes a lookup in the first layer's table, products, gates, logits, constraints, filters
and an inverse-CDF draw (filters.py).

Letters: S streams, L layers, H hidden size, V vocabulary, U units of a thread, N gates * U, K candidates.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.cells import GRU, RNN, gru_step, lstm_step, rnn_step
from charrnn.kernels.filters import (
    COMPLETE,
    Constraints,
    Filters,
    draw,
    filter_logits,
    follow_automaton,
    forbid_copies,
    forbid_repeats,
    log_share,
)
from charrnn.kernels.head import fill_top, surprisal
from charrnn.kernels.ngrams import Mixture, extend_contexts, mix
from charrnn.numerics.barrier import wait
from charrnn.numerics.compilation import compiled, inlined
from charrnn.numerics.products import padded, product
from charrnn.numerics.tile import BLOCK
from charrnn.numerics.vectors import Doubles, Floats, Stored, narrow


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


class Block(NamedTuple):
    """The next n characters of S streams.

    ids: (S, …), known up to starts (S,), and drawn from there. uniforms: (S, n), a random number for each character
    to draw. left: (S,), how many characters each text may still have. states: (S, n + 1), of the constraints'
    automaton, of which the first column is given. Filled in are the others, nats: (S, n), the surprisal of each
    character; log_shares: (S, n), the log of the probability that the constraints left; top, probabilities:
    (S, n, K), the likeliest characters.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    uniforms: Doubles
    left: NDArray[np.int64]
    states: NDArray[np.int32]
    nats: Doubles
    log_shares: Doubles
    top: NDArray[np.int32]
    probabilities: Floats


@inlined
def new_sampling_buffers(logits: Floats) -> tuple[Floats, Doubles]:
    """Allocate the filtered logits and the n-grams' log probabilities for a row of logits (S, V): (V,) each."""
    return np.empty(logits.shape[1], np.float32), np.empty(logits.shape[1])


@inlined
def sample_char(
    filters: Filters,
    constraints: Constraints,
    block: Block,
    place: tuple[int, int],
    logits: Floats,
    contexts: NDArray[np.int32],
    mixture: Mixture,
    buffers: tuple[Floats, Doubles],
) -> None:
    """Draw a stream's next character, and fill in what the block has about it.

    place: the stream and the index among the characters to draw. logits: (V,), the network's, which
    are replaced by the mixture's; buffers: from new_sampling_buffers.
    """
    filtered, log_probabilities = buffers
    stream, drawn = place
    known, left = block.ids[stream, : block.starts[stream] + drawn], block.left[stream] - drawn
    if len(mixture.weights) > 0:
        mix(mixture, contexts, logits, log_probabilities)
    for v in range(len(logits)):
        filtered[v] = logits[v]
    state = int(block.states[stream, drawn])
    if state != COMPLETE:
        state = follow_automaton(constraints, state, left, filtered)
        block.states[stream, drawn] = state
    if constraints.run > 0:
        forbid_copies(constraints, known, filtered)
    if state != COMPLETE or constraints.run > 0:
        block.log_shares[stream, drawn] = log_share(logits, filtered, filters.temperature)
    if filters.no_repeat_ngram > 0:
        forbid_repeats(filtered, known, filters.no_repeat_ngram, filters.end_id)
    filter_logits(filtered, filters.top_k, filters.top_p, filters.min_p)
    char = draw(filtered, block.uniforms[stream, drawn], filters.temperature)
    nats = surprisal(logits, char)
    block.ids[stream, block.starts[stream] + drawn] = char
    block.nats[stream, drawn] = nats
    block.states[stream, drawn + 1] = constraints.transitions[state, constraints.classes[char]]
    top = block.top[stream, drawn]
    if len(top) > 0:
        fill_top(logits, top)
    for k in range(len(top)):
        margin = np.float64(logits[char]) - np.float64(logits[top[k]])
        block.probabilities[stream, drawn, k] = math.exp(-nats - margin)


@compiled
def generate(
    shard: Shard,
    rank: int,
    filters: Filters,
    constraints: Constraints,
    block: Block,
    num_fed: int,
    h: Floats,
    c: Floats,
    contexts: NDArray[np.int32],
    mixture: Mixture,
    shared: SharedBuffers,
) -> None:
    """Feed num_fed characters of every stream, then draw the block.

    The last num_fed + 1 known characters of each stream are not fed yet. The repeat guard sees all
    known characters. h, c: (L, S, H), and contexts: (1, S, order), of the mixture's n-grams, are
    updated in place. Every thread calls this with its rank and its shard.
    """
    num_streams, count = block.uniforms.shape
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
            chars[stream] = block.ids[stream, block.starts[stream] + drawn - 1]
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
            row, place = shared.logits[stream], (stream, drawn)
            sample_char(filters, constraints, block, place, row, contexts[0, stream], mixture, sampling_buffers)
        wait(shared.barrier, shared.num_threads)
