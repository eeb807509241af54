"""Decoding: from bytes to characters, piece by piece.

Newlines stay as they are. A byte-order mark is dropped; it also identifies UTF-16 and UTF-32.
"""

import codecs
import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator

from charrnn.config import CorpusConfig
from charrnn.errors import InputError, UsageError
from charrnn.text.kinds import HEAD, WIDE_MARKS, describe_foreign, find_wide

_NOT_INCREMENTAL = ("punycode", "idna", "unicode-escape", "unicode_escape")  # their output depends on the pieces
_DROP_MARKS = ("utf-8-sig", "utf-16", "utf-32")  # codecs that drop a byte-order mark themselves
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ADVICE = "name the text's encoding, for example --encoding latin-1, or continue with --errors replace"


def decode(chunks: Iterable[bytes], name: str, config: CorpusConfig, *, advice: str = _ADVICE) -> Iterator[str]:
    """Decode the bytes of one text; with config.bytes, turn each byte into one character (see vocab.py).

    Raises InputError with the position of an invalid byte and the advice, UsageError for an unknown encoding.
    """
    if config.bytes:
        yield from (chunk.decode("ascii", "surrogateescape") for chunk in chunks)
        return
    chunks = iter(chunks)
    first = next(chunks, b"")
    encoding = _find_encoding(first, name, config.encoding, advice)
    decoder = codecs.getincrementaldecoder(encoding)(config.errors)
    offset, line, at_start = 0, 1, True
    for chunk in itertools.chain([first], chunks, [b""]):
        state = decoder.getstate()
        try:
            piece = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            num_pending = len(error.object) - len(chunk)  # bytes of earlier chunks that the decoder still holds
            decoder.setstate(state)
            with contextlib.suppress(UnicodeError):
                line += decoder.decode(chunk[: max(0, error.start - num_pending)]).count("\n")
            where = f"byte {offset - num_pending + error.start} (0x{error.object[error.start]:02x}) in line {line}"
            raise InputError(f"{name}: {where} is not {encoding}; {advice}") from None
        except UnicodeError as error:
            raise InputError(f"{name}: not {encoding} ({error}); {advice}") from None
        if encoding != "utf-8":  # other codecs may yield lone surrogates, which our files can't hold
            surrogate = _LONE_SURROGATE.search(piece)
            if surrogate and config.errors == "strict":
                line += piece.count("\n", 0, surrogate.start())
                raise InputError(f"{name}: half a character (U+{ord(surrogate[0]):04X}) in line {line}; {advice}")
            piece = _LONE_SURROGATE.sub("\ufffd", piece)
        offset, line = offset + len(chunk), line + piece.count("\n")
        if piece and at_start:
            at_start = False
            if encoding not in _DROP_MARKS:
                piece = piece.removeprefix("\ufeff")
        if piece:
            yield piece


def find_codec(encoding: str) -> codecs.CodecInfo:
    """Find a text encoding. Raises LookupError or ValueError if Python has none of that name."""
    codec = codecs.lookup(encoding)
    "a".encode(encoding)  # raises LookupError for other codecs, such as zip
    if codec.incrementaldecoder is None or codec.name in _NOT_INCREMENTAL:
        raise LookupError
    return codec


def _find_encoding(head: bytes, name: str, requested: str, advice: str) -> str:
    """Return the codec's name: the one requested, unless that is UTF-8 and the text begins with a wide mark.

    Raises InputError for a file that is not plain text.
    """
    try:
        codec = find_codec(requested)
    except (LookupError, ValueError):
        raise UsageError(f"--encoding {requested}: no such text encoding; try utf-8, latin-1 or cp1252") from None
    has_nuls = b"\0" in "a".encode(requested)
    if foreign := describe_foreign(head):
        raise InputError(f"{name}: {foreign}")
    if codec.name == "utf-8":
        for mark, wide in WIDE_MARKS.items():
            if head.startswith(mark):
                return wide
    nul = -1 if has_nuls else head.find(0, 0, HEAD)
    if nul >= 0 and (wide := find_wide(head)):
        hint = f"--encoding {wide} reads it" if advice == _ADVICE else advice
        raise InputError(f"{name}: looks like UTF-16 without a byte-order mark; {hint}")
    if nul >= 0:
        hint = "only a model of bytes (train --bytes) reads it"
        raise InputError(f"{name}: a binary file (NUL at byte {nul}), not a text; {hint}")
    return codec.name
