"""The split of a text: the end is held out, and what is left before it is learned.

Between documents it is made where one of them begins.
"""

from charrnn.config import BLANK_LINES, LINES, MAX_VALID_CHARS, CorpusConfig
from charrnn.data.cache import Entry
from charrnn.data.documents import document_stops
from charrnn.data.vocab import Ids, Vocab
from charrnn.errors import InputError
from charrnn.text.characters import END
from charrnn.text.formats import quoted

_PIECE = 1 << 22  # ids searched at a time


def split(num_chars: int, config: CorpusConfig) -> tuple[int, int]:
    """Return the numbers of training and of held-out characters, at least one of each; the rest is the test text."""
    num_test = min(int(num_chars * config.test_fraction), MAX_VALID_CHARS)
    num_rest = num_chars - num_test
    num_train = int(num_chars * (1 - config.valid_fraction)) - num_test
    num_train = min(num_rest - 1, max(num_train, num_rest - MAX_VALID_CHARS, 2))
    return num_train, num_rest - num_train


def split_entry(entry: Entry, vocab: Vocab, config: CorpusConfig, name: str) -> tuple[int, int]:
    """Split as `split` does, but between documents, and exactly between training texts and a separate held-out text."""
    facts, ids = entry
    num_joined = facts["num_joined"]
    if config.valid is not None:
        if len(ids) - num_joined < 2:
            raise InputError(f"{config.valid}: too short to be held out; at least two characters are needed")
        return num_joined, len(ids) - num_joined
    num_train, num_valid = split(num_joined, config)
    end = vocab.id_of(END)
    if end is None:
        return num_train, num_valid
    starts = split_documents(ids, end, valid_start=num_train, test_start=num_train + num_valid)
    if starts is None:
        num_documents = facts["counts"][end]
        raise InputError(
            f"{name}: too few documents: {num_documents} {how_separated(config)}; "
            f"at least {3 if config.test_fraction else 2} are needed to hold some out"
        )
    valid_start, test_start = starts
    if 2 * valid_start < num_train:
        raise InputError(
            f"{name}: {valid_start:,} of {num_joined:,} characters would be left to train on, because a long document "
            "falls into the held-out text; split it (--documents), or hold out another text (--valid FILE)"
        )
    return valid_start, test_start - valid_start


def how_separated(config: CorpusConfig) -> str:
    """Describe what separates documents."""
    if config.column:
        return f"from column {quoted(config.column)}"
    if config.documents in (LINES, BLANK_LINES):
        return "of one line each" if config.documents == LINES else "separated by blank lines"
    return f"{'that begin with' if config.keep_separator else 'separated by'} '{config.documents}'"


def split_documents(ids: Ids, end: int, *, valid_start: int, test_start: int) -> tuple[int, int] | None:
    """Move the starts of the held-out and of the test text to the nearest starts of documents.

    test_start: len(ids) if there is no test text. Returns None if there are too few documents: each part has one.
    """
    before = len(ids)
    if test_start < len(ids):
        before = _nearest_start(ids, len(ids), end, after=0, before=len(ids)) or 0
    found = _nearest_start(ids, valid_start, end, after=0, before=before)
    if found is None:
        return None
    if test_start == len(ids):
        return found, test_start
    return found, _nearest_start(ids, test_start, end, after=found, before=len(ids)) or before


def _nearest_start(ids: Ids, position: int, end: int, *, after: int, before: int) -> int | None:
    """Return where the document nearest to a position begins, the later one of two; None if there is none.

    Only documents that begin after one position, at least 0, and before another one count.
    """
    position = min(max(position, after + 1), before)
    later, earlier = _first_start(ids, position, before, end), _last_start(ids, after + 1, position, end)
    if later is None or earlier is None:
        return earlier if later is None else later
    return later if later - position <= position - earlier else earlier


def _first_start(ids: Ids, first: int, stop: int, end: int) -> int | None:
    """Return where the first document begins from one position, at least 1, to another, exclusive."""
    for start in range(first, stop, _PIECE):
        stops = document_stops(ids[start - 1 : min(start + _PIECE, stop) - 1], end)
        if len(stops) > 0:
            return start - 1 + int(stops[0])
    return None


def _last_start(ids: Ids, first: int, stop: int, end: int) -> int | None:
    """Return where the last document begins from one position, at least 1, to another, exclusive."""
    for later in range(stop, first, -_PIECE):
        start = max(first, later - _PIECE)
        stops = document_stops(ids[start - 1 : later - 1], end)
        if len(stops) > 0:
            return start - 1 + int(stops[-1])
    return None
