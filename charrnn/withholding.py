"""A training text of which some pieces are kept from the network, to weigh it against n-grams.

They are spread over the text, or that end of it whose n-grams are counted: a text changes as it
goes on, so a network that lacks the last of it is a poor one for what comes after.

Letters: N characters, K pieces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.ngram import MOST_COUNTED
from charrnn.vocab import Ids

SIZE = 1000  # characters of a piece
MOST_DISTINCT = 1 << 14  # characters: of more, most are rare, and their distribution is most of the work
_PART = 40  # of which one is withheld, of the text
_MOST = 50  # pieces
_MOST_LOGITS = 2_000_000  # of all pieces


@dataclass(frozen=True)
class Withheld:
    """ids (N,) without the pieces of SIZE characters that begin at starts (K,), as if nothing had been between."""

    ids: Ids
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids) - SIZE * len(self.starts)

    def __getitem__(self, places: NDArray[np.int64]) -> Ids:
        """The characters at places in what is left."""
        before = np.searchsorted(self.starts - SIZE * np.arange(len(self.starts)), places, side="right")
        found: Ids = self.ids[places + SIZE * before]
        return found

    def left(self, first: int) -> Ids:
        """What is left of the text from a place in all of it on, which is in no piece: a copy."""
        pieces = self.starts[self.starts >= first] - first
        return np.delete(self.ids[first:], (pieces[:, None] + np.arange(SIZE)).ravel())


def withhold(ids: Ids, vocab_size: int) -> Withheld:
    """Choose the pieces, evenly spread; none of a text that is too short for one, or has too many characters."""
    first = max(0, len(ids) - MOST_COUNTED)
    num_counted = len(ids) - first
    count = min(num_counted // (_PART * SIZE), _MOST, max(1, _MOST_LOGITS // (vocab_size * SIZE)))
    count *= vocab_size <= MOST_DISTINCT
    middles = first + (2 * np.arange(count) + 1) * num_counted // (2 * max(1, count))
    return Withheld(ids, middles - SIZE // 2)
