"""Documents: a text that is many, each ended by the symbol END and independent of the others.

They are put into an order drawn once for all, so that what is held out is a share of every
kind; from then on they are a text like any other, but that a network forgets its state at
each END (`reset_id`).
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from charrnn.data.vocab import Ids
from charrnn.kernels.counters import uniforms

_BUCKET = 1 << 22  # ids that are shuffled in memory
_MOST_BUCKETS = 256  # open files
_AT_ONCE = 1 << 12  # documents that are put together


def shuffled(pieces: Iterable[Ids], end: int, *, num_ids: int, folder: Path) -> Iterator[Ids]:
    """Put documents, given by their ids, into an order that depends on nothing but their number.

    Each goes into one of several files in the folder, drawn at random, and those are shuffled
    one after the other: memory is needed for a file, or for the longest document.
    """
    num_buckets = min(_MOST_BUCKETS, num_ids // _BUCKET + 1)
    number, dtype = 0, None
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(num_buckets)]
        for whole in _whole_documents(pieces, end):
            stops = _stops(whole, end)
            drawn = uniforms(len(stops), seed=0, stream=0, position=number) * num_buckets
            number, dtype = number + len(stops), whole.dtype
            lengths = np.diff(stops, prepend=0)
            of_each = np.repeat(drawn.astype(np.uint16), lengths)  # id's bucket
            for bucket in np.unique(of_each):
                buckets[bucket].write(whole[of_each == bucket].data)
        for index, file in enumerate(buckets if number else []):
            file.seek(0)
            ids = np.frombuffer(file.read(), dtype)
            stops = _stops(ids, end)
            starts = np.concatenate([[0], stops[:-1]])
            order = np.argsort(uniforms(len(stops), seed=0, stream=1 + index, position=0), kind="stable")
            for first in range(0, len(order), _AT_ONCE):
                chosen = order[first : first + _AT_ONCE]
                yield np.concatenate(
                    [ids[start:stop] for start, stop in zip(starts[chosen], stops[chosen], strict=True)]
                )


def _whole_documents(pieces: Iterable[Ids], end: int) -> Iterator[Ids]:
    """The same ids in pieces that begin and end where documents do."""
    held: list[Ids] = []
    for piece in pieces:
        stops = _stops(piece, end)
        cut = int(stops[-1]) if len(stops) else 0
        if cut:
            yield np.concatenate([*held, piece[:cut]])
            held = []
        held.append(piece[cut:])


def _stops(ids: Ids, end: int) -> Ids:
    """Where each document stops, behind its end."""
    return np.flatnonzero(ids == end) + 1


def next_document(ids: Ids, place: int, end: int) -> int:
    """Where the first document begins from a place on; or where the last one does, if that is before it; or 0.

    place: at least 1.
    """
    for start in range(place - 1, len(ids) - 1, _BUCKET):
        stops = _stops(ids[start : min(start + _BUCKET, len(ids) - 1)], end)
        if len(stops) > 0:
            return start + int(stops[0])
    for stop in range(min(place, len(ids) - 1), 0, -_BUCKET):
        start = max(0, stop - _BUCKET)
        stops = _stops(ids[start:stop], end)
        if len(stops) > 0:
            return start + int(stops[-1])
    return 0
