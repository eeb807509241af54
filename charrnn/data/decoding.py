"""From bytes to characters, piece by piece.

Newlines stay as they are. A byte-order mark is dropped, and tells UTF-16 and UTF-32.
"""

import codecs
import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator

from charrnn.config import CorpusConfig
from charrnn.data.sources import HEAD, WIDE_MARKS
from charrnn.data.vocab import END
from charrnn.errors import InputError, UsageError

_NOT_PIECEWISE = ("punycode", "idna", "unicode-escape", "unicode_escape")  # what they read depends on the pieces
_DROP_MARKS = ("utf-8-sig", "utf-16", "utf-32")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ADVICE = "name the text's encoding, for example --encoding latin-1, or read on with --errors replace"


def decode(chunks: Iterable[bytes], name: str, config: CorpusConfig) -> Iterator[str]:
    """Decode the bytes of one text, or, where bytes are asked for, spell each as a character (vocab.py).

    Raises InputError with the place of a byte that is wrong, UsageError for an unknown encoding.
    """
    if config.bytes:
        yield from (chunk.decode("ascii", "surrogateescape") for chunk in chunks)
        return
    chunks = iter(chunks)
    first = next(chunks, b"")
    encoding = _encoding(first, name, config.encoding)
    decoder = codecs.getincrementaldecoder(encoding)(config.errors)
    place, line, begun = 0, 1, False
    for chunk in itertools.chain([first], chunks, [b""]):
        state = decoder.getstate()
        try:
            piece = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):
                raise InputError(f"{name}: not {encoding} ({error}); {_ADVICE}") from None
            held = len(error.object) - len(chunk)  # by the decoder, of the chunk before
            decoder.setstate(state)
            with contextlib.suppress(UnicodeError):
                line += decoder.decode(chunk[: max(0, error.start - held)]).count("\n")
            where = f"byte {place - held + error.start} (0x{error.object[error.start]:02x}) in line {line}"
            raise InputError(f"{name}: {where} is not {encoding}; {_ADVICE}") from None
        if encoding != "utf-8":  # the others let half a character through, which no file of ours could hold
            half = _LONE_SURROGATE.search(piece)
            if half and config.errors == "strict":
                line += piece.count("\n", 0, half.start())
                raise InputError(f"{name}: half a character (U+{ord(half[0]):04X}) in line {line}; {_ADVICE}")
            piece = _LONE_SURROGATE.sub("\ufffd", piece)
        place, line = place + len(chunk), line + piece.count("\n")
        if piece and not begun:
            piece, begun = piece if encoding in _DROP_MARKS else piece.removeprefix("\ufeff"), True
        if piece:
            yield piece


def _encoding(head: bytes, name: str, asked: str) -> str:
    """The codec's name, which a mark at the text's beginning decides where it can."""
    try:
        codec = codecs.lookup(asked)
        has_nuls = b"\0" in "a".encode(asked)
        if codec.incrementaldecoder is None or codec.name in _NOT_PIECEWISE:
            raise LookupError
    except (LookupError, ValueError):
        raise UsageError(f"--encoding {asked}: no such text encoding; try utf-8, latin-1 or cp1252") from None
    if codec.name == "utf-8":
        for mark, wide in WIDE_MARKS.items():
            if head.startswith(mark):
                return wide
    nul = -1 if has_nuls else head.find(0, 0, HEAD)
    if nul >= 0:
        raise InputError(f"{name}: a binary file (NUL at byte {nul}), not a text; --bytes takes any")
    return codec.name


SEPARATORS = {"lines": r"\n", "blank-lines": r"\n(?:[ \t\r]*\n)+"}  # any other kind is the separator itself
_ENDS = re.compile(END + "+")


def end_documents(pieces: Iterable[str], kind: str) -> Iterator[str]:
    """Put END behind each document of one text, drop what separates them, and documents of nothing.

    kind: lines; blank-lines, which are one or more; or the very text that stands between two.
    """
    pattern = re.compile(SEPARATORS.get(kind) or re.escape(kind))
    most_held = 0 if kind in SEPARATORS else len(kind) - 1
    held, inside, begun = "", False, False
    if kind == "blank-lines":
        held = "\n"  # so that blank lines at the beginning are some
    for piece in itertools.chain(pieces, [""]):
        text = held + piece
        ready = _ready(text) if kind == "blank-lines" else len(text)
        *whole, last = pattern.split(text[:ready])
        cut = max(0, len(last) - most_held) if piece else len(last)
        held = last[cut:] + text[ready:]
        marked = _ENDS.sub(END, END.join([*whole, last[:cut]]))
        marked = marked if inside else marked.lstrip(END)
        if marked and not begun and kind == "blank-lines":
            marked, begun = marked.removeprefix("\n"), True
        if marked:
            inside = marked[-1] != END
            yield marked
    if inside:
        yield END


def _ready(text: str) -> int:
    """Where the white space begins, with a newline, that the end of a text is, and that may go on."""
    newline = text.find("\n", len(text.rstrip(" \t\r\n")))
    return len(text) if newline < 0 else newline
