"""Documents: a text that consists of many independent ones, each ended by the symbol END.

Their order is shuffled once, so that the held-out part is a sample of all of them. After that
they are treated as one text, except that a network resets its state at each END (`reset_id`).
"""

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from charrnn.data.vocab import END, Ids
from charrnn.kernels.counters import uniforms

SEPARATORS = {"lines": r"\n", "blank-lines": r"\n(?:[ \t\r]*\n)+"}  # any other kind is itself the separator
_ENDS = re.compile(END + "+")
_BUCKET = 1 << 22  # ids that are shuffled in memory
_MAX_BUCKETS = 256  # open files
_BATCH = 1 << 12  # documents that are joined at a time


def end_documents(pieces: Iterable[str], kind: str) -> Iterator[str]:
    """Put END after each document of one text; drop the separators and empty documents.

    kind: lines; blank-lines, of which one or more separate documents; or the separator itself.
    """
    pattern = re.compile(SEPARATORS.get(kind) or re.escape(kind))
    max_pending = 0 if kind in SEPARATORS else len(kind) - 1
    pending, in_document, at_start = "", False, True
    if kind == "blank-lines":
        pending = "\n"  # so that blank lines at the beginning are recognised
    for piece in itertools.chain(pieces, [""]):
        text = pending + piece
        complete = _trailing_space(text) if kind == "blank-lines" else len(text)
        *whole, last = pattern.split(text[:complete])
        cut = max(0, len(last) - max_pending) if piece else len(last)
        pending = last[cut:] + text[complete:]
        marked = _ENDS.sub(END, END.join([*whole, last[:cut]]))
        if not in_document:
            marked = marked.lstrip(END)
        if marked and at_start and kind == "blank-lines":
            marked = marked.removeprefix("\n")
            at_start = False
        if marked:
            in_document = marked[-1] != END
            yield marked
    if in_document:
        yield END


def _trailing_space(text: str) -> int:
    """Return where the white space that ends a text begins, counted from its first newline; more may follow."""
    newline = text.find("\n", len(text.rstrip(" \t\r\n")))
    return len(text) if newline < 0 else newline


def shuffle(pieces: Iterable[Ids], end: int, *, num_ids: int, folder: Path) -> Iterator[Ids]:
    """Shuffle documents, given as ids in pieces; the order depends only on their number and num_ids.

    Each document goes to one of several files in the folder, chosen at random; then the files are
    shuffled one after the other. The memory needed is that of one file or of the longest document.
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
            for first in range(0, len(order), _BATCH):
                chosen = order[first : first + _BATCH]
                yield np.concatenate(
                    [ids[start:stop] for start, stop in zip(starts[chosen], stops[chosen], strict=True)]
                )


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


def next_document(ids: Ids, position: int, end: int) -> int:
    """Return where the first document at or after a position begins; if there is none, where the last one does.

    position: at least 1.
    """
    for start in range(position - 1, len(ids) - 1, _BUCKET):
        stops = _stops(ids[start : min(start + _BUCKET, len(ids) - 1)], end)
        if len(stops) > 0:
            return start + int(stops[0])
    for stop in range(min(position, len(ids) - 1), 0, -_BUCKET):
        start = max(0, stop - _BUCKET)
        stops = _stops(ids[start:stop], end)
        if len(stops) > 0:
            return start + int(stops[-1])
    return 0
