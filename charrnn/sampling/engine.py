"""Threads that draw text together, each with its part of a network.

Letters: S streams, L layers, H hidden size, V vocabulary, N gates * a part's units.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import NUM_GATES, ModelConfig, Precision
from charrnn.errors import ResourceError
from charrnn.hardware import split_range
from charrnn.kernels.barrier import abandon, new_barrier
from charrnn.kernels.generation import Filters, Part, Team, generate
from charrnn.kernels.ngrams import Ints, Mixture
from charrnn.kernels.products import BLOCK, WIDTH, packed_transpose, product
from charrnn.kernels.recurrent import CELLS, fold_biases
from charrnn.kernels.vectors import Floats
from charrnn.model.ngrams import new_contexts

StreamState = tuple[Floats, Floats, Ints]  # h, and the LSTM's c, each (L, S, H); the n-grams' contexts, (1, S, order)
_WEIGHTS_A_PIECE = 1 << 30  # that a prompt's pieces meet, so that Ctrl-C is heard: some 20 ms of reading
_WEIGHTS_PER_THREAD = 1 << 15  # fewer are read sooner than two threads meet


class Engine:
    """A network with its n-grams, and as many threads as it keeps busy.

    They share every character; the caller's is one of them.
    """

    max_streams = 64  # streams that share a pass over the weights

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Any], threads: int, precision: Precision, mixture: Mixture
    ) -> None:
        self.config, self.mixture = config, mixture
        self.storage: type[np.generic] = np.uint16 if precision == "bfloat16" else np.float32
        most = min(config.num_parameters // _WEIGHTS_PER_THREAD, -(-config.hidden_size // WIDTH))
        self.parts = make_parts(config, tensors, max(1, min(threads, most)), self.storage)
        self._lock = threading.Lock()  # of two draws at once each might wait for threads that the other has

    def new_state(self) -> StreamState:
        """Zeros for one stream, and no characters before it."""
        return no_state(self.config, self.mixture)

    def read(self, ids: NDArray[np.int64], state: StreamState) -> None:
        """Feed a stream's state, (L, 1, H), with characters (n,), in place."""
        size = max(1, _WEIGHTS_A_PIECE // self.config.num_parameters)
        for first in range(0, len(ids), size):
            piece = np.append(ids[first : first + size], 0)[None]  # the last would be fed before a draw
            self.draw(Filters(), piece, np.array([piece.size]), np.empty((1, 0)), state, num_fed=piece.size - 1)

    def draw(
        self,
        filters: Filters,
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        numbers: NDArray[np.float64],
        state: StreamState,
        *,
        num_fed: int = 0,
    ) -> NDArray[np.float64]:
        """Draw the next n characters of S streams, in place, as generation.generate; return what they cost, (S, n).

        One draw at a time: others wait. Raises ResourceError where the system has no thread left.
        """
        size, num_streams, nats = len(self.parts), len(ids), np.empty(numbers.shape)
        outputs = np.empty((2, self.config.num_layers, num_streams, self.config.hidden_size), self.storage)
        logits = np.empty((num_streams, self.config.vocab_size), np.float32)
        team = Team(new_barrier(), size, outputs, logits)

        def take_part(rank: int) -> None:
            try:
                if rank > 0 and cores[rank - 1]:
                    with suppress(OSError):  # taken from this process meanwhile
                        os.sched_setaffinity(0, cores[rank - 1])
                generate(
                    *(self.parts[rank], rank, filters, ids, starts, num_fed, numbers),
                    *(*state, nats, self.mixture, team),
                )
            except BaseException:
                abandon(team.barrier)
                raise

        with self._lock:
            cores = other_cores(size - 1)
            try:
                others = [self._submit(take_part, rank) for rank in range(1, size)]
                take_part(0)
            except BaseException:  # Ctrl-C between two of them, say: nobody may wait for one that never comes
                abandon(team.barrier)
                raise
            for other in others:
                other.result()
        return nats

    def _submit(self, work: Callable[[int], None], rank: int) -> Future[None]:
        try:
            return self._pool.submit(work, rank)
        except RuntimeError as error:
            raise ResourceError(f"{error}; use fewer --threads") from None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self.parts) - 1, "charrnn")


def no_state(config: ModelConfig, mixture: Mixture) -> StreamState:
    """That of one stream before its first character."""
    zeros = np.zeros((config.num_layers, 1, config.hidden_size), np.float32)
    return zeros, zeros.copy(), new_contexts(mixture)[None, None]


def other_cores(num_threads: int) -> list[set[int]]:
    """For each of so many threads the cores that it may run on beside the caller; none where nothing can be said.

    A system may wake a thread where the caller is busy, and leave it there for a while: two
    that take turns on a core every few microseconds look as if they had just begun on it.
    """
    try:
        cores = sorted(os.sched_getaffinity(0) - {ctypes.CDLL(None).sched_getcpu()})
    except (AttributeError, OSError):  # not Linux
        cores = []
    return [set(cores[number::num_threads]) for number in range(num_threads)]


def make_parts(
    config: ModelConfig, tensors: Mapping[str, Any], num_parts: int, storage: type[np.generic] = np.float32
) -> list[Part]:
    """Lay a model's tensors out for so many threads. storage: float32, or uint16 for bfloat16."""
    hidden_size, gates = config.hidden_size, NUM_GATES[config.cell]
    like = np.empty(0, storage)

    def packed(weights: list[Any]) -> Any:
        nothing = [np.empty((0, 0, 0), storage)]
        stacked = np.stack([packed_transpose(weight, like) for weight in weights] or nothing)
        return _on_cache_lines(stacked)[: len(weights)]

    layers = [
        {name: tensors[f"layers.{k}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        for k in range(config.num_layers)
    ]
    biases = [fold_biases(config.cell, layer["bias_ih"], layer["bias_hh"]) for layer in layers]
    first_weight = packed_transpose(layers[0]["weight_ih"], biases[0][0])
    table = np.empty((config.vocab_size, first_weight.shape[0] * BLOCK), np.float32)
    embedding = np.array(tensors["embedding.weight"])  # a copy: arrays from a file lie unaligned
    product(embedding, first_weight, table)
    table = table[:, : gates * hidden_size] + biases[0][0]
    parts = []
    for units, chars in zip(
        split_range(hidden_size, num_parts, WIDTH), split_range(config.vocab_size, num_parts, BLOCK), strict=True
    ):
        rows = np.concatenate([np.arange(units.start, units.stop) + gate * hidden_size for gate in range(gates)])
        parts.append(
            Part(
                cell=CELLS[config.cell],
                first_unit=units.start,
                num_units=units.stop - units.start,
                first_char=chars.start,
                table=np.array(table[:, rows], np.float32, order="C"),
                input=packed([layer["weight_ih"][rows] for layer in layers[1:]]),
                recurrent=packed([layer["weight_hh"][rows] for layer in layers]),
                bias=np.array([bias[rows] for bias, _ in biases[1:]], np.float32).reshape(-1, len(rows)),
                inner_bias=np.array([inner[units] for _, inner in biases], np.float32),
                head=packed([tensors["head.weight"][chars]])[0],
                head_bias=np.array(tensors["head.bias"][chars], np.float32),
            )
        )
    return parts


def _on_cache_lines(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins where a cache line does; elsewhere each vector would be read from two."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
