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
from charrnn.constraints.guide import Guide, index_runs, make_guide
from charrnn.counters import choice, uniforms
from charrnn.data.shuffling import without_labels
from charrnn.data.vocab import Ids
from charrnn.errors import UsageError
from charrnn.hardware import available_cores, select_precision
from charrnn.kernels.filters import COMPLETE, Constraints, Filters
from charrnn.kernels.ngrams import no_mixture
from charrnn.model.file import ModelFile, load_model
from charrnn.sampling.engine import NO_LIMIT, Engine, Prediction, StreamState, new_block, predictions_of
from charrnn.sampling.labels import Labels
from charrnn.sampling.prompts import Opening, read_openings
from charrnn.sampling.stopping import LengthLimit, StopCondition
from charrnn.text.characters import END, UNKNOWN, describe

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
        tensors = model.tensors
        never_drawn = [one for one in (model.vocab.id_of(UNKNOWN), model.config.label_id) if one is not None]
        if never_drawn:  # a rare character stands for many; a label is part of the prompt
            bias = np.array(tensors["head.bias"])
            bias[never_drawn] = -np.inf
            tensors = {**tensors, "head.bias": bias}
        mixture, threads = model.mixture or no_mixture(), threads or available_cores()
        self.engine = Engine(model.config, tensors, threads, self.precision, mixture)
        self.labels = Labels(model)
        self.training_text: Ids | None = None  # for --no-copy
        self.num_top = 0  # how many of the likeliest characters a stream's predictions list; 0: no predictions
        self._runs: Constraints | None = None

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

        A text without a prompt starts as if after a newline, or for a model of documents as a new document, with
        its label if the settings have one.
        Raises UnknownCharacterError for a prompt with characters outside the vocabulary, unless they are skipped,
        UsageError for a label that the model doesn't know.
        """
        return np.concatenate([self._encode_start(config.label), self._encode_text(config)])

    def _encode_text(self, config: SampleConfig) -> NDArray[np.int64]:
        """Encode what the texts begin with; for a model of continuous text at least one character."""
        prompt = self.vocab.to_chars(config.prompt)
        if config.unknown == "error":
            ids = self.vocab.encode(prompt).astype(np.int64)
        else:
            ids = self.vocab.encode_known(prompt)[0].astype(np.int64)
        is_begun = self.writes_documents or len(ids) > 0
        return ids if is_begun else np.array([max(0, self.vocab.chars.find("\n"))])

    def _encode_start(self, label: str | None) -> NDArray[np.int64]:
        """Encode what precedes the texts: the end of another document, and the label."""
        self.labels.check(label)
        end = np.array([self.vocab.chars.find(END)] if self.writes_documents else [], np.int64)
        return end if label is None else np.append(end, self.labels.encode(label))

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
        return next(iter(StreamBatch(self, [(self.open(config, number=number), number)])))

    def streams(self, config: SampleConfig, *, draws: int | None = None) -> "StreamBatch":
        """Draw num_samples texts: an iterator over streams 0, 1, …, each to be read before the next.

        While one stream is read, the next ones are drawn next to it, because one pass over the weights
        serves a few dozen streams. draws: draw so many, but not more side by side than num_samples.
        Otherwise as `stream`.
        """
        first, count = self.open(config), config.num_samples
        openings = self._open_all(first, draws or count)
        return StreamBatch(self, openings, most=count * first.num_candidates)

    def batch(self, openings: Iterable[tuple[Opening, int]]) -> "StreamBatch":
        """Draw a text after each opening: an iterator over the streams of these numbers, as `streams`."""
        return StreamBatch(self, openings)

    def _open_all(self, first: Opening, count: int) -> Iterator[tuple[Opening, int]]:
        """Yield the opening and the number of each stream; streams of one label share an opening."""
        openings, config = {first.label: first}, first.config
        for number in range(count):
            label = self._choose_label(config, first.seed, number)
            if label not in openings:
                openings[label] = self._open(config, first.seed, label)
            yield openings[label], number

    def open(self, config: SampleConfig, *, number: int = 0) -> Opening:
        """Check and encode a prompt and its settings. Raises the errors of `stream`.

        number: of the stream, whose label is drawn if the model knows labels and the settings have none.
        """
        seed = random_seed() if config.seed is None else config.seed
        return self._open(config, seed, self._choose_label(config, seed, number))

    def _choose_label(self, config: SampleConfig, seed: int, number: int) -> str | None:
        if config.label is not None or not self.labels.names:
            return config.label
        return self.labels.draw(self._encode_text(config), seed=seed, stream=number)

    def _open(self, config: SampleConfig, seed: int, label: str | None) -> Opening:
        start, text = self._encode_start(label), self._encode_text(config)
        self.check_ends(config)
        end = self.vocab.chars.find(END)
        filters = Filters(config.temperature, config.top_k, config.top_p, config.min_p, config.no_repeat_ngram, end)
        ids, guide = np.concatenate([start, text]), self._make_guide(config)
        opening = Opening(config, seed, ids, filters, guide, ends=self.ends(config), ends_early=self.ends_early(config))
        if label is not None:
            opening.label, opening.num_before = label, len(start)
        return opening

    def ends(self, config: SampleConfig) -> bool:
        """Whether texts with these settings end."""
        return config.length >= 0 or bool(config.lines or config.stop) or self.writes_documents

    def ends_early(self, config: SampleConfig) -> bool:
        """Whether texts with these settings may end before their length."""
        return bool(config.lines or config.stop or config.match is not None) or self.writes_documents

    def _make_guide(self, config: SampleConfig) -> Guide | None:
        """Turn the constraints into what the kernels read; None if there are none."""
        guide = make_guide(config, self.vocab)
        if not config.no_copy:
            return guide
        if self.training_text is None:
            raise UsageError("--no-copy needs the training text")
        if self._runs is None or self._runs.run != config.no_copy:
            texts = without_labels(self.training_text, self.vocab.id_of(END), self.config.label_id)
            self._runs = index_runs(config.no_copy, texts, self.vocab)
        runs = self._runs
        if guide is None:
            return Guide(runs)
        constraints = guide.constraints._replace(text=runs.text, positions=runs.positions, run=runs.run)
        return Guide(constraints, guide.start)


class StreamBatch:
    """Streams drawn together, for one thread to read: an iterator over them in order."""

    def __init__(self, sampler: Sampler, openings: Iterable[tuple[Opening, int]], *, most: int | None = None) -> None:
        """openings: what each text continues, and the number of its stream; taken as the streams are started.

        most: streams that are drawn side by side, at most.
        """
        self.sampler = sampler
        self._most = min(most or sampler.engine.max_streams, sampler.engine.max_streams)
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
        number = choice(seed=candidates[0].seed, stream=candidates[0].number)
        return candidates[int(np.searchsorted(reached, number * reached[-1], side="right"))]

    def _start_streams(self, count: int) -> "list[Stream]":
        """Start at most so many streams; return those that there are."""
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
        read_openings(self.sampler.engine, [stream.opening for stream in self._streams])

    def draw(self, reader: "Stream") -> None:
        """Draw a block of the stream that is being read, and of the other streams that may be drawn ahead."""
        active = self._choose_streams(reader)
        longest = max(len(stream.history) for stream in active)
        count = self._block if reader.limit.left < 0 else min(self._block, reader.limit.left)
        if reader.opening.ends_early and self._num_ended:  # most of a longer block would be thrown away
            count = min(count, max(_MIN_BLOCK, self._num_chars_ended // self._num_ended // _BLOCKS_PER_TEXT))
        starts = np.array([len(stream.history) for stream in active])
        ids = np.zeros((len(active), longest + count), np.int64)
        for row, stream in enumerate(active):
            ids[row, : starts[row]] = stream.history
        numbers = np.stack([stream.random_numbers(count) for stream in active])
        read_openings(self.sampler.engine, [stream.opening for stream in active])
        states = [stream.state or stream.opening.state for stream in active]
        h, c, contexts = (np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))
        block = new_block(ids, starts, numbers, num_top=self.sampler.num_top)
        block.left[:] = [NO_LIMIT if stream.limit.left < 0 else stream.limit.left for stream in active]
        block.states[:, 0] = [stream.rule for stream in active]
        began = time.perf_counter()
        constraints = reader.opening.constraints
        self.sampler.engine.draw(reader.opening.filters, block, (h, c, contexts), constraints=constraints)
        seconds = time.perf_counter() - began
        affordable = max(1, int(count * _SECONDS_PER_BLOCK / seconds))
        self._block = min(affordable, 2 * self._block, _MAX_BLOCK)
        drawn = np.take_along_axis(ids, starts[:, None] + np.arange(count), axis=1)
        text = self.sampler.vocab.decode(drawn.ravel())
        # added one by one, because the rounding of a sum would depend on the block size
        nats = np.add.accumulate(np.column_stack([[stream.nats for stream in active], block.nats]), axis=1)
        weights = np.column_stack([[stream.log_weight for stream in active], block.log_shares])
        weights = np.add.accumulate(weights, axis=1)
        for row, stream in enumerate(active):
            num_used = stream.append(text[row * count : (row + 1) * count], block.states[row])
            stream.nats, stream.log_weight = float(nats[row, num_used]), float(weights[row, num_used])
            stream.seconds += seconds
            if self.sampler.num_top:
                stream.predictions += predictions_of(block, row, num_used, self.sampler.vocab)
            if stream.ended:
                self._num_ended += 1
                self._num_chars_ended += stream.num_drawn
                continue
            own = slice(row, row + 1)
            stream.history = stream.opening.remembered(ids[row, : starts[row] + count])
            stream.state = h[:, own].copy(), c[:, own].copy(), contexts[:, own].copy()


class Stream:
    """One sample: an iterator over pieces of its text.

    A model of bytes writes each byte that is not UTF-8 as a surrogate escape, and no piece ends within a character.
    num_drawn: characters so far, including those of a stop text; nats: their surprisal for the model
    without filters at temperature 1; seconds: time spent drawing them, together with other streams;
    seed: gives this text again; log_weight: the log of the probability that constraints left at each
    character, summed; 0 without constraints; predictions: of each character, if Sampler.num_top asks for them.
    """

    def __init__(self, batch: StreamBatch, opening: Opening, number: int, candidate: int) -> None:
        config, vocab = opening.config, batch.sampler.vocab
        self.opening = opening
        self.number = number
        self.seed = opening.seed
        self.num_drawn = 0
        self.nats = 0.0
        self.log_weight = 0.0
        self.seconds = 0.0
        self.predictions: list[Prediction] = []
        self.history = opening.remembered(opening.known)
        self.state: StreamState | None = None  # before the last id of the history; None for the prompt's
        self.rule = opening.start  # the state of the constraints' automaton
        self.limit = LengthLimit(config.length, has_bytes=vocab.has_bytes)
        self._batch, self._candidate = batch, candidate
        self._has_automaton = opening.has_automaton
        self._is_complete = self._has_automaton and self.rule == COMPLETE
        self.ended = self._is_complete or config.length == 0
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
        return self._stop.reached or self._is_complete

    @property
    def can_draw_ahead(self) -> bool:
        """Whether more may be drawn before the stream is read."""
        return not self.ended and self._num_unread < _MAX_UNREAD

    def random_numbers(self, count: int) -> NDArray[np.float64]:
        """Return the random numbers of the next characters, (count,)."""
        position, candidate = self.num_drawn, self._candidate
        return uniforms(count, seed=self.seed, stream=self.number, position=position, candidate=candidate)

    def append(self, text: str, rules: NDArray[np.int32]) -> int:
        """Add the characters just drawn, up to where the text ends; return how many that are.

        text: one character per id; rules: the state of the automaton before each of them and at the end.
        """
        if self._has_automaton:
            self.rule, is_complete = int(rules[-1]), rules == COMPLETE
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


def random_seed() -> int:
    """Choose a seed short enough to type."""
    return secrets.randbelow(2**31)
