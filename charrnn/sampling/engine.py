"""The threads that draw text together.

If there are enough streams, each thread draws its own ones. Otherwise each computes a shard of the network
for all streams, and waits for the others after every layer. The texts are the same (generation.py).

Letters: S streams, L layers, H hidden size, V vocabulary, N gates * units of a shard.
"""

import ctypes
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import NUM_GATES, ModelConfig, Precision
from charrnn.data.vocab import Vocab
from charrnn.errors import ResourceError
from charrnn.hardware import split_range
from charrnn.kernels.cells import CELLS
from charrnn.kernels.filters import COMPLETE, Constraints, Filters, free_text
from charrnn.kernels.generation import Block, Shard, SharedBuffers, generate
from charrnn.kernels.ngrams import Ints, Mixture
from charrnn.kernels.recurrent import fold_biases
from charrnn.model.ngrams import new_contexts
from charrnn.numerics.barrier import abort, new_barrier
from charrnn.numerics.products import pack_in_numpy, product
from charrnn.numerics.tile import BLOCK, WIDTH
from charrnn.numerics.vectors import Floats

StreamState = tuple[Floats, Floats, Ints]  # h and the LSTM's c, each (L, S, H); the n-grams' contexts, (1, S, order)
_WEIGHTS_PER_PIECE = 1 << 30  # characters times weights read in one call, some 20 ms, so that Ctrl-C works
_WEIGHTS_PER_THREAD = 1 << 15  # reading fewer takes less time than waiting for another thread
_STREAMS_PER_THREAD = 2  # at least, where threads share the streams
_MAX_COPIED = 1 << 22  # weights of a network that is laid out a second time, whole; a larger one is always shared
_CACHE_LINE = 64  # bytes
NO_LIMIT = 1 << 62  # characters left to draw


class Prediction(NamedTuple):
    """A character that was drawn, its probability, and the likeliest characters with theirs.

    Probabilities are the model's at temperature 1, before constraints and filters.
    """

    char: str
    p: float
    top: list[tuple[str, float]]


class Engine:
    """A network, its n-grams and the threads that draw from them. The calling thread is one of the threads."""

    max_streams = 64  # that share one pass over the weights

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Any], threads: int, precision: Precision, mixture: Mixture
    ) -> None:
        """Prepare to draw on at most `threads` threads. tensors: a model's, by name."""
        self.config, self.mixture, self._free = config, mixture, free_text(config.vocab_size)
        self.dtype: type[np.generic] = np.uint16 if precision == "bfloat16" else np.float32
        self._threads, self._tensors = threads, tensors
        self._lock = threading.Lock()  # two draws at once could each wait for threads that the other occupies

    def new_state(self) -> StreamState:
        """Return the state of one stream before its first character."""
        zeros = np.zeros((self.config.num_layers, 1, self.config.hidden_size), np.float32)
        return zeros, zeros.copy(), new_contexts(self.mixture)[None, None]

    def read(self, ids: NDArray[np.int64], state: StreamState) -> None:
        """Feed characters (n,) to one stream, or (S, n) to S streams; their state is updated in place."""
        ids = np.atleast_2d(ids)
        size = max(1, _WEIGHTS_PER_PIECE // self.config.num_parameters)
        for first in range(0, ids.shape[1], size):
            piece = np.pad(ids[:, first : first + size], ((0, 0), (0, 1)))  # the last id is not fed
            block = new_block(piece, np.full(len(piece), piece.shape[1]), np.empty((len(piece), 0)))
            self.draw(Filters(), block, state, num_fed=piece.shape[1] - 1)

    def draw(
        self,
        filters: Filters,
        block: Block,
        state: StreamState,
        *,
        constraints: Constraints | None = None,
        num_fed: int = 0,
    ) -> None:
        """Draw a block; state: updated in place; num_fed: as for generation.generate.

        Draws of several callers run one after the other.
        Raises ResourceError if the system can't start a thread.
        """
        (h, c, contexts), mixture = state, self.mixture
        constraints = constraints or self._free
        num_streams = len(block.ids)
        groups = split_range(num_streams, max(1, min(self._threads, num_streams // _STREAMS_PER_THREAD)))
        network = self._network if len(groups) >= max(2, len(self.shards)) else None
        shared = self._buffers(len(self.shards), num_streams)

        def draw_group(rank: int) -> None:
            assert network is not None
            own = groups[rank]
            part = Block._make(array[own] for array in block)
            states = h[:, own].copy(), c[:, own].copy(), contexts[:, own].copy()  # contiguous, as the kernel needs them
            buffers = self._buffers(1, len(part.ids))
            generate(network, 0, filters, constraints, part, num_fed, states[0], states[1], states[2], mixture, buffers)
            h[:, own], c[:, own], contexts[:, own] = states

        def draw_shard(rank: int) -> None:
            try:
                shard = self.shards[rank]
                generate(shard, rank, filters, constraints, block, num_fed, h, c, contexts, mixture, shared)
            except BaseException:
                abort(shared.barrier)
                raise

        if network is not None:
            self._run(draw_group, len(groups))
            return
        try:
            self._run(draw_shard, len(self.shards))
        except BaseException:  # Ctrl-C between two submissions, for example: no thread may wait for a missing one
            abort(shared.barrier)
            raise

    def _buffers(self, num_threads: int, num_streams: int) -> SharedBuffers:
        return SharedBuffers(
            new_barrier(),
            num_threads,
            outputs=np.empty((2, self.config.num_layers, num_streams, self.config.hidden_size), self.dtype),
            logits=np.empty((num_streams, self.config.vocab_size), np.float32),
        )

    def _run(self, function: Callable[[int], None], num_threads: int) -> None:
        """Call function(rank) for each rank, 0 on the calling thread. Raises what a call raises."""

        def run(rank: int) -> None:
            _pin_thread(cores[rank - 1])
            function(rank)

        with self._lock:
            cores = cores_for_others(num_threads - 1)
            futures = [self._submit(run, rank) for rank in range(1, num_threads)]
            function(0)
            for future in futures:
                future.result()

    def _submit(self, function: Callable[[int], None], rank: int) -> Future[None]:
        try:
            return self._pool.submit(function, rank)
        except RuntimeError as error:
            raise ResourceError(f"{error}; use fewer --threads") from None

    @cached_property
    def shards(self) -> list[Shard]:
        """The network, laid out for as many threads as it can keep busy."""
        most = min(self.config.num_parameters // _WEIGHTS_PER_THREAD, -(-self.config.hidden_size // WIDTH))
        return make_shards(self.config, self._tensors, max(1, min(self._threads, most)), self.dtype)

    @cached_property
    def _network(self) -> Shard | None:
        """The whole network for one thread; None if it is too large to be laid out a second time."""
        if len(self.shards) == 1:
            return self.shards[0]
        is_small = self.config.num_parameters <= _MAX_COPIED
        return make_shards(self.config, self._tensors, 1, self.dtype)[0] if is_small else None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads - 1, "charrnn")


def new_block(
    ids: NDArray[np.int64], starts: NDArray[np.int64], uniforms: NDArray[np.float64], *, num_top: int = 0
) -> Block:
    """Make a block to draw, of texts without constraints. num_top: how many of the likeliest characters to find."""
    shape = uniforms.shape
    return Block(
        ids,
        starts,
        uniforms,
        left=np.full(len(ids), NO_LIMIT),
        states=np.full((len(ids), shape[1] + 1), COMPLETE, np.int32),
        nats=np.empty(shape),
        log_shares=np.zeros(shape),
        top=np.empty((*shape, num_top), np.int32),
        probabilities=np.empty((*shape, num_top), np.float32),
    )


def predictions_of(block: Block, row: int, count: int, vocab: Vocab) -> list[Prediction]:
    """Return the predictions of the first `count` characters that a block drew for a stream."""
    start, chars = block.starts[row], vocab.chars
    found = []
    for place in range(count):
        likeliest = zip(block.top[row, place].tolist(), block.probabilities[row, place].tolist(), strict=True)
        char, probability = chars[block.ids[row, start + place]], math.exp(-block.nats[row, place])
        found.append(Prediction(char, probability, [(chars[other], p) for other, p in likeliest]))
    return found


def cores_for_others(num_threads: int) -> list[set[int]]:
    """Return for each of num_threads threads the cores it may run on without disturbing the caller; empty if unknown.

    A system may wake a thread on the caller's core and leave it there for a while, because two
    threads that take turns every few microseconds look as if they had just begun.
    """
    try:
        cores = sorted(os.sched_getaffinity(0) - {ctypes.CDLL(None).sched_getcpu()})
    except (AttributeError, OSError):  # not Linux
        cores = []
    return [set(cores[number::num_threads]) for number in range(num_threads)]


def _pin_thread(cores: set[int]) -> None:
    """Keep the current thread on these cores, if any are given."""
    if cores:
        with suppress(AttributeError, OSError):  # not Linux; they may have been taken from this process
            os.sched_setaffinity(0, cores)


def make_shards(
    config: ModelConfig, tensors: Mapping[str, Any], num_shards: int, dtype: type[np.generic] = np.float32
) -> list[Shard]:
    """Lay a model's tensors out for several threads. dtype: float32, or uint16 for bfloat16."""
    gates = NUM_GATES[config.cell]
    layers = [
        {name: tensors[f"layers.{k}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        for k in range(config.num_layers)
    ]
    biases = [fold_biases(config.cell, layer["bias_ih"], layer["bias_hh"]) for layer in layers]
    table = _input_table(config, tensors["embedding.weight"], layers[0]["weight_ih"], biases[0][0])
    shards = []
    for units, chars in zip(
        split_range(config.hidden_size, num_shards, WIDTH),
        split_range(config.vocab_size, num_shards, BLOCK),
        strict=True,
    ):
        own = np.arange(units.start, units.stop)
        rows = np.concatenate([own + gate * config.hidden_size for gate in range(gates)])
        shards.append(
            Shard(
                cell=CELLS[config.cell],
                first_unit=units.start,
                num_units=units.stop - units.start,
                first_char=chars.start,
                table=np.array(table[:, rows], np.float32, order="C"),
                input=_pack([layer["weight_ih"][rows] for layer in layers[1:]], dtype),
                recurrent=_pack([layer["weight_hh"][rows] for layer in layers], dtype),
                bias=np.array([bias[rows] for bias, _ in biases[1:]], np.float32).reshape(-1, len(rows)),
                inner_bias=np.array([inner[units] for _, inner in biases], np.float32),
                head=_pack([tensors["head.weight"][chars]], dtype)[0],
                head_bias=np.array(tensors["head.bias"][chars], np.float32),
            )
        )
    return shards


def _input_table(config: ModelConfig, embedding: Any, weight_ih: Any, bias: Floats) -> Floats:
    """Compute the first layer's input projection for every character: (V, gates * H)."""
    packed = pack_in_numpy(weight_ih, np.empty(0, np.float32))
    table = np.empty((config.vocab_size, packed.shape[0] * BLOCK), np.float32)
    product(np.array(embedding), packed, table)  # a copy, because arrays from a file are unaligned
    return table[:, : len(bias)] + bias


def _pack(weights: list[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Pack weights of one shape for the kernels and stack them: (len(weights), …)."""
    if not weights:
        return np.empty((0, 0, 0, 0), dtype)
    return align_to_cache_lines(np.stack([pack_in_numpy(weight, np.empty(0, dtype)) for weight in weights]))


def align_to_cache_lines(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array to the start of a cache line, because a vector across two lines takes longer to read."""
    memory = np.empty(array.nbytes + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
