"""Kinds of files: what their first bytes say, and what a user is told to do."""

import bz2
import contextlib
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile

import pytest

from charrnn.config import CorpusConfig
from charrnn.errors import InputError
from charrnn.text.decoding import decode
from charrnn.text.kinds import WIDE_MARKS, describe_foreign, find_wide, is_binary
from tests.conftest import make_text


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", False),
        (b"text", False),
        (b"\xff\xfea\0", False),
        (b"\xfe\xff\0a", False),
        (b"\0\0\xfe\xff\0\0\0a", False),
        (b"\xff\xfe\0\0a\0\0\0", False),
        (b"a\0b\0", True),
        (b"\0", True),
        (b"\xef\xbb\xbf\0", True),
        (b"a" * 8191 + b"\0", True),
        (b"a" * 8192 + b"\0", False),
    ],
)
def test_a_nul_marks_a_binary_file(head, expected):
    """Near the beginning, unless the mark of a wide encoding precedes it."""
    assert is_binary(head) is expected


def test_wide_marks_match_pythons_codecs():
    """Each decodes to nothing, and longer marks precede their prefixes."""
    for mark, encoding in WIDE_MARKS.items():
        assert mark.decode(encoding) == ""
    marks = list(WIDE_MARKS)
    assert not any(later.startswith(mark) for index, mark in enumerate(marks) for later in marks[index + 1 :])


def zipped(*names, first=b""):
    """Return a zip file with these names in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        if first:
            archive.writestr("mimetype", first, zipfile.ZIP_STORED)
        for name in names:
            archive.writestr(name, make_text(500))
    return file.getvalue()


def tarred():
    """Return a tar file with a text in it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = 500
        archive.addfile(entry, io.BytesIO(make_text(500).encode()))
    return file.getvalue()


def database():
    """Return an SQLite database."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table texts (text)")
        return connection.serialize()


FOREIGN = {
    "docx": (zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml"), "a Word document", "pandoc"),
    "epub": (zipped("a.xhtml", first=b"application/epub+zip"), "an EPUB book", "pandoc"),
    "odt": (zipped("a.xml", first=b"application/vnd.oasis.opendocument.text"), "an OpenDocument file", "pandoc"),
    "zip": (zipped("a.txt", "b.txt"), "a zip archive", "unzip it into a folder"),
    "tar": (tarred(), "a tar archive", "extract it into a folder"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF file", "pdftotext"),
    "rtf": (b"{\\rtf1\\ansi hello}", "an RTF document", "pandoc"),
    "sqlite": (database(), "an SQLite database", "sqlite3 FILE .dump"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an Office document", "save it as plain text"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image", "learns text"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "an image", "learns text"),
    "gzip": (gzip.compress(b"text"), "compressed twice (inside: gzip)", "decompress it once"),
    "bzip2": (bz2.compress(b"text"), "compressed twice (inside: bzip2)", "decompress it once"),
    "xz": (lzma.compress(b"text"), "compressed twice (inside: xz)", "decompress it once"),
}


def refusal(data, **config):
    """Return the one line that refuses these bytes."""
    with pytest.raises(InputError) as caught:
        list(decode([data], "name", CorpusConfig(**config)))
    message = str(caught.value)
    assert message.startswith("name: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(kind, encoding):
    """With what to do, in any encoding; a folder leaves it out, and its bytes can be learned."""
    data, what, advice = FOREIGN[kind]
    message = refusal(data, encoding=encoding)
    assert what in message
    assert advice in message
    assert is_binary(data)
    assert "".join(decode([data], "name", CorpusConfig(bytes=True))).encode("ascii", "surrogateescape") == data


@pytest.mark.parametrize("text", ["PK", "%PD", "BZh9 is not bzip2", "GIF", "{rtf", "ustar " * 99, "word/", "%!PS"])
def test_a_text_that_begins_alike_is_a_text(text):
    """Or contains such words."""
    assert describe_foreign(text.encode()) == ""
    assert "".join(decode([text.encode()], "name", CorpusConfig())) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", [make_text(500), "Онегин, добрый мой приятель\n" * 5, "日本語の文\nです。\n" * 20, "é" * 10]
)
def test_utf16_without_a_mark_is_recognised(encoding, text):
    """The message has the option that reads it; a folder doesn't leave it out."""
    data = text.encode(encoding)
    assert find_wide(data) == encoding
    assert f"looks like UTF-16 without a byte-order mark; --encoding {encoding} reads it" in refusal(data)
    assert "".join(decode([data], "name", CorpusConfig(encoding=encoding))) == text
    assert not is_binary(data)
    assert find_wide(data[:8001]) == encoding


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a\0",
        bytes(100),
        b"abc\0def" * 9,
        b"a" * 8000 + b"\0",
        b"\x7fELF" + bytes(12) * 9,
        "a".encode("utf-32-le") * 9,
    ],
)
def test_other_nuls_are_not_utf16(data):
    """Too few bytes, too few NULs, NULs in other places, or control characters."""
    assert find_wide(data) == ""
