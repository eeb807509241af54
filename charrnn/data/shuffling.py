"""The order of documents, shuffled once, so that the held-out part is a sample of all documents.

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
from charrnn.data.documents import document_stops
from charrnn.data.vocab import Ids

_BUCKET = 1 << 22  # ids that are shuffled in memory
_MAX_BUCKETS = 256  # open files
_BATCH = 1 << 12  # documents that are joined at a time


def shuffle(
    pieces: Iterable[Ids], end: int, *, num_ids: int, folder: Path, label_end: int | None = None
) -> Iterator[Ids]:
    """Shuffle documents, given as ids in pieces; the order depends only on their number, labels and num_ids.

    Each document goes to one of several files in the folder, chosen at random; then the files are
    shuffled one by one. The memory needed is that of one file or of the longest document.
    label_end: the id of LABEL_END, if documents have labels. The documents of each label are then spread
    evenly over a file, so that the held-out end has each label in proportion.
    """
    num_buckets = min(_MAX_BUCKETS, num_ids // _BUCKET + 1)
    num_documents, dtype = 0, None
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(num_buckets)]
        for whole in _whole_documents(pieces, end):
            stops = document_stops(whole, end)
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
            stops = document_stops(ids, end)
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
        stops = document_stops(piece, end)
        cut = int(stops[-1]) if len(stops) else 0
        if cut:
            yield np.concatenate([*pending, piece[:cut]])
            pending = []
        pending.append(piece[cut:])
