"""Where the bits go: the cost of a text, shared out among classes of its characters.

Letters: R predicted characters, V vocabulary, C classes, E figures: count, nats, and those of network and n-grams.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Ids, Vocab
from charrnn.events import bits
from charrnn.inspection.features import BYTE, CAPITAL, DIGIT, DOCUMENT_END, PUNCTUATION, SPACE, is_in_word, kinds_of
from charrnn.inspection.findings import ClassBits
from charrnn.kernels.head import Predictions
from charrnn.text.characters import UNKNOWN

RARE_SHARE = 0.01  # of the text, that its rare characters have together
_NAMES = (
    "first letters",
    "later letters",
    "capitals",
    "digits",
    "spaces and newlines",
    "punctuation",
    "bytes that are not ASCII",
    "ends of documents",
    "rare characters",
)
_FIRST, _LATER, _CAPITAL, _DIGIT, _SPACE, _PUNCTUATION, _BYTE, _END, _RARE = range(len(_NAMES))
_OF_KIND = {CAPITAL: _CAPITAL, DIGIT: _DIGIT, SPACE: _SPACE, PUNCTUATION: _PUNCTUATION, BYTE: _BYTE, DOCUMENT_END: _END}


class ClassTotals:
    """Sums over the predictions of a text, by class and character; another view of the pass that scores it.

    context: the characters before the text, at least one.
    """

    def __init__(self, vocab: Vocab, context: Ids) -> None:
        self._vocab, self._kinds = vocab, kinds_of(vocab)
        self._is_in_word = is_in_word(self._kinds)
        self._class = np.full(len(vocab), _FIRST)
        for kind, index in _OF_KIND.items():
            self._class[self._kinds == kind] = index
        self._last = int(context[-1])
        self._sums = np.zeros((len(_NAMES), len(vocab), 4))  # (C, V, E)
        self._has_ngrams = False

    def watch(self, parts: Iterable[Predictions]) -> Iterator[Predictions]:
        """Pass predictions on, and add them up on the way."""
        for part in parts:
            self.add(part)
            yield part

    def add(self, part: Predictions) -> None:
        """Add a part of the text."""
        ids = part.ids
        if len(ids) == 0:
            return
        before = np.concatenate([[self._last], ids[:-1]])
        self._last = int(ids[-1])
        classes = self._class[ids]
        classes[(classes == _FIRST) & self._is_in_word[before]] = _LATER
        figures = [np.ones(len(ids)), part.nats]
        self._has_ngrams = part.experts.shape[1] > 0
        if self._has_ngrams:
            figures += [part.experts[:, 0], part.experts[:, 1]]
        flat = classes * len(self._vocab) + ids
        for index, figure in enumerate(figures):
            sums = np.bincount(flat, figure, minlength=self._sums[:, :, 0].size)
            self._sums[:, :, index] += sums.reshape(self._sums.shape[:2])

    def shares(self) -> tuple[ClassBits, ...]:
        """Return the classes that the text has. The rarest characters are a class of their own."""
        sums = self._sums.copy()
        if (rare_id := self._vocab.id_of(UNKNOWN)) is not None:  # not scored
            sums[:, rare_id] = 0.0
        rare = rare_characters(sums[:, :, 0].sum(0))
        sums[_RARE, rare] = sums[:, rare].sum(0)
        sums[:_RARE, rare] = 0.0
        return tuple(self._to_bits(index, figures) for index, figures in enumerate(sums.sum(1)) if figures[0] > 0)

    def _to_bits(self, index: int, figures: NDArray[np.float64]) -> ClassBits:
        count, own, network, ngram = (float(figure) for figure in figures)
        if not self._has_ngrams:
            return ClassBits(_NAMES[index], int(count), bits(own))
        return ClassBits(_NAMES[index], int(count), bits(own), bits(network), bits(ngram))


def rare_characters(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the ids of the least frequent characters that have at most RARE_SHARE of a text. counts: (V,)."""
    order = counts.argsort(kind="stable")
    rare: NDArray[np.int64] = order[counts[order].cumsum() <= RARE_SHARE * counts.sum()]
    return rare
