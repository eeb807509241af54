"""Views of one pass over a text's predictions: the totals, the first characters, the least predictable lines.

Letters: N characters.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab
from charrnn.errors import InputError
from charrnn.evaluation.scores import Evaluation, Line
from charrnn.kernels.head import Predictions

MIN_LINE = 10  # characters; shorter lines are hard by chance


@dataclass
class Totals:
    """Sums over the predictions of a text. rare_id: the id that stands for any rare character, which is not scored."""

    rare_id: int | None
    nats: float = 0.0
    num_chars: float = 0
    num_rare: float = 0
    network_nats: float = 0.0
    ngram_nats: float = 0.0

    def values(self) -> list[float]:
        """Return the sums, for ranks to add up."""
        return [self.nats, self.num_chars, self.num_rare, self.network_nats, self.ngram_nats]

    def add(self, part: Predictions) -> None:
        """Add a part of the text."""
        scored = slice(None) if self.rare_id is None else part.ids != self.rare_id
        nats = part.nats[scored]
        self.nats += float(nats.sum())
        self.num_chars += len(nats)
        self.num_rare += len(part.ids) - len(nats)
        if part.experts.shape[1]:
            network, ngram = part.experts[scored].sum(0)
            self.network_nats += float(network)
            self.ngram_nats += float(ngram)

    def to_evaluation(self, unknown: dict[str, int]) -> Evaluation:
        """Return the score.

        unknown: counts of the characters that were left out of the text. If it is empty, rare
        characters are reported as unknown, under U+FFFD.
        Raises InputError if no character was scored.
        """
        if self.num_chars == 0:
            raise InputError("nothing to score: the model treats every character of the text as rare")
        experts = (self.network_nats, self.ngram_nats) if self.ngram_nats else None
        rare = {"\ufffd": int(self.num_rare)} if self.num_rare else {}
        return Evaluation(self.nats, int(self.num_chars), unknown or rare, experts)


@dataclass(frozen=True)
class Summary:
    """A text's score, the predictions of its first characters, and its least predictable lines, worst first."""

    score: Evaluation
    first: Predictions
    hardest: list[Line]


def summarise(
    parts: Iterable[Predictions],
    vocab: Vocab,
    *,
    unknown: dict[str, int],
    num_first: int = 0,
    num_hardest: int = 0,
) -> Summary:
    """Read the predictions of a text once and collect all views of them.

    parts: at least one. unknown: as for Totals.to_evaluation. num_first: number of characters whose
    predictions are returned; num_hardest: number of lines.
    """
    totals, splitter = Totals(vocab.id_of(UNKNOWN)), LineSplitter(vocab)
    first: list[Predictions] = []
    hardest: list[Line] = []
    for part in parts:
        totals.add(part)
        if num_first > 0 or not first:
            first.append(select(part, slice(num_first)))
            num_first = max(0, num_first - len(part.ids))
        if num_hardest > 0:
            hardest = _hardest([*hardest, *splitter.split(part)], num_hardest)
    if num_hardest > 0:
        hardest = _hardest([*hardest, *splitter.rest()], num_hardest)
    score = totals.to_evaluation(unknown)
    return Summary(score, Predictions(*(np.concatenate(arrays) for arrays in zip(*first, strict=True))), hardest)


def select(predictions: Predictions, rows: slice) -> Predictions:
    """Return the predictions in a range of the first axis, as views."""
    arrays: tuple[NDArray[Any], ...] = predictions
    return Predictions(*(array[rows] for array in arrays))


def _hardest(lines: Iterable[Line], count: int) -> list[Line]:
    long_enough = [line for line in lines if line.num_chars >= MIN_LINE]
    return heapq.nlargest(count, long_enough, key=lambda line: line.bits_per_char)


class LineSplitter:
    """Splits the predictions of a text into lines. A line's text includes rare characters; its score does not."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._ends = [found for char in ("\n", END) if (found := vocab.id_of(char)) is not None]
        self._ids, self._nats, self._number = np.empty(0, np.int64), np.empty(0), 0

    def split(self, part: Predictions) -> Iterator[Line]:
        """Yield the lines that end in the next part of the text."""
        ids, nats, start = np.concatenate([self._ids, part.ids]), np.concatenate([self._nats, part.nats]), 0
        for stop in (np.flatnonzero(np.isin(ids, self._ends)) + 1).tolist():
            yield self._line(ids[start:stop], nats[start:stop])
            start = stop
        self._ids, self._nats = ids[start:], nats[start:]

    def rest(self) -> Iterator[Line]:
        """Yield the last line if it has no newline."""
        if len(self._ids) > 0:
            yield self._line(self._ids, self._nats)

    def _line(self, ids: Ids, nats: NDArray[np.float64]) -> Line:
        self._number += 1
        vocab, scored = self._vocab, ids != self._vocab.id_of(UNKNOWN)
        text = vocab.make_decoder()(vocab.decode(ids).rstrip("\n" + END), True).replace(UNKNOWN, "\ufffd")
        return Line(self._number, text, float(nats[scored].sum()), int(scored.sum()))
