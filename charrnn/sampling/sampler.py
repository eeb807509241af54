"""Draw text from a model, without PyTorch.

The random number for position p of stream i under seed s is keyed by (s, i, p). So a seed gives the
same text with any number of threads, next to any other samples, and at the start of any longer text.

Letters: S streams, L layers, H hidden size, V vocabulary.
"""

import itertools
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig, overlay
from charrnn.counters import uniforms
from charrnn.data.characters import END, UNKNOWN, describe
from charrnn.errors import UsageError
from charrnn.hardware import available_cores, select_precision
from charrnn.kernels.ngrams import no_mixture
from charrnn.model.file import ModelFile, load_model
from charrnn.sampling.engine import Engine, StreamState, new_block
from charrnn.sampling.prompts import Opening, read_openings
from charrnn.sampling.stopping import LengthLimit, StopCondition

_FIRST_BLOCK, _MAX_BLOCK = 4, 4096  # characters drawn at a time; the text doesn't depend on it
_MIN_BLOCK, _BLOCKS_PER_TEXT = 8, 4  # where texts end by themselves
_SECONDS_PER_BLOCK = 0.03  # target; keeps text flowing and Ctrl-C prompt
_MAX_WAITING = 4  # streams that are started but not read, as a multiple of those drawn together
_MAX_UNREAD = 1 << 16  # characters that a stream draws ahead of its reader
_MAX_HISTORY = 1 << 24  # characters of all streams in a block that the repeat guard searches


class Sampler:
    """A model ready to draw text."""

    def __init__(self, model: ModelFile, *, threads: int | None = None, precision: str = "float32") -> None:
        """Lay the model's weights out for the kernels.

        threads: the most to use; None means one per core. precision: number format of the weights and
        products: float32, bfloat16 or auto (the faster one here).
        Raises UsageError for an unknown precision, ResourceError for one that would be emulated.
        """
        self.vocab = model.vocab
        self.config = model.config
        self.precision = select_precision(precision)
        tensors, rare_id = model.tensors, model.vocab.id_of(UNKNOWN)
        if rare_id is not None:  # it stands for many characters, so it is never drawn
            bias = np.array(tensors["head.bias"])
            bias[rare_id] = -np.inf
            tensors = {**tensors, "head.bias": bias}
        mixture, threads = model.mixture or no_mixture(), threads or available_cores()
        self.engine = Engine(model.config, tensors, threads, self.precision, mixture)

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None, precision: str = "float32") -> "Sampler":
        """Load a model file. Raises ModelFileError, and the errors of the constructor."""
        return cls(load_model(path), threads=threads, precision=precision)

    @property
    def writes_documents(self) -> bool:
        """Whether each text is a document, with a beginning and an end."""
        return END in self.vocab.chars

    def writes_several_lines(self, config: SampleConfig) -> bool:
        """Whether a text may contain a newline before its end."""
        return "\n" in self.vocab.chars and config.lines != 1 and "\n" not in config.stop

    def configure(self, given: Mapping[str, Any]) -> SampleConfig:
        """Complete the settings that are given, by name: a random seed, and whole documents for a model of documents.

        Raises UsageError for a value out of range.
        """
        config = overlay(SampleConfig(seed=random_seed()), given)
        return replace(config, length=-1) if self.writes_documents and "length" not in given else config

    def encode_prompt(self, config: SampleConfig) -> NDArray[np.int64]:
        """Encode the prompt that the first character follows, at least one id.

        A text without a prompt starts as if after a newline, or for a model of documents as a new document.
        Raises UnknownCharacterError for a prompt with characters outside the vocabulary, unless they are skipped.
        """
        prompt = self.vocab.to_chars(config.prompt)
        if config.unknown == "error":
            ids = self.vocab.encode(prompt).astype(np.int64)
        else:
            ids = self.vocab.encode_known(prompt)[0].astype(np.int64)
        if self.writes_documents:
            return np.append(self.vocab.chars.find(END), ids)
        return ids if len(ids) > 0 else np.array([max(0, self.vocab.chars.find("\n"))])

    def check_ends(self, config: SampleConfig) -> None:
        """Raise UsageError for an end that no text of this model can reach."""
        for stop in config.stop:
            for char in self.vocab.to_chars(stop):
                if char not in self.vocab.chars:
                    raise UsageError(f"--stop '{stop}' would never occur: the model does not know {describe(char)}")
        if config.lines and "\n" not in self.vocab.chars:
            hint = f"; each of its samples is one line, so use -N {config.lines}" if self.writes_documents else ""
            raise UsageError(f"--lines {config.lines} has no effect: the model knows no newline{hint}")

    def stream(self, config: SampleConfig, *, number: int = 0) -> "Stream":
        """Draw one text after the prompt: an iterator over pieces of it.

        number: which of the seed's streams to draw. A model of documents stops at the end of the document.
        Raises UnknownCharacterError, as encode_prompt, and UsageError, as check_ends, before the first character.
        """
        if not 0 <= number < 2**63:
            raise UsageError(f"the number of a stream must lie between 0 and 2^63 - 1, not {number}")
        return Stream(StreamBatch(self, ()), self.open(config), number)

    def streams(self, config: SampleConfig) -> "StreamBatch":
        """Draw num_samples texts: an iterator over streams 0, 1, …, each to be read before the next.

        While one stream is read, the next ones are drawn next to it, because one pass over the weights
        serves a few dozen streams. Otherwise as `stream`.
        """
        opening = self.open(config)
        return StreamBatch(self, ((opening, number) for number in range(config.num_samples)))

    def open(self, config: SampleConfig) -> Opening:
        """Check and encode a prompt and its settings. Raises the errors of `stream`."""
        ids = self.encode_prompt(config)
        self.check_ends(config)
        seed = random_seed() if config.seed is None else config.seed
        return Opening(config, seed, ids, end=self.vocab.chars.find(END))


class StreamBatch:
    """Streams drawn together, for one thread to read: an iterator over them in order."""

    def __init__(self, sampler: Sampler, openings: Iterable[tuple[Opening, int]]) -> None:
        """openings: what each text continues, and the number of its stream; taken as the streams are started."""
        self.sampler = sampler
        self._openings = iter(openings)
        self._streams: deque[Stream] = deque()
        self._num_ended = self._num_chars_ended = 0
        self._block = _FIRST_BLOCK

    def __iter__(self) -> Iterator["Stream"]:
        while self._streams or self._start_streams(1):
            yield self._streams[0]
            self._streams.popleft()

    def _start_streams(self, count: int) -> "list[Stream]":
        """Start at most so many streams; return those that there are."""
        started = [Stream(self, *one) for one in itertools.islice(self._openings, count)]
        self._streams.extend(started)
        return started

    def _choose_streams(self, reader: "Stream") -> "list[Stream]":
        """Return the streams to draw together: the one that is being read, others that may be drawn ahead, new ones."""
        most = self.sampler.engine.max_streams if reader.opening.can_end else 1  # nobody reads past an endless stream
        others = [stream for stream in self._streams if stream is not reader and stream.can_draw_ahead]
        if most > 1:
            left = min(_MAX_WAITING * most - len(self._streams), most - 1 - len(others))
            others += self._start_streams(max(0, left))
        active = [reader, *(stream for stream in others if stream.opening.filters == reader.opening.filters)]
        longest = max(len(stream.history) for stream in active)
        return active[: max(1, min(most, _MAX_HISTORY // longest))]

    def read_prompts(self) -> None:
        """Start the first stream and feed its prompt, which takes a while if it is long."""
        if not self._streams:
            self._start_streams(1)
        read_openings(self.sampler.engine, [stream.opening for stream in self._streams])

    def draw(self, reader: "Stream") -> None:
        """Draw a block of the stream that is being read, and of the other streams that may be drawn ahead."""
        active = self._choose_streams(reader)
        longest = max(len(stream.history) for stream in active)
        count = self._block if reader.limit.left < 0 else min(self._block, reader.limit.left)
        if reader.opening.can_end_early and self._num_ended:  # most of a longer block would be thrown away
            count = min(count, max(_MIN_BLOCK, self._num_chars_ended // self._num_ended // _BLOCKS_PER_TEXT))
        starts = np.array([len(stream.history) for stream in active])
        ids = np.zeros((len(active), longest + count), np.int64)
        for row, stream in enumerate(active):
            ids[row, : starts[row]] = stream.history
        numbers = np.stack([stream.random_numbers(count) for stream in active])
        read_openings(self.sampler.engine, [stream.opening for stream in active])
        states = [stream.state or stream.opening.state for stream in active]
        h, c, contexts = (np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))
        block = new_block(ids, starts, numbers)
        began = time.perf_counter()
        self.sampler.engine.draw(reader.opening.filters, block, (h, c, contexts))
        seconds = time.perf_counter() - began
        affordable = max(1, int(count * _SECONDS_PER_BLOCK / seconds))
        self._block = min(affordable, 2 * self._block, _MAX_BLOCK)
        drawn = np.take_along_axis(ids, starts[:, None] + np.arange(count), axis=1)
        text = self.sampler.vocab.decode(drawn.ravel())
        # added one by one, because the rounding of a sum would depend on the block size
        totals = np.add.accumulate(np.column_stack([[stream.nats for stream in active], block.nats]), axis=1)
        for row, stream in enumerate(active):
            stream.append(text[row * count : (row + 1) * count], totals[row], seconds)
            if stream.ended:
                self._num_ended += 1
                self._num_chars_ended += stream.num_drawn
                continue
            known, own = ids[row, : starts[row] + count], slice(row, row + 1)
            stream.history = (known if stream.opening.config.no_repeat_ngram else known[-1:]).copy()
            stream.state = h[:, own].copy(), c[:, own].copy(), contexts[:, own].copy()


class Stream:
    """One sample: an iterator over pieces of its text.

    A model of bytes writes each byte that is not UTF-8 as a surrogate escape, and no piece ends within a character.
    num_drawn: characters so far, including those of a stop text; nats: their surprisal for the model
    without filters at temperature 1; seconds: time spent drawing them, together with other streams;
    seed: gives this text again; log_weight: the log of the probability that constraints left at each
    character, summed; 0 without constraints.
    """

    def __init__(self, batch: StreamBatch, opening: Opening, number: int) -> None:
        config, vocab = opening.config, batch.sampler.vocab
        self.opening = opening
        self.number = number
        self.seed = opening.seed
        self.num_drawn = 0
        self.nats = 0.0
        self.log_weight = 0.0
        self.seconds = 0.0
        # all ids so far for the repeat guard, else only the last one; and the state before it, None for the prompt's
        self.history = opening.ids if config.no_repeat_ngram else opening.ids[-1:]
        self.state: StreamState | None = None
        self.limit = LengthLimit(config.length, has_bytes=vocab.has_bytes)
        self.ended = config.length == 0
        self._batch = batch
        stops = [vocab.to_chars(stop) for stop in config.stop]
        if batch.sampler.writes_documents:
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
        return self._stop.reached

    @property
    def can_draw_ahead(self) -> bool:
        """Whether more may be drawn before the stream is read."""
        return not self.ended and self._num_unread < _MAX_UNREAD

    def random_numbers(self, count: int) -> NDArray[np.float64]:
        """Return the random numbers of the next characters, (count,)."""
        return uniforms(count, seed=self.seed, stream=self.number, position=self.num_drawn)

    def append(self, text: str, totals: NDArray[np.float64], seconds: float) -> None:
        """Add the characters just drawn, up to where the text ends.

        text: one character per id; totals: the nats up to each character, the first before all of them.
        """
        num_used, piece = self._stop.feed(self.limit.feed(text))
        self.num_drawn += num_used
        self.nats = float(totals[num_used])
        self.seconds += seconds
        self.ended = self._stop.reached or self.limit.left == 0
        if self.ended:
            piece += self._stop.flush()
        piece = self._decode(piece, self.ended)
        if piece:
            self._pieces.append(piece)
            self._num_unread += len(piece)


def random_seed() -> int:
    """Choose a seed short enough to type."""
    return secrets.randbelow(2**31)
