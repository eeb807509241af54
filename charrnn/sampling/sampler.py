"""Draw text from a model, without PyTorch: check the settings, open the prompts, start the streams."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig, overlay
from charrnn.constraints.guide import Guide, index_runs, make_guide
from charrnn.data.documents import without_labels
from charrnn.data.vocab import Ids
from charrnn.errors import UnknownCharacterError, UsageError
from charrnn.hardware import available_cores, select_precision
from charrnn.kernels.filters import Constraints, Filters
from charrnn.kernels.ngrams import no_mixture
from charrnn.model.file import ModelFile
from charrnn.sampling.engine import Engine
from charrnn.sampling.labels import Labels
from charrnn.sampling.prompts import Opening
from charrnn.sampling.streams import Stream, StreamBatch
from charrnn.text.characters import END, UNKNOWN, describe

_DEFAULTS = SampleConfig()


class Sampler:
    """A model ready to draw text."""

    def __init__(self, model: ModelFile, *, threads: int | None = None, precision: str = "float32") -> None:
        """Prepare to draw; the weights are laid out for the kernels before the first text.

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

    @property
    def writes_documents(self) -> bool:
        """Whether each text is a document, with a beginning and an end."""
        return END in self.vocab.chars

    def writes_several_lines(self, config: SampleConfig) -> bool:
        """Return whether a text may contain a newline before its end."""
        return "\n" in self.vocab.chars and config.lines != 1 and "\n" not in config.stop

    def configure(self, given: Mapping[str, Any]) -> SampleConfig:
        """Complete the settings that are given, by name: a random seed, and whole documents for a model of documents.

        Raises UsageError for a value out of range.
        """
        defaults = {"seed": random_seed()} | ({"length": -1} if self.writes_documents else {})
        return overlay(_DEFAULTS, {**defaults, **given})

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
            try:
                ids = self.vocab.encode(prompt, name="prompt").astype(np.int64)
            except UnknownCharacterError as error:
                raise UnknownCharacterError(f"{error}; --unknown skip leaves such characters out") from None
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

    def stream(self, config: SampleConfig, *, number: int = 0) -> Stream:
        """Draw one text after the prompt: an iterator over pieces of it.

        number: which of the seed's streams to draw. A model of documents stops at the end of the document.
        Raises UnknownCharacterError, as encode_prompt, and UsageError, as check_ends, before the first character.
        """
        if not 0 <= number < 2**63:
            raise UsageError(f"the number of a stream must lie between 0 and 2^63 - 1, not {number}")
        return next(iter(self.batch([(self.open(config, number=number), number)])))

    def streams(self, config: SampleConfig, *, draws: int | None = None) -> StreamBatch:
        """Draw num_samples texts: an iterator over streams 0, 1, …, each to be read before the next.

        While one stream is read, the next ones are drawn next to it, because one pass over the weights
        serves a few dozen streams. draws: draw so many, but not more side by side than num_samples.
        Otherwise as `stream`.
        """
        first, count = self.open(config), config.num_samples
        openings = self._open_all(config, first, draws or count)
        return self.batch(openings, most=count * first.num_candidates)

    def batch(self, openings: Iterable[tuple[Opening, int]], *, most: int | None = None) -> StreamBatch:
        """Draw a text after each opening: an iterator over the streams of these numbers, as `streams`.

        most: streams that are drawn side by side, at most.
        """
        return StreamBatch(self.engine, self.vocab, openings, num_top=self.num_top, most=most)

    def _open_all(self, config: SampleConfig, first: Opening, count: int) -> Iterator[tuple[Opening, int]]:
        """Yield the opening and the number of each stream; streams of one label share an opening.

        config: the settings, in which the label may be left to be drawn. first: the opening of stream 0.
        """
        openings, text = {first.label: first}, self._encode_text(config)
        for number in range(count):
            label = self._choose_label(config, text, first.seed, number)
            if label not in openings:
                openings[label] = self._open(replace(config, label=label), text, first.seed)
            yield openings[label], number

    def open(self, config: SampleConfig, *, number: int = 0) -> Opening:
        """Check and encode a prompt and its settings. Raises the errors of `stream`.

        number: of the stream, whose label is drawn if the model knows labels and the settings have none.
        """
        seed = random_seed() if config.seed is None else config.seed
        self.labels.check(config.label)
        text = self._encode_text(config)
        label = self._choose_label(config, text, seed, number)
        return self._open(config if label == config.label else replace(config, label=label), text, seed)

    def _choose_label(self, config: SampleConfig, text: NDArray[np.int64], seed: int, number: int) -> str | None:
        if config.label is not None or not self.labels.names:
            return config.label
        return self.labels.draw(text, seed=seed, stream=number)

    def _open(self, config: SampleConfig, text: NDArray[np.int64], seed: int) -> Opening:
        """Open a prompt, encoded as text, with a label that is chosen."""
        self.check_ends(config)
        start, end = self._encode_start(config.label), self.vocab.chars.find(END)
        filters = Filters(config.temperature, config.top_k, config.top_p, config.min_p, config.no_repeat_ngram, end)
        ids = np.concatenate([start, text])
        return Opening(config, seed, ids, filters, self._make_guide(config), num_before=len(start))

    def ends(self, config: SampleConfig) -> bool:
        """Return whether texts with these settings end."""
        return config.ends(documents=self.writes_documents)

    def ends_early(self, config: SampleConfig) -> bool:
        """Return whether texts with these settings may end before their length."""
        return config.ends_early(documents=self.writes_documents)

    def _make_guide(self, config: SampleConfig) -> Guide | None:
        """Turn the constraints into what the kernels read; None if there are none."""
        guide = make_guide(config, self.vocab)
        if not config.no_copy:
            return guide
        if self.training_text is None:
            raise UsageError("--no-copy needs the training text, which is read if the command has --no-copy too")
        if self._runs is None or self._runs.run != config.no_copy:
            texts = without_labels(self.training_text, self.vocab.id_of(END), self.config.label_id)
            self._runs = index_runs(config.no_copy, texts, self.vocab)
        runs = self._runs
        if guide is None:
            return Guide(runs)
        constraints = guide.constraints._replace(text=runs.text, positions=runs.positions, run=runs.run)
        return Guide(constraints, guide.start)


def random_seed() -> int:
    """Choose a seed short enough to type."""
    return secrets.randbelow(2**31)
