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

from charrnn.config import BLANK_LINES, LINES
from charrnn.data.vocab import END, Ids, bytes_as_chars
from charrnn.kernels.counters import uniforms

_LINE_END = re.compile("[\r\n]")
_BLANK_LINES = re.compile(r"(?:\r\n?+|\n)(?:[ \t]*+(?:\r\n?+|\n))++")  # possessive: nothing is matched twice
_BUCKET = 1 << 22  # ids that are shuffled in memory
_MAX_BUCKETS = 256  # open files
_BATCH = 1 << 12  # documents that are joined at a time


def end_documents(pieces: Iterable[str], kind: str, *, is_bytes: bool = False) -> Iterator[str]:
    """Put END after each document of one text; drop the separators and empty documents.

    kind: lines; blank-lines, of which one or more separate documents; or the separator itself.
    A line ends with LF, CRLF or CR. is_bytes: each character of the text is a byte.
    """
    separator = bytes_as_chars(kind) if is_bytes else kind
    held = ["\n\n" if kind == BLANK_LINES else ""]  # the end of the text so far, unless it is certainly in a document
    in_document = False
    for piece in itertools.chain(pieces, [""]):
        if kind == BLANK_LINES and held[0] and piece and not piece.strip(" \t"):
            held.append(piece)  # joined only once, however small the pieces of a long line are
            continue
        parts, rest = _split("".join([*held, piece]), kind, separator, is_last=not piece)
        held = [rest]
        marked = [parts[0]] if parts[0] else []
        in_document = in_document or bool(parts[0])
        if len(parts) > 1:
            if in_document:
                marked.append(END)
            whole = [part for part in parts[1:-1] if part]
            marked += [END.join(whole), END] if whole else []
            marked.append(parts[-1])
            in_document = bool(parts[-1])
        if ended := "".join(marked):
            yield ended
    if in_document:
        yield END


def _split(text: str, kind: str, separator: str, *, is_last: bool) -> tuple[list[str], str]:
    """Split a text at its separators; return the parts, and the end of the text that may be part of a separator."""
    if kind == LINES:
        return text.replace("\r", "\n").split("\n"), ""
    if kind == BLANK_LINES:
        line_end = _LINE_END.search(text, len(text.rstrip(" \t\r\n")))
        complete = line_end.start() if line_end else len(text)
        return _BLANK_LINES.split(text[:complete]), _BLANK_LINES.sub("\n\n", text[complete:])
    *parts, last = text.split(separator)
    cut = len(last) if is_last else max(0, len(last) - len(separator) + 1)
    return [*parts, last[:cut]], last[cut:]


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
