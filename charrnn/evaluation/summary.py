"""Views of one pass over a text's predictions: the totals, the first characters, the lines.

Letters: N characters.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Ids, Vocab
from charrnn.errors import InputError
from charrnn.evaluation.scores import Evaluation, Line
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.head import Predictions
from charrnn.text.characters import END, LABEL_END, UNKNOWN, valid_unicode

LONG_LINE = 10  # characters; shorter lines are hard by chance
_FED, _SCORED, _UNKNOWN = range(3)  # what happened to a character


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
    text: EvalText,
    vocab: Vocab,
    *,
    num_first: int = 0,
    num_hardest: int = 0,
) -> Summary:
    """Read the predictions of a text once and collect all views of them.

    parts: at least one. num_first: number of characters whose predictions are returned;
    num_hardest: number of lines.
    """
    totals, splitter = Totals(vocab.id_of(UNKNOWN)), LineSplitter(text, vocab)
    first: list[Predictions] = []
    hardest: list[Line] = []
    for part in parts:
        totals.add(part)
        if num_first > 0 or not first:
            first.append(select(part, slice(num_first)))
            num_first = max(0, num_first - len(part.ids))
        if num_hardest > 0:
            hardest = hardest_lines([*hardest, *splitter.split(part)], num_hardest)
    if num_hardest > 0:
        hardest = hardest_lines([*hardest, *splitter.rest()], num_hardest)
    score = totals.to_evaluation(text.unknown)
    return Summary(score, Predictions(*(np.concatenate(arrays) for arrays in zip(*first, strict=True))), hardest)


def select(predictions: Predictions, rows: slice) -> Predictions:
    """Return the predictions in a range of the first axis, as views."""
    arrays: tuple[NDArray[Any], ...] = predictions
    return Predictions(*(array[rows] for array in arrays))


def excerpt(text: EvalText, first: Predictions, vocab: Vocab, count: int) -> tuple[str, NDArray[np.float64]]:
    """Return the start of a text with the nats of each character, 0 for those that are not scored.

    first: what the model predicts at its first characters, of which count are shown, after at most as many of the
    first line that are only fed.
    """
    points, nats = LineSplitter(text, vocab).characters(select(first, slice(count)))
    start = max(0, text.num_before - count)
    if vocab.id_of(UNKNOWN) is None:  # unknown characters are between the others
        start += int(np.searchsorted(text.unknown_chars["place"], start))
    return points[start:].tobytes().decode("utf-32-le", "surrogatepass"), nats[start:]


def hardest_lines(lines: Iterable[Line], count: int) -> list[Line]:
    """Select the least predictable lines, the worst first.

    Those with the most unknown characters come first, then those with the most bits per character;
    lines of a running text that are short come after all others.
    """
    return heapq.nlargest(count, lines, key=_difficulty)


def _difficulty(line: Line) -> tuple[int, bool, float]:
    is_comparable = line.is_document or line.num_chars >= LONG_LINE
    return line.num_unknown, is_comparable, line.bits_per_char


class LineSplitter:
    """Splits a text into lines by the predictions of its characters, which come in parts.

    A line shows all its characters, but its score counts only those that are scored: the beginning
    of the first line may have been fed only, and unknown and rare characters never count.
    """

    def __init__(self, text: EvalText, vocab: Vocab) -> None:
        self._text, self._vocab, self._number = text, vocab, text.first_number
        self._is_document = vocab.id_of(END) is not None
        self._unknown_places = np.ascontiguousarray(text.unknown_chars["place"])
        self._num_ids = self._num_unknown = self._num_scored = 0
        # the characters of the line that is not complete: code points, nats, kinds
        self._pending: tuple[NDArray[Any], ...] = np.empty(0, np.uint32), np.empty(0), np.empty(0, np.uint8)
        before = text.context[len(text.context) - text.num_before :]
        self._add(before, np.zeros(len(before)), _FED)

    def characters(self, part: Predictions) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        """Return the code points up to the end of the first part of the text, and their nats, 0 where not scored."""
        self._add(part.ids, part.nats, _SCORED)
        points, nats, _ = self._pending
        return points, nats

    def split(self, part: Predictions) -> Iterator[Line]:
        """Yield the lines that end in the next part of the text."""
        self._add(part.ids, part.nats, _SCORED)
        yield from self._complete()

    def _complete(self) -> Iterator[Line]:
        """Yield the pending lines that end."""
        points, nats, kinds = self._pending
        start = 0
        for stop in (np.flatnonzero((points == ord("\n")) | (points == ord(END))) + 1).tolist():
            yield self._line(points[start:stop], nats[start:stop], kinds[start:stop])
            start = stop
        self._pending = points[start:], nats[start:], kinds[start:]

    def rest(self) -> Iterator[Line]:
        """Yield the lines after the last known newline."""
        self._add(np.empty(0, self._vocab.dtype), np.empty(0), _SCORED, is_last=True)
        yield from self._complete()
        if len(self._pending[0]) > 0:
            yield self._line(*self._pending)

    def _add(self, ids: Ids, nats: NDArray[np.float64], kind: int, *, is_last: bool = False) -> None:
        """Append ids, and the unknown characters before each, to the pending characters. nats: of each id."""
        points, kinds = self._vocab.points_of(ids), np.full(len(ids), kind, np.uint8)
        first, rare_id = self._num_unknown, self._vocab.id_of(UNKNOWN)
        self._num_unknown = len(self._unknown_places)
        if not is_last:
            self._num_unknown = int(np.searchsorted(self._unknown_places, self._num_ids + len(ids)))
        places = self._unknown_places[first : self._num_unknown] - self._num_ids
        unknown = self._text.unknown_chars["point"][first : self._num_unknown]
        self._num_ids += len(ids)
        if rare_id is None:
            points, nats = np.insert(points, places, unknown), np.insert(nats, places, 0.0)
            kinds = np.insert(kinds, places, _UNKNOWN)
        else:
            points = points.copy()
            points[places] = unknown
            kinds[ids == rare_id] = _UNKNOWN
            nats = np.where(kinds == _UNKNOWN, 0.0, nats)
        added: tuple[NDArray[Any], ...] = points, nats, kinds
        self._pending = tuple(np.concatenate(parts) for parts in zip(self._pending, added, strict=True))

    def _line(self, points: NDArray[np.uint32], nats: NDArray[np.float64], kinds: NDArray[np.uint8]) -> Line:
        label, has_label, text = points.tobytes().decode("utf-32-le", "surrogatepass").rpartition(LABEL_END)
        num_chars, num_unknown = int(np.count_nonzero(kinds == _SCORED)), int(np.count_nonzero(kinds == _UNKNOWN))
        line = Line(
            self._number,
            valid_unicode(text.rstrip("\n" + END)).replace(UNKNOWN, "\ufffd"),
            float(nats.sum()),
            num_chars,
            num_unknown=num_unknown,
            is_document=self._is_document,
            start=self._num_scored,
            label=valid_unicode(label) if has_label else None,
        )
        self._number += 1 if not self._is_document or text.endswith(END) else 0
        rare_id = self._vocab.id_of(UNKNOWN)
        self._num_scored += num_chars + (0 if rare_id is None else num_unknown)
        return line
