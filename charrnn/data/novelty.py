"""How new a held-out text is: the share of its n-grams that never occur in the training text before it.

Letters: N characters, M characters of the training text.
"""

import numpy as np
from numpy.typing import NDArray

from charrnn.data.corpus import Corpus
from charrnn.data.vocab import Ids

_LENGTH = 3  # of the n-grams: another language has many new ones, another part of the same text few
_MAX_CHARS = 2_000_000  # of either text
_MIN_CHARS = 1000  # in shorter texts most n-grams are new
_USUAL_FACTOR, _USUAL_SURPLUS = 2.0, 0.1  # ordinary texts and manuals stay within usual * factor + surplus


def unlike_rest(corpus: Corpus) -> list[str]:
    """Say so if the held-out text differs much from the training text."""
    found = unusual_novelty(corpus.train_ids, corpus.valid_ids)
    if found is None:
        return []
    share, usual = found
    which, advice = "the held-out file is unlike the training text", ""
    if not corpus.has_valid_file:
        which = "the end of the text, which is held out, is unlike the rest"
        advice = (
            "; hold out another text with --valid, shuffle documents with --documents, or name files in another order"
        )
    return [
        f"{which}: {share:.0%} of its {_LENGTH}-grams never occur there (usual for this text: {usual:.0%}), "
        f"so the score says little about the rest, and training may stop too early{advice}"
    ]


def unusual_novelty(train: Ids, held_out: Ids) -> tuple[float, float] | None:
    """Compare how new a held-out text (N,) is with how new the end of the training text (M,) is to what precedes it.

    Returns both shares if the first is unusually large, else None.
    """
    train, held_out = train[-_MAX_CHARS:], held_out[:_MAX_CHARS]
    size = min(len(held_out), len(train) // 2)
    if size < _MIN_CHARS:
        return None
    share, usual = novelty(train, held_out), novelty(train[:-size], train[-size:])
    return (share, usual) if share > _USUAL_FACTOR * usual + _USUAL_SURPLUS else None


def novelty(train: Ids, ids: Ids) -> float:
    """Return the share of the n-grams of ids (N,) that do not occur in train (M,). Both have at least an n-gram."""
    is_new = ~np.isin(_ngrams(ids), np.unique(_ngrams(train)))
    return float(is_new.mean())


def _ngrams(ids: Ids) -> NDArray[np.int64]:
    """Encode each n-gram of ids (N,) as a number: (N - 2,)."""
    codes = np.zeros(len(ids) - _LENGTH + 1, np.int64)
    for offset in range(_LENGTH):
        codes = (codes << 21) + ids[offset : offset + len(codes)]  # an id has at most 21 bits
    return codes
