"""Scores of a text's lines, which are shown as they are in its file.

Letters: N characters.
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.characters import valid_unicode
from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab
from charrnn.evaluation.scores import Line
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.head import Predictions

LONG_LINE = 10  # characters; shorter lines are hard by chance
_FED, _SCORED, _UNKNOWN = range(3)  # what happened to a character


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
        added: tuple[NDArray[Any], ...] = points, nats, kinds
        self._pending = tuple(np.concatenate(parts) for parts in zip(self._pending, added, strict=True))

    def _line(self, points: NDArray[np.uint32], nats: NDArray[np.float64], kinds: NDArray[np.uint8]) -> Line:
        text = points.tobytes().decode("utf-32-le", "surrogatepass")
        num_chars, num_unknown = int((kinds == _SCORED).sum()), int((kinds == _UNKNOWN).sum())
        line = Line(
            self._number,
            valid_unicode(text.rstrip("\n" + END)).replace(UNKNOWN, "\ufffd"),
            float(nats[kinds == _SCORED].sum()),
            num_chars,
            num_unknown=num_unknown,
            is_document=self._is_document,
            start=self._num_scored,
        )
        self._number += 1 if not self._is_document or text.endswith(END) else 0
        rare_id = self._vocab.id_of(UNKNOWN)
        self._num_scored += num_chars + (0 if rare_id is None else num_unknown)
        return line
