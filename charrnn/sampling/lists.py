"""Lists: the samples that are complete, unique and new, and the best of those that were drawn.

Whether a text is known is decided by hashes, so now and then a new text is taken for a known one, but never the other
way round: with a chance of D / 2^32 for D documents whose hashes are in the model file, and hardly ever where the
training text itself is searched.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charrnn.config import ListConfig, SampleConfig, overlay
from charrnn.data.documents import hash_documents, short_hashes, without_labels
from charrnn.data.vocab import Ids, Vocab
from charrnn.errors import UsageError
from charrnn.kernels.ngrams import find_hashes, hash_ngrams
from charrnn.model.file import ModelFile
from charrnn.sampling.sampler import Sampler
from charrnn.sampling.streams import Stream
from charrnn.text.characters import END

_BATCH = 64  # samples that are compared with the known text at a time, because the comparison may read all of it
_DRAWS_PER_SAMPLE = 100


class Known(Protocol):
    """A text that samples are compared with."""

    def contains(self, prompt: str, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which of the texts, each after the prompt, are known: (len(texts),)."""


@dataclass(frozen=True)
class KnownDocuments:
    """Documents by their hashes, sorted: (D,) of 64 bits, or of 32 bits as in a model file."""

    hashes: NDArray[Any]
    vocab: Vocab

    def contains(self, prompt: str, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which of the documents, each the prompt and a text, are known."""
        end = self.vocab.id_of(END)
        assert end is not None
        ids, _ = self.vocab.encode_known("".join(self.vocab.to_chars(prompt + text) + END for text in texts))
        found = hash_documents(ids, end)
        return _are_in(self.hashes, short_hashes(found) if self.hashes.dtype == np.uint32 else found)


@dataclass(frozen=True)
class KnownRuns:
    """A text whose runs of `length` characters are known. ids: (N,)."""

    ids: Ids
    vocab: Vocab
    length: int

    def contains(self, prompt: str, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Tell in which of the texts a known run ends; runs that lie within the prompt don't count."""
        before = self.vocab.to_chars(prompt)
        before = before[max(0, len(before) - self.length + 1) :]
        samples = [self.vocab.encode_known(before + self.vocab.to_chars(text))[0] for text in texts]
        hashes = [hash_ngrams(ids, self.length) for ids in samples]
        wanted = np.unique(np.concatenate(hashes))
        known = wanted[find_hashes(self.ids, self.length, wanted)]
        return np.array([_are_in(known, one).any() for one in hashes])


def _are_in(known: NDArray[Any], hashes: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which hashes are in a sorted array."""
    if len(known) == 0:
        return np.zeros(len(hashes), np.bool_)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)


def needs_training_text(lists: ListConfig, file: ModelFile) -> bool:
    """Return whether new texts can be told from known ones only with the training text."""
    return lists.new and file.known_documents is None


def make_known(lists: ListConfig, file: ModelFile, train_ids: Ids | None) -> Known | None:
    """Return what samples are compared with, or None if any will do.

    train_ids: all of the training text, with what was held out. It may be None unless needs_training_text.
    """
    if not lists.new:
        return None
    if train_ids is None:
        assert file.known_documents is not None
        return KnownDocuments(file.known_documents, file.vocab)
    end = file.vocab.id_of(END)
    if end is None:
        return KnownRuns(train_ids, file.vocab, lists.new_run)
    texts = without_labels(train_ids, end, file.config.label_id)
    return KnownDocuments(np.unique(hash_documents(texts, end)), file.vocab)


def configure_lists(given: Mapping[str, Any], config: SampleConfig, sampler: Sampler) -> ListConfig:
    """Complete the settings that are given, by name. Raises UsageError for those that can't take effect."""
    lists, asked = overlay(ListConfig(), given), config.num_samples
    wanted = "--unique" if lists.unique else "--new" if lists.new else "--best"
    if (lists.selects or lists.best) and not sampler.ends(config):
        raise UsageError(f"{wanted} needs texts that end: give --length, --lines or --stop")
    if lists.unique and asked == 1:
        raise UsageError("--unique compares samples, so ask for several: -N 100")
    draws_labels = bool(sampler.labels.names) and config.label is None
    if lists.unique and config.temperature == 0 and not draws_labels:
        raise UsageError(
            "--unique finds one text only at --temp 0, where all samples are the same; use a higher --temp"
        )
    if lists.max_draws is not None and not lists.selects:
        raise UsageError("--max-draws has no effect without --unique or --new")
    if lists.max_draws is not None and lists.max_draws < asked:
        raise UsageError(f"--max-draws {lists.max_draws} is below the {asked} samples asked for (-N)")
    if "new_run" in given and (sampler.writes_documents or not lists.new):
        reason = "for a model of documents, which are compared whole" if lists.new else "without --new"
        raise UsageError(f"--new-run has no effect {reason}")
    if lists.new and not sampler.writes_documents and config.length >= 0:
        longest = config.length + len(sampler.vocab.to_chars(config.prompt))
        if longest < lists.new_run:
            raise UsageError(f"--new has no effect on texts shorter than --new-run {lists.new_run}; choose a lower one")
    if lists.best is not None and lists.best > asked:
        raise UsageError(f"--best {lists.best} is more than -N {asked}, the samples that are drawn; raise -N")
    if "best_by" in given and lists.best is None:
        raise UsageError("--best-by has no effect without --best")
    return lists


class Selection:
    """The samples of a list: an iterator over them and their streams, as they are found or the best first.

    asked: how many to find. drawn: samples so far; complete: those of them that ended by themselves; unique: of
    those, the ones that are unlike all before; found: of those, the new ones, which are in the list.
    """

    def __init__(self, sampler: Sampler, config: SampleConfig, lists: ListConfig, known: Known | None) -> None:
        self.asked = config.num_samples
        self.drawn = self.complete = self.unique = self.found = 0
        self.limit = (lists.max_draws or _DRAWS_PER_SAMPLE * self.asked) if lists.selects else self.asked
        self.streams = sampler.streams(config, draws=self.limit)
        self._prompt, self._lists, self._known = config.prompt, lists, known
        self._ends_early = sampler.ends_early(config)
        self._is_matched = config.match is not None  # then a text also is complete that matches at its length
        self._seen: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, Stream]]:
        if self._lists.best is None:
            return self._find()
        by_total = self._lists.best_by == "total"
        costs = [
            (stream.nats if by_total else stream.nats / max(1, stream.num_drawn), stream.number, text, stream)
            for text, stream in self._find()
        ]
        return iter([(text, stream) for *_, text, stream in sorted(costs)[: self._lists.best]])

    def _find(self) -> Iterator[tuple[str, Stream]]:
        """Yield samples that belong in the list until there are as many as asked, or the limit is reached."""
        streams = iter(self.streams)
        while self.found < self.asked:
            drawn = [("".join(stream), stream) for stream in islice(streams, min(_BATCH, self.asked - self.found))]
            if not drawn:
                return
            self.drawn += len(drawn)
            chosen = self._choose(drawn)
            self.found += len(chosen)
            yield from chosen

    def _choose(self, drawn: list[tuple[str, Stream]]) -> list[tuple[str, Stream]]:
        if not self._lists.selects:
            return drawn
        if self._ends_early:
            drawn = [
                (text, stream)
                for text, stream in drawn
                if (stream.is_whole or self._is_matched) and (self._prompt or text)
            ]
        self.complete += len(drawn)
        if self._lists.unique:
            drawn = [(text, stream) for text, stream in drawn if not self._is_seen(text)]
        self.unique += len(drawn)
        if self._known is None or not drawn:
            return drawn
        known = self._known.contains(self._prompt, [text for text, _ in drawn])
        return [one for one, is_known in zip(drawn, known.tolist(), strict=True) if not is_known]

    def _is_seen(self, text: str) -> bool:
        """Return whether a text was seen before, and remember it."""
        num_before = len(self._seen)
        self._seen.add(text)
        return len(self._seen) == num_before

    def summary(self) -> str:
        """Say how many samples were drawn, and how many of them are complete, unique and new."""
        counts = [(self.drawn, "drawn")]
        counts += [(self.complete, "complete")] if self._ends_early else []
        counts += [(self.unique, "unique")] if self._lists.unique else []
        counts += [(self.found, "new")] if self._known is not None else []
        return ", ".join(f"{count:,} {name}" for count, name in counts)

    @property
    def shortage(self) -> str | None:
        """Say that fewer samples were found than asked for; None if not. Known once all samples are read."""
        if self.found == self.asked:
            return None
        return f"found {self.found:,} of {self.asked:,} samples: {self.summary()}"
