"""Kinds of files, recognised by their first bytes: compressed, wide, or no text at all."""

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import unicodedata
from collections.abc import Iterator
from typing import IO, Any, cast

from charrnn.errors import InputError

HEAD = 8192  # bytes at the beginning that are examined
WIDE_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # one of them follows the level, so that no text is mistaken for bzip2
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # follows a byte from 0x50 to 0x5f in a frame without content
_PANDOC = "pandoc -t plain FILE > TEXT converts it"
_FOREIGN = {  # first bytes: what the file is, and what to do
    b"%PDF-": ("a PDF file", "pdftotext FILE TEXT extracts its text"),
    b"{\\rtf": ("an RTF document", _PANDOC),
    b"SQLite format 3\0": ("an SQLite database", "sqlite3 FILE .dump > TEXT writes it as text"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Office document", "save it as plain text"),
    b"\x89PNG\r\n\x1a\n": ("an image", "charrnn learns text"),
    b"\xff\xd8\xff": ("an image", "charrnn learns text"),
    b"GIF89a": ("an image", "charrnn learns text"),
}
_ZIP = b"PK\x03\x04"
_ZIPPED = {  # bytes near the beginning of a zip file: what it is
    b"word/": "a Word document",
    b"application/epub+zip": "an EPUB book",
    b"application/vnd.oasis.opendocument": "an OpenDocument file",
}
_TAR, _TAR_AT = b"ustar", 257
_MIN_WIDE, _NULS_PER_BYTE = 16, 0.01  # UTF-16 without a mark: bytes at least, share of NULs at least


def find_compression(head: bytes) -> str | None:
    """Recognise a compressed file."""
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic) and (kind != "bzip2" or head[4:10] in _BZIP2_BLOCKS):
            return kind
    return "Zstandard" if head[:1] and head[0] >> 4 == 5 and head[1:4] == _ZSTD_SKIPPABLE else None


def decompress(kind: str | None, packed: io.RawIOBase, name: str, size: int) -> Iterator[bytes]:
    """Yield a stream's decompressed content in pieces of that size; several compressed members are concatenated."""
    if kind is None or kind == "gzip":
        stream = packed if kind is None else gzip.GzipFile(fileobj=cast(Any, packed))
        yield from iter(lambda: cast(IO[bytes], stream).read(size), b"")
        return
    make_decompressor = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}.get(kind)
    data = cast(bytes, packed.read(size))
    while data:
        # the libraries' own file classes silently ignore damage after the first member
        member = make_decompressor() if make_decompressor else _import_zstd(name).ZstdDecompressor()
        while not member.eof:
            if member.needs_input and not data and not (data := cast(bytes, packed.read(size))):
                raise EOFError("its end is missing")
            if piece := member.decompress(data, size):
                yield piece
            data = b""
        data = member.unused_data or cast(bytes, packed.read(size))
        while kind == "xz" and data and not (data := data.lstrip(b"\0")):  # padding between members
            data = cast(bytes, packed.read(size))


def _import_zstd(name: str) -> Any:
    """Import the standard library's module (from Python 3.14 on) or the optional backport."""
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    raise InputError(
        f"{name}: compressed with Zstandard; pip install 'charrnn[zst]', or decompress it first: zstd -dc FILE"
    )


def find_wide(head: bytes) -> str:
    """Recognise UTF-16 without a byte-order mark by its NULs: all at odd or all at even places; empty if it isn't."""
    head = head[:HEAD]
    num_odd, num_even = head[1::2].count(0), head[::2].count(0)
    if len(head) < _MIN_WIDE or min(num_odd, num_even) > 0 or num_odd + num_even < _NULS_PER_BYTE * len(head):
        return ""
    encoding = "utf-16-le" if num_odd else "utf-16-be"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return ""
    is_text = all(char in "\t\n\r\f" or unicodedata.category(char) not in ("Cc", "Cn", "Co") for char in text)
    return encoding if is_text else ""


def describe_foreign(head: bytes) -> str:
    """Say what a file without plain text is, and what to do; empty for a text or an unknown kind.

    head: its beginning, decompressed.
    """
    if kind := find_compression(head):
        return f"compressed twice (inside: {kind}); decompress it once"
    for magic, (what, advice) in _FOREIGN.items():
        if head.startswith(magic):
            return f"{what}, not a text; {advice}"
    if head.startswith(_ZIP):
        for mark, what in _ZIPPED.items():
            if mark in head[:HEAD]:
                return f"{what}, not a text; {_PANDOC}"
        return "a zip archive, not a text; unzip it into a folder and name the folder"
    if head.startswith(_TAR, _TAR_AT):
        return "a tar archive, not a text; extract it into a folder and name the folder"
    return ""


def is_binary(head: bytes) -> bool:
    """Return whether a file that begins like this is not text: a known kind, or one with a NUL, as no text has it."""
    if describe_foreign(head):
        return True
    return b"\0" in head[:HEAD] and not head.startswith(tuple(WIDE_MARKS)) and not find_wide(head)
