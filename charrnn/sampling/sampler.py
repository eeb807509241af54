"""Drawing text from a model, without PyTorch.

Stream i of seed s draws its character at position p with a random number keyed by
(s, i, p), so the same seed gives the same text whatever else is asked for: threads, samples
beside it, a longer text.

Letters: S streams, L layers, H hidden size, V vocabulary.
"""

import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.data.vocab import END, UNKNOWN
from charrnn.errors import UsageError
from charrnn.hardware import available_cores, select_precision
from charrnn.kernels.counters import uniforms
from charrnn.kernels.generation import Filters
from charrnn.kernels.ngrams import nothing
from charrnn.model.file import ModelFile, load_model
from charrnn.sampling.engine import Engine, StreamState

_FIRST_BLOCK, _LAST_BLOCK = 4, 4096  # characters drawn at a time; the text doesn't depend on it
_SECONDS_PER_BLOCK = 0.03  # about; so that text flows, at least every 50 ms, and Ctrl-C is heard
_MOST_WAITING = 1 << 16  # characters that a stream draws ahead of its reader
_MOST_KNOWN = 1 << 24  # characters that a repeat guard looks through in all streams of a block


class Sampler:
    """A model ready to write."""

    def __init__(self, model: ModelFile, *, threads: int | None = None, precision: str = "float32") -> None:
        """Lay the model's weights out for the kernels.

        threads: at most this many; None means one for each core. precision: the number format in which
        weights are stored and multiplied: float32, bfloat16, or auto, the faster one here.
        Raises UsageError for an unknown precision, ResourceError for one that would be emulated.
        """
        self.vocab = model.vocab
        self.config = model.config
        self.precision = select_precision(precision)
        tensors, rare = model.tensors, model.vocab.id_of(UNKNOWN)
        if rare is not None:  # it stands for no character in particular, so it is never drawn
            bias = np.array(tensors["head.bias"])
            bias[rare] = -np.inf
            tensors = {**tensors, "head.bias": bias}
        mixture, threads = model.mixture or nothing(), threads or available_cores()
        self.engine = Engine(model.config, tensors, threads, self.precision, mixture)

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None, precision: str = "float32") -> "Sampler":
        """Read a model file. Raises ModelFileError, and as the constructor."""
        return cls(load_model(path), threads=threads, precision=precision)

    @property
    def writes_documents(self) -> bool:
        """Whether what it writes begins and ends as a document does."""
        return END in self.vocab.chars

    def stream(self, config: SampleConfig, *, number: int = 0) -> "Stream":
        """Draw one text after the prompt: an iterator over its pieces. number: which of the seed's streams.

        Without a prompt the text starts as if after a newline. A model of documents starts one,
        with the prompt if there is one, and stops where it ends.
        Raises UnknownCharacterError for a prompt the model can't read, before the first character.
        """
        if not 0 <= number < 2**63:
            raise UsageError(f"the stream's number must lie between 0 and 2^63 - 1, not {number}")
        return Stream(Batch(self, config), number)

    def streams(self, config: SampleConfig) -> "Batch":
        """Draw num_samples texts: an iterable of streams 0, 1, …, each to be read before the next.

        While one is read, those after it are drawn beside it; one pass over the weights serves
        a few dozen of them. Otherwise as `stream`.
        """
        return Batch(self, config)


class Batch:
    """Streams drawn side by side from one prompt; to be read by one thread."""

    def __init__(self, sampler: Sampler, config: SampleConfig) -> None:
        vocab = sampler.vocab
        prompt = vocab.spell(config.prompt)
        known = vocab.encode(prompt) if config.unknown == "error" else vocab.encode_known(prompt)[0]
        ids = known.astype(np.int64)
        if END in vocab.chars:
            ids = np.append(vocab.chars.find(END), ids)
        elif len(ids) == 0:  # as if after a newline, where the model knows one
            ids = np.array([max(0, vocab.chars.find("\n"))])
        self.sampler = sampler
        self.config = config
        self.seed = random_seed() if config.seed is None else config.seed
        self.prompt = ids
        self._streams: deque[Stream] = deque()
        self._block = _FIRST_BLOCK
        self._start: StreamState | None = None

    def __iter__(self) -> Iterator["Stream"]:
        """The streams in order, from the first."""
        config = self.config
        self._streams.clear()
        ends = config.length >= 0 or config.lines > 0 or config.stop or END in self.sampler.vocab.chars
        started, most = 0, self.sampler.engine.max_streams
        for number in range(config.num_samples):
            while started < min(config.num_samples, number + (most if ends else 1)):
                self._streams.append(Stream(self, started))
                started += 1
            yield self._streams[0]
            self._streams.popleft()

    def read_prompt(self) -> StreamState:
        """Feed all of the prompt but its last character, once for all streams; return the state of one."""
        if self._start is None:
            start = self.sampler.engine.new_state()
            self.sampler.engine.read(self.prompt[:-1], start)
            self._start = start
        return self._start

    def draw(self, reader: "Stream") -> None:
        """Draw a block of the stream that is being read, and of those beside it that have room."""
        beside = [stream for stream in self._streams if stream is not reader and stream.has_room()]
        active = [reader, *beside]
        longest = max(len(stream.known) for stream in active)
        active = active[: max(1, _MOST_KNOWN // longest)]
        count = self._block if self.config.length < 0 else min(self._block, self.config.length - reader.num_drawn)
        ids = np.zeros((len(active), longest + count), np.int64)
        for row, stream in enumerate(active):
            ids[row, : len(stream.known)] = stream.known
        starts = np.array([len(stream.known) for stream in active])
        numbers = np.stack([stream.numbers(count) for stream in active])
        h, c, contexts = (
            np.concatenate(parts, axis=1) for parts in zip(*(stream.state for stream in active), strict=True)
        )
        config = self.config
        filters = Filters(config.temperature, config.top_k, config.top_p, config.min_p, config.no_repeat_ngram)
        begun = time.perf_counter()
        nats = self.sampler.engine.draw(filters, ids, starts, numbers, (h, c, contexts))
        seconds = time.perf_counter() - begun
        fitting = max(1, int(count * _SECONDS_PER_BLOCK / seconds))
        self._block = min(fitting, 2 * self._block, _LAST_BLOCK)
        for row, stream in enumerate(active):
            known = ids[row, : starts[row] + count]
            one = slice(row, row + 1)
            state = h[:, one].copy(), c[:, one].copy(), contexts[:, one].copy()
            stream.take(known, count, nats[row], state, seconds)


class Stream:
    """One sample: an iterator over its text that knows what was drawn.

    num_drawn: characters so far, those of a stop included; nats: what the unfiltered model at
    temperature 1 pays for them; seconds: what drawing them took, others beside them; seed: the
    one that gives this text again.
    """

    def __init__(self, batch: Batch, number: int) -> None:
        self.number = number
        self.seed = batch.seed
        self.num_drawn = 0
        self.nats = 0.0
        self.seconds = 0.0
        self.known = batch.prompt if batch.config.no_repeat_ngram else batch.prompt[-1:]  # its guard needs all of it
        self.ended = batch.config.length == 0
        self._batch = batch
        self._state: StreamState | None = None
        vocab = batch.sampler.vocab
        ends = (END,) if END in vocab.chars else ()
        self._ending = Ending(batch.config.lines, (*map(vocab.spell, batch.config.stop), *ends))
        self._readable = vocab.reader()
        self._waiting: deque[str] = deque()  # pieces drawn and not read yet
        self._num_waiting = 0  # their characters

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._waiting:
            if self.ended:
                raise StopIteration
            self._batch.draw(self)
        piece = self._waiting.popleft()
        self._num_waiting -= len(piece)
        return piece

    @property
    def state(self) -> StreamState:
        """After all known characters but the last."""
        return self._batch.read_prompt() if self._state is None else self._state

    def has_room(self) -> bool:
        """Whether it may be drawn further before it is read."""
        return not self.ended and self._num_waiting < _MOST_WAITING

    def numbers(self, count: int) -> NDArray[np.float64]:
        """The random numbers of its next characters: (count,)."""
        return uniforms(count, seed=self.seed, stream=self.number, position=self.num_drawn)

    def take(
        self, known: NDArray[np.int64], count: int, nats: NDArray[np.float64], state: StreamState, seconds: float
    ) -> None:
        """Take over the characters just drawn, the last `count` of the known ones, up to where the text ends."""
        config = self._batch.config
        left = count if config.length < 0 else min(count, config.length - self.num_drawn)
        text = self._batch.sampler.vocab.decode(known[len(known) - count :][:left])
        taken, piece = self._ending.push(text)
        self.num_drawn += taken
        # one by one, or the sum's rounding would depend on the block
        self.nats = float(np.add.accumulate(np.append(self.nats, nats[:taken]))[-1])
        self.seconds += seconds
        self.ended = self._ending.reached or self.num_drawn == config.length
        if self.ended:
            piece += self._ending.rest()
        piece = self._readable(piece, self.ended)
        if piece:
            self._waiting.append(piece)
            self._num_waiting += len(piece)
        self.known = (known if config.no_repeat_ngram and not self.ended else known[-1:]).copy()
        self._state = state


class Ending:
    """Where a text ends: with its n-th newline, or before the first of its stops.

    What may be the beginning of a stop is held back until it is known not to be one.
    """

    def __init__(self, lines: int = 0, stops: Sequence[str] = ()) -> None:
        self.reached = False
        self._lines_left, self._stops, self._held = lines, stops, ""
        self._most_held = max(map(len, stops), default=1) - 1

    def push(self, text: str) -> tuple[int, str]:
        """Go on by a text; return how many characters belong to the sample or its stop, and what may be written."""
        if not self._stops and not self._lines_left:
            return len(text), text
        pieces = ""
        for taken, char in enumerate(text, 1):
            self._held += char
            if stops := [stop for stop in self._stops if self._held.endswith(stop)]:
                self.reached = True
                pieces += self._held[: -max(map(len, stops))]
                self._held = ""
                return taken, pieces
            if char == "\n" and self._lines_left:
                self._lines_left -= 1
                if not self._lines_left:
                    self.reached = True
                    return taken, pieces + self.rest()
            keep = self._beginning()
            cut = len(self._held) - keep
            pieces, self._held = pieces + self._held[:cut], self._held[cut:]
        return len(text), pieces

    def rest(self) -> str:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self) -> int:
        """How many of the last characters are the longest beginning of a stop."""
        for count in range(min(self._most_held, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**31)
