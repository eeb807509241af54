"""Documents as ids: where each one ends, their labels, and the hashes that tell whether two are equal.

Letters: N characters, D documents.
"""

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Ids

_PIECE = 1 << 22  # characters whose documents are hashed at a time
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that its powers are distinct


def document_stops(ids: Ids, end: int) -> NDArray[np.int64]:
    """Return the position after each END in ids (N,): (D,)."""
    return np.flatnonzero(ids == end) + 1


def without_labels(ids: Ids, end: int | None, label_end: int | None) -> Ids:
    """Return the ids of documents without their labels. Either all documents have a label or none has."""
    is_label_end = ids == label_end
    if label_end is None or not is_label_end.any():
        return ids
    # a text has one more end of a label before it than ends of documents
    num_labels = np.cumsum(is_label_end, dtype=np.int32) - is_label_end
    is_end = ids == end
    num_ends = np.cumsum(is_end, dtype=np.int32) - is_end
    texts: Ids = ids[num_labels > num_ends]
    return texts


def hash_documents(ids: Ids, end: int) -> NDArray[np.uint64]:
    """Hash each complete document of a text, (D,)."""
    stops = document_stops(ids, end)
    hashes = [np.empty(0, np.uint64)]
    first = 0
    while first < len(stops):
        start = int(stops[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(stops, start + _PIECE, "right")))  # at least one document
        hashes.append(_hash_pieces(ids[start : stops[last - 1]], stops[first:last] - start))
        first = last
    return np.concatenate(hashes)


def _hash_pieces(ids: Ids, stops: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash the pieces of ids (N,) that end before each of stops (D,), the last of which is N.

    A hash is a polynomial modulo 2^64, so equal pieces have equal hashes; different ones hardly ever.
    """
    lengths = np.diff(stops, prepend=0)
    powers = np.cumprod(np.full(int(lengths.max()), _FACTOR, np.uint64))
    places = np.arange(len(ids)) - np.repeat(stops - lengths, lengths)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return np.add.reduceat(mixed * powers[places], stops - lengths)


def short_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Reduce hashes to 32 bits. All 64 bits are mixed first: the upper half alone collides more often in some lists."""
    mixed = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(_FACTOR)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(_FACTOR)
    return (mixed >> np.uint64(32)).astype(np.uint32)
