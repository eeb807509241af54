"""Streams: texts that are drawn side by side, each an iterator over its pieces.

The random number for position p of stream i under seed s is keyed by (s, i, p). So a seed gives the
same text with any number of threads, next to any other samples, and at the start of any longer text.

Letters: S streams, L layers, H hidden size, V vocabulary.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from charrnn.counters import candidate_number, stream_uniforms
from charrnn.data.vocab import Vocab
from charrnn.kernels.filters import COMPLETE
from charrnn.kernels.generation import Block
from charrnn.sampling.engine import NO_LIMIT, Engine, Prediction, StreamState, new_block, predictions_of
from charrnn.sampling.prompts import Opening, read_openings
from charrnn.sampling.stopping import LengthLimit, StopCondition
from charrnn.text.characters import END

_FIRST_BLOCK, _MAX_BLOCK = 4, 4096  # characters drawn at a time; the text doesn't depend on it
_MIN_BLOCK, _BLOCKS_PER_TEXT = 8, 4  # where texts end by themselves
_SECONDS_PER_BLOCK = 0.03  # target; keeps text flowing and Ctrl-C prompt
_MAX_WAITING = 4  # streams that are started but not read, as a multiple of those drawn together
_MAX_UNREAD = 1 << 16  # characters that a stream draws ahead of its reader
_MAX_HISTORY = 1 << 24  # characters of all streams in a block that the repeat guard searches


class StreamBatch:
    """Streams drawn together, for one thread to read: an iterator over them in order."""

    def __init__(
        self,
        engine: Engine,
        vocab: Vocab,
        openings: Iterable[tuple[Opening, int]],
        *,
        num_top: int,
        most: int | None,
    ) -> None:
        """openings: what each text continues, and the number of its stream; taken as the streams are started.

        num_top: how many of the likeliest characters predictions list, all if there are fewer; 0: no predictions.
        most: streams that are drawn side by side, at most; None: as many as the engine can.
        """
        self.vocab = vocab
        self._engine, self._num_top = engine, min(num_top, len(vocab))
        self._most = min(most or engine.max_streams, engine.max_streams)
        self._openings = (
            (opening, number, candidate) for opening, number in openings for candidate in range(opening.num_candidates)
        )
        self._streams: deque[Stream] = deque()
        self._num_ended = self._num_chars_ended = 0
        self._block = _FIRST_BLOCK

    def __iter__(self) -> Iterator["Stream"]:
        while self._streams or self._start_streams(1):
            count = self._streams[0].opening.num_candidates
            yield self._streams[0] if count == 1 else self._choose_candidate(count)
            for _ in range(count):
                self._streams.popleft()

    def _choose_candidate(self, count: int) -> "Stream":
        """Draw the next texts to their ends and return one of them, in proportion to its weight.

        Source: sampling importance resampling, Rubin 1987.
        """
        self._start_streams(count - len(self._streams))
        candidates = list(itertools.islice(self._streams, count))
        for stream in candidates:
            while not stream.ended:
                self.draw(stream)
        weights = np.array([stream.log_weight for stream in candidates])
        reached = np.cumsum(np.exp(weights - weights.max()))
        number = candidate_number(seed=candidates[0].seed, stream=candidates[0].number)
        return candidates[int(np.searchsorted(reached, number * reached[-1], side="right"))]

    def _start_streams(self, count: int) -> "list[Stream]":
        """Start at most `count` streams; return those that were started."""
        started = [Stream(self, *one) for one in itertools.islice(self._openings, max(0, count))]
        self._streams.extend(started)
        return started

    def _choose_streams(self, reader: "Stream") -> "list[Stream]":
        """Return the streams to draw together: the one that is being read, others that may be drawn ahead, new ones."""
        most = self._most if reader.opening.ends else 1  # nobody reads past an endless stream
        others = [stream for stream in self._streams if stream is not reader and stream.can_draw_ahead]
        if most > 1:
            left = min(_MAX_WAITING * most - len(self._streams), most - 1 - len(others))
            others += self._start_streams(left)
        active = [reader, *(stream for stream in others if stream.opening.can_join(reader.opening))]
        longest = max(len(stream.history) for stream in active)
        return active[: max(1, min(most, _MAX_HISTORY // longest))]

    def read_prompts(self) -> None:
        """Start the first stream and feed its prompt, which takes a while if it is long."""
        if not self._streams:
            self._start_streams(1)
        read_openings(self._engine, [stream.opening for stream in self._streams])

    def draw(self, reader: "Stream") -> None:
        """Draw a block of the stream that is being read, and of the other streams that may be drawn ahead."""
        active = self._choose_streams(reader)
        read_openings(self._engine, [stream.opening for stream in active])
        block = self._make_block(active, self._choose_count(reader))
        states = [stream.state or stream.opening.state for stream in active]
        h, c, contexts = (np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))
        state = h, c, contexts
        began = time.perf_counter()
        filters, constraints = reader.opening.filters, reader.opening.constraints
        self._engine.draw(filters, block, state, constraints=constraints)
        seconds = time.perf_counter() - began
        affordable = max(1, int(block.nats.shape[1] * _SECONDS_PER_BLOCK / seconds))
        self._block = min(affordable, 2 * self._block, _MAX_BLOCK)
        self._add_drawn(active, block, state, seconds)

    def _choose_count(self, reader: "Stream") -> int:
        """Return how many characters to draw of each stream."""
        count = self._block if reader.limit.left < 0 else min(self._block, reader.limit.left)
        if reader.opening.ends_early and self._num_ended:  # most of a longer block would be thrown away
            count = min(count, max(_MIN_BLOCK, self._num_chars_ended // self._num_ended // _BLOCKS_PER_TEXT))
        return count

    def _make_block(self, active: "list[Stream]", count: int) -> Block:
        """Make a block of the next `count` characters of some streams."""
        starts = np.array([len(stream.history) for stream in active])
        ids = np.zeros((len(active), int(starts.max()) + count), np.int64)
        for row, stream in enumerate(active):
            ids[row, : starts[row]] = stream.history
        numbers = stream_uniforms(
            count,
            seeds=[stream.seed for stream in active],
            streams=[stream.number for stream in active],
            positions=[stream.num_drawn for stream in active],
            candidates=[stream.candidate for stream in active],
        )
        block = new_block(ids, starts, numbers, num_top=self._num_top)
        block.left[:] = [NO_LIMIT if stream.limit.left < 0 else stream.limit.left for stream in active]
        block.states[:, 0] = [stream.automaton_state for stream in active]
        return block

    def _add_drawn(self, active: "list[Stream]", block: Block, state: StreamState, seconds: float) -> None:
        """Add to each stream what was drawn, up to where it ends. state: after the block."""
        (h, c, contexts), count = state, block.nats.shape[1]
        drawn = np.take_along_axis(block.ids, block.starts[:, None] + np.arange(count), axis=1)
        text = self.vocab.decode(drawn.ravel())
        # added one by one, because the rounding of a sum would depend on the block size
        nats = np.add.accumulate(np.column_stack([[stream.nats for stream in active], block.nats]), axis=1)
        weights = np.column_stack([[stream.log_weight for stream in active], block.log_shares])
        weights = np.add.accumulate(weights, axis=1)
        for row, stream in enumerate(active):
            num_used = stream.append(text[row * count : (row + 1) * count], block.states[row])
            stream.nats, stream.log_weight = float(nats[row, num_used]), float(weights[row, num_used])
            stream.seconds += seconds
            if self._num_top:
                stream.predictions += predictions_of(block, row, num_used, self.vocab)
            if stream.ended:
                self._num_ended += 1
                self._num_chars_ended += stream.num_drawn
                continue
            own = slice(row, row + 1)
            stream.history = stream.opening.remembered(block.ids[row, : block.starts[row] + count])
            stream.state = h[:, own].copy(), c[:, own].copy(), contexts[:, own].copy()


class Stream:
    """One sample: an iterator over pieces of its text.

    A model of bytes writes each byte that is not UTF-8 as a surrogate escape, and no piece ends within a character.
    num_drawn: characters so far, including those of a stop text; nats: their surprisal for the model
    without filters at temperature 1; seconds: time spent drawing them, together with other streams;
    seed: gives this text again; log_weight: the log of the probability that constraints left at each
    character, summed; 0 without constraints; predictions: of each character, if the batch has a num_top.
    """

    def __init__(self, batch: StreamBatch, opening: Opening, number: int, candidate: int) -> None:
        config, vocab = opening.config, batch.vocab
        self.opening = opening
        self.number = number
        self.seed = opening.seed
        self.num_drawn = 0
        self.nats = 0.0
        self.log_weight = 0.0
        self.seconds = 0.0
        self.predictions: list[Prediction] = []
        self.history = opening.remembered(opening.prefix)
        self.state: StreamState | None = None  # before the last id of the history; None for the prompt's
        self.automaton_state = opening.start
        self.limit = LengthLimit(config.length, has_bytes=vocab.has_bytes)
        self._batch, self.candidate = batch, candidate
        self._has_automaton = opening.has_automaton
        self._is_complete = self._has_automaton and self.automaton_state == COMPLETE
        self.ended = self._is_complete or config.length == 0
        stops = [vocab.to_chars(stop) for stop in config.stop]
        if END in vocab.chars:
            stops.append(END)
        self._stop = StopCondition(config.lines, stops, keep_stop=config.keep_stop)
        self._decode = vocab.make_decoder()
        self._pieces: deque[str] = deque()  # drawn but not read
        self._num_unread = 0  # their characters

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._pieces:
            if self.ended:
                raise StopIteration
            self._batch.draw(self)
        piece = self._pieces.popleft()
        self._num_unread -= len(piece)
        return piece

    @property
    def is_whole(self) -> bool:
        """Whether the text ended by itself, and not at its length."""
        return self._stop.reached or self._is_complete

    @property
    def can_draw_ahead(self) -> bool:
        """Whether more may be drawn before the stream is read."""
        return not self.ended and self._num_unread < _MAX_UNREAD

    def append(self, text: str, automaton_states: NDArray[np.int32]) -> int:
        """Add the characters just drawn, up to where the text ends; return how many that are.

        text: one character per id; automaton_states: before each of them and at the end.
        """
        if self._has_automaton:
            self.automaton_state, is_complete = int(automaton_states[-1]), automaton_states == COMPLETE
            self._is_complete = bool(is_complete.any())
            if self._is_complete:
                text = text[: int(is_complete.argmax())]
        num_used, piece = self._stop.feed(self.limit.feed(text))
        self.num_drawn += num_used
        self.ended = self.is_whole or self.limit.left == 0
        if self.ended:
            piece += self._stop.flush()
        piece = self._decode(piece, self.ended)
        if piece:
            self._pieces.append(piece)
            self._num_unread += len(piece)
        return num_used
