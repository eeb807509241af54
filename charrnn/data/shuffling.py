"""Documents as ids: their order, which is shuffled once, the split between them, their labels and hashes.

The order is random, so that the held-out part is a sample of all documents.

Letters: N characters, D documents.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charrnn.counters import uniforms
from charrnn.data.vocab import Ids

_BUCKET = 1 << 22  # ids that are shuffled in memory
_MAX_BUCKETS = 256  # open files
_BATCH = 1 << 12  # documents that are joined at a time
_PIECE = 1 << 22  # characters whose documents are hashed at a time
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that its powers are distinct


def shuffle(
    pieces: Iterable[Ids], end: int, *, num_ids: int, folder: Path, label_end: int | None = None
) -> Iterator[Ids]:
    """Shuffle documents, given as ids in pieces; the order depends only on their number, labels and num_ids.

    Each document goes to one of several files in the folder, chosen at random; then the files are
    shuffled one after the other. The memory needed is that of one file or of the longest document.
    label_end: the id of LABEL_END, if documents have labels. The documents of each label are then spread
    evenly over a file, so that the held-out end has each label in proportion.
    """
    num_buckets = min(_MAX_BUCKETS, num_ids // _BUCKET + 1)
    num_documents, dtype = 0, None
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(num_buckets)]
        for whole in _whole_documents(pieces, end):
            stops = _stops(whole, end)
            drawn = uniforms(len(stops), seed=0, stream=0, position=num_documents) * num_buckets
            num_documents, dtype = num_documents + len(stops), whole.dtype
            lengths = np.diff(stops, prepend=0)
            bucket_of_id = np.repeat(drawn.astype(np.uint16), lengths)
            for bucket in np.unique(bucket_of_id):
                buckets[bucket].write(whole[bucket_of_id == bucket].data)
        if num_documents == 0:
            return
        for index, file in enumerate(buckets):
            file.seek(0)
            ids = np.frombuffer(file.read(), dtype)
            stops = _stops(ids, end)
            starts = np.concatenate([[0], stops[:-1]])
            order = np.argsort(uniforms(len(stops), seed=0, stream=1 + index, position=0), kind="stable")
            if label_end is not None:
                order = order[_spread_evenly([_label(ids[starts[one] : stops[one]], label_end) for one in order])]
            for first in range(0, len(order), _BATCH):
                chosen = order[first : first + _BATCH]
                yield np.concatenate(
                    [ids[start:stop] for start, stop in zip(starts[chosen], stops[chosen], strict=True)]
                )


def _label(document: Ids, label_end: int) -> bytes:
    """Return the ids of a document's label, as bytes."""
    return document[: np.argmax(document == label_end)].tobytes()


def _spread_evenly(labels: Sequence[bytes]) -> NDArray[np.int64]:
    """Return an order (D,) in which each label's documents are spread evenly and otherwise keep their order."""
    totals, seen, places = Counter(labels), Counter[bytes](), np.empty(len(labels))
    for index, label in enumerate(labels):
        places[index] = (seen[label] + 0.5) / totals[label]
        seen[label] += 1
    return np.argsort(places, kind="stable")


def _whole_documents(pieces: Iterable[Ids], end: int) -> Iterator[Ids]:
    """Yield the same ids in pieces that begin and end at document boundaries."""
    pending: list[Ids] = []
    for piece in pieces:
        stops = _stops(piece, end)
        cut = int(stops[-1]) if len(stops) else 0
        if cut:
            yield np.concatenate([*pending, piece[:cut]])
            pending = []
        pending.append(piece[cut:])


def _stops(ids: Ids, end: int) -> Ids:
    """Return the position after each END."""
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
    stops = np.flatnonzero(ids == end) + 1
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
