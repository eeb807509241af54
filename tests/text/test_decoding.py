"""Decoding: the same text however the bytes are cut, and every error with its position."""

import codecs
import itertools
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from charrnn.config import CorpusConfig
from charrnn.errors import InputError, UsageError
from charrnn.text.decoding import decode
from charrnn.text.kinds import WIDE_MARKS

NAME = "folder/some name.txt"
TEXT = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
        st.sampled_from("ab \r\n\t\x0b\x85éßœ€ﾊあア漢字한я\u2028\ufeff\ufffd😀"),
    )
)
SEVERAL_BYTES = st.characters(min_codepoint=0x80, exclude_categories=["Cs"])
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=8)
NARROW = ["utf-8", "utf-8-sig", "latin-1", "cp1252", "ascii", "shift_jis", "gb18030", "euc_kr", "big5", "iso2022_jp"]
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
MARKS = tuple(WIDE_MARKS)


def cut(data, sizes, *, first=1):
    """Cut bytes into chunks of these lengths, repeatedly, the first one at least as long as `first`; none is empty."""
    chunks, start = [], 0
    for index, size in enumerate(itertools.cycle(sizes)):
        if start >= len(data):
            return chunks
        stop = start + (max(size, first) if index == 0 else size)
        chunks.append(data[start:stop])
        start = stop
    return chunks


def all_chunkings(data):
    """Yield every way to cut bytes into non-empty chunks."""
    for is_cut in itertools.product([False, True], repeat=max(0, len(data) - 1)):
        cuts = [0, *(index for index, here in enumerate(is_cut, 1) if here), len(data)]
        yield [data[start:stop] for start, stop in itertools.pairwise(cuts) if stop > start]


def read(chunks, **config):
    """Decode chunks with these settings; no piece of the result may be empty."""
    pieces = list(decode(chunks, NAME, CorpusConfig(**config)))
    assert all(pieces)
    return "".join(pieces)


def refusal(chunks, **config):
    """Return the error message for bytes that can't be decoded; it begins with the name."""
    with pytest.raises(InputError) as caught:
        read(chunks, **config)
    message = str(caught.value)
    assert message.startswith(f"{NAME}: ")
    assert "\n" not in message
    return message


def position_in(message):
    """Return the offset, byte and line in an error message."""
    found = re.search(r" byte (\d+) \(0x([0-9a-f]{2})\) in line (\d+) ", message)
    assert found, message
    return int(found[1]), int(found[2], 16), int(found[3])


@settings(max_examples=100)
@given(text=TEXT, encoding=st.sampled_from(NARROW + WIDE), sizes=SIZES)
def test_result_does_not_depend_on_the_chunks(text, encoding, sizes):
    """It matches Python's decoding of all bytes, in any encoding, even if a boundary splits a character."""
    data = text.removeprefix("\ufeff").encode(encoding, "ignore")
    expected = data.decode(encoding)
    assume(not expected.startswith("\ufeff"))
    assert read(cut(data, sizes), encoding=encoding) == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("é\r\n€😀", "utf-8"),
        ("a\r\n\r\ré", "utf-8-sig"),
        ("a\r\n😀", "utf-16"),
        ("\r\n😀é", "utf-16-be"),
        ("é😀", "utf-32"),
        ("あ\r\nｱ漢字", "shift_jis"),
        ("\x80漢😀\r\n", "gb18030"),
        ("aあ\r\n", "iso2022_jp"),
        ("a漢😀\n", "utf-7"),
        ("a\r\nœ\u2019", "cp1252"),
    ],
)
def test_every_way_to_cut_a_few_bytes_gives_the_same_text(text, encoding):
    """Including those that split characters, marks and line ends."""
    data = text.encode(encoding)
    assert len(data) <= 13
    for chunks in all_chunkings(data):
        assert read(chunks, encoding=encoding) == text


@settings(max_examples=40)
@given(text=TEXT, sizes=SIZES)
def test_utf8_is_the_default(text, sizes):
    """A mark at the start is not part of the text; a later one is an ordinary character."""
    data = text.encode()
    assert read(cut(data, sizes)) == data.decode().removeprefix("\ufeff")
    assert read(cut(codecs.BOM_UTF8 + data, sizes)) == text


@pytest.mark.parametrize("encoding", NARROW + WIDE)
def test_no_bytes_give_no_text(encoding):
    """No chunks, or a mark alone."""
    assert list(decode([], NAME, CorpusConfig(encoding=encoding))) == []
    mark = "".encode(encoding)
    assert list(decode([mark] if mark else [], NAME, CorpusConfig(encoding=encoding))) == []


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030"]
)
def test_a_byte_order_mark_is_dropped_only_at_the_start(encoding):
    """In any encoding that has one, however the bytes are cut."""
    data = b"".join(part.encode(encoding.removesuffix("-sig")) for part in ["\ufeff", "a\ufeffb", "\ufeff"])
    for size in range(1, len(data) + 1):
        assert read(cut(data, [size]), encoding=encoding) == "a\ufeffb\ufeff"


@pytest.mark.parametrize("sizes", [[1], [2], [3], [4], [100]])
def test_further_marks_are_kept(sizes):
    """Two at the start are a mark and a character."""
    assert read(cut(codecs.BOM_UTF8 * 3 + b"a", sizes)) == "\ufeff\ufeffa"


@settings(max_examples=40)
@given(text=TEXT, wide=st.sampled_from(WIDE), sizes=SIZES, asked=st.sampled_from(["utf-8", "UTF8", "u8", "utf_8"]))
@example(text="a\ufeff\r\n😀", wide="utf-16-le", sizes=[1], asked="utf-8")
def test_utf16_and_utf32_are_recognised_by_their_mark(text, wide, sizes, asked):
    """In either byte order, although UTF-8 was requested; the mark is dropped."""
    assume(not text.startswith("\ufeff"))
    data = text.encode(wide) if wide in ("utf-16", "utf-32") else ("\ufeff" + text).encode(wide)
    assert read(cut(data, sizes, first=4), encoding=asked) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "utf-16-be"])
def test_a_mark_does_not_override_another_requested_encoding(encoding):
    """The user's choice is used."""
    data = b"\xff\xfea\xe9" if encoding != "gb18030" else b"\x81\x40\xfe\x50"
    assert read([data], encoding=encoding) == data.decode(encoding)


@settings(max_examples=80)
@given(before=TEXT, torn=st.one_of(st.just(""), SEVERAL_BYTES), after=TEXT, sizes=SIZES, data=st.data())
def test_an_invalid_byte_is_located_exactly(before, torn, after, sizes, data):
    """A byte inserted into valid UTF-8 is reported at the offset of Python's own decoder, with its line."""
    good, start = (before + torn + after).encode(), len(before.encode())
    index = data.draw(st.integers(start, start + len(torn.encode())))
    damaged = good[:index] + bytes([data.draw(st.integers(0x80, 0xFF))]) + good[index:]
    assume(not damaged.startswith(MARKS))
    with pytest.raises(UnicodeDecodeError) as expected:
        damaged.decode()
    offset = expected.value.start
    message = refusal(cut(damaged, sizes))
    assert position_in(message) == (offset, damaged[offset], damaged[:offset].count(b"\n") + 1)
    assert "--encoding" in message
    assert "--errors replace" in message


@pytest.mark.parametrize(
    ("data", "encoding", "offset", "line"),
    [
        (b"a\n\xe2\x82\n\xe2b", "utf-8", 2, 2),
        (b"\xff\n\n\n", "utf-8", 0, 1),
        (b"\n\n\r\n\r\xff", "utf-8", 5, 4),
        ("é\n€".encode() + b"\xe9t", "utf-8", 6, 2),
        (codecs.BOM_UTF8 + b"ab\n\xe9t", "utf-8", 6, 2),
        (codecs.BOM_UTF8 + b"ab\n\xe9t", "utf-8-sig", 6, 2),
        (b"ab\n\xf0\x9f\x98", "utf-8", 3, 2),
        ("\x80\n漢".encode("gb18030") + b"\xff\n", "gb18030", 7, 2),
        ("あ\nア".encode("shift_jis") + b"\xff\n", "shift_jis", 5, 2),
        ("\ufeff\na".encode("utf-16-be") + b"\xdc\0", "utf-16", 6, 2),
    ],
)
def test_the_reported_position_does_not_depend_on_the_chunks(data, encoding, offset, line):
    """Offset, byte and line are the same; a mark counts, because it is part of the file."""
    for chunks in all_chunkings(data):
        assert position_in(refusal(chunks, encoding=encoding)) == (offset, data[offset], line)


def first_invalid(data, encoding):
    """Return where Python's decoder of all bytes finds an invalid byte, or None."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return None


@settings(max_examples=80)
@given(
    text=TEXT,
    encoding=st.sampled_from(["ascii", "cp1252", "shift_jis", "gb18030", "euc_kr", "big5", "utf-16-le", "utf-32-le"]),
    sizes=SIZES,
    data=st.data(),
)
def test_other_encodings_match_python(text, encoding, sizes, data):
    """Bytes that Python refuses are refused at the same offset, and no others."""
    good = text.encode(encoding, "ignore")
    index = data.draw(st.integers(0, len(good)))
    damaged = good[:index] + bytes([data.draw(st.integers(1, 0xFF))]) + good[index + data.draw(st.integers(0, 1)) :]
    assume(not damaged.startswith(MARKS))
    assume(b"\0" not in damaged or encoding in WIDE)
    offset, expected = first_invalid(damaged, encoding), damaged.decode(encoding, "ignore").removeprefix("\ufeff")
    if offset is None:
        assert read(cut(damaged, sizes), encoding=encoding) == expected
        return
    message = refusal(cut(damaged, sizes), encoding=encoding)
    line = damaged[:offset].decode(encoding).count("\n") + 1
    assert position_in(message) == (offset, damaged[offset], line)
    assert f"is not {codecs.lookup(encoding).name};" in message


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(("encoding", "unit"), [("utf-16", 2), ("utf-32", 4)])
def test_the_reported_position_counts_a_wide_mark(encoding, unit, size):
    """Half a character after two lines is reported at its offset in the file."""
    data = "\ufeffa\nb\n".encode(encoding + "-le") + b"\0\xd8" + bytes(unit - 2) + "c".encode(encoding + "-le")
    offset = 5 * unit
    assert position_in(refusal(cut(data, [size], first=4))) == (offset, 0, 3)
    assert position_in(refusal(cut(data, [size]), encoding=encoding)) == (offset, 0, 3)


@pytest.mark.parametrize(
    "bad", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"], ids=["overlong", "surrogate", "big", "cut"]
)
def test_utf8_is_strict(bad):
    """Overlong forms, surrogates, too large code points and incomplete characters are refused."""
    for chunks in all_chunkings(b"abc" + bad):
        assert position_in(refusal(chunks)) == (3, bad[0], 1)


@settings(max_examples=80)
@given(data=st.binary().filter(lambda data: b"\0" not in data), sizes=SIZES, torn=SEVERAL_BYTES, keep=st.integers(1, 3))
def test_replace_matches_python(data, sizes, torn, keep):
    """Each invalid byte becomes the characters that Python makes of it."""
    data += torn.encode()[:keep] + data
    assume(not data.startswith(MARKS))
    assert read(cut(data, sizes), errors="replace") == data.decode("utf-8", "replace").removeprefix("\ufeff")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis", "gb18030", "utf-16-le", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_replace_works_in_other_encodings(encoding, size):
    """Invalid bytes become U+FFFD; the rest of the text is unchanged."""
    bad = {"utf-16-le": b"\0\xdc", "utf-32-be": b"\0\x11\0\0", "cp1252": b"\x81"}.get(encoding, b"\xff")
    data = "ab\n".encode(encoding) + bad + "c\nd".encode(encoding.removesuffix("-sig"))
    assert read(cut(data, [size]), encoding=encoding, errors="replace") == "ab\n\ufffdc\nd"


@settings(max_examples=40)
@given(data=st.binary(), sizes=SIZES)
@example(data=bytes(range(256)), sizes=[1])
@example(data=b"\xff\xfe\0\0\xef\xbb\xbf\x1f\x8b", sizes=[3])
def test_bytes_are_decoded_reversibly(data, sizes):
    """Any byte becomes one character, and ASCII stays as it is."""
    text = read(cut(data, sizes), bytes=True)
    assert text.encode("ascii", "surrogateescape") == data
    assert len(text) == len(data)
    assert [char for char in text if char < "\x80"] == [chr(byte) for byte in data if byte < 0x80]


@pytest.mark.parametrize("setting", [{"encoding": "latin-1"}, {"errors": "replace"}])
def test_bytes_have_no_encoding(setting):
    """An option that would have no effect is refused."""
    with pytest.raises(UsageError, match=f"--{next(iter(setting))} .* has no effect"):
        CorpusConfig(bytes=True, **setting)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "shift_jis"])
@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"ab\0cd", b"\0", b"\xef\xbb\xbfab\0", b"a" * 8000 + b"\0"])
def test_a_binary_file_is_refused(content, encoding):
    """A NUL near the start gives it away; the message has its position, and advice for every command."""
    for errors in ("strict", "replace"):
        message = refusal([content, b"more"], encoding=encoding, errors=errors)
        assert "a binary file" in message
        assert f"byte {content.index(0)})" in message
        assert "only a model of bytes (train --bytes) reads it" in message


@pytest.mark.parametrize("chunks", [[b"a" * 8192 + b"\0"], [b"a" * 8192, b"\0"]])
def test_a_late_nul_is_an_ordinary_character(chunks):
    """Only the beginning is examined."""
    assert read(chunks) == "a" * 8192 + "\0"


@pytest.mark.parametrize(
    ("encoding", "data", "half"),
    [
        ("raw_unicode_escape", b"a\nb\\udc00c", "U+DC00"),
        ("utf-7", b"a\nb+2AA-c", "U+D800"),
    ],
)
def test_a_lone_surrogate_is_refused(encoding, data, half):
    """Some codecs let surrogates through, which a model file can't hold; the message has the line."""
    for size in range(1, len(data) + 1):
        message = refusal(cut(data, [size]), encoding=encoding)
        assert f"({half}) in line 2;" in message
        assert "--encoding" in message


def test_a_lone_surrogate_in_utf16_is_refused():
    """Python's codec reports the offset itself."""
    for chunks in all_chunkings(b"a\0\n\0\0\xd8a\0"):
        assert position_in(refusal(chunks, encoding="utf-16-le")) == (4, 0, 2)


@pytest.mark.parametrize(("encoding", "data"), [("raw_unicode_escape", b"a\\ud83db"), ("utf-7", b"a+2AA-b")])
def test_a_lone_surrogate_can_be_replaced(encoding, data):
    """Like an invalid byte."""
    for chunks in all_chunkings(data):
        assert read(chunks, encoding=encoding, errors="replace") == "a\ufffdb"


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf16_and_utf32_without_a_mark_are_refused(encoding, errors):
    """Their byte order is unknown."""
    data = "some text".encode(encoding + "-le")
    for size in (1, 3, 100):
        message = refusal(cut(data, [size]), encoding=encoding, errors=errors)
        assert f"not {encoding}" in message
        assert "--encoding" in message


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("ascii", b"ab\xff"),
        ("cp1252", b"ab\x81"),
        ("utf-16", b"\xff\xfea\0b"),
        ("utf-32", b"\xff\xff\xff\xff"),
        ("utf-7", b"ab\xff"),
        ("gb18030", b"ab\x81"),
        ("shift_jis", b"ab\x81"),
        ("euc_jp", b"ab\xff"),
    ],
)
def test_invalid_bytes_in_other_encodings_are_refused(encoding, data):
    """The message names the file and what to do."""
    for chunks in all_chunkings(data):
        message = refusal(chunks, encoding=encoding)
        assert "--encoding" in message
        assert "--errors replace" in message


UNUSABLE = [
    "no-such",
    "unicode_escape",
    "rot13",
    "base64",
    "hex",
    "zlib",
    "",
    " ",
    "undefined",
    "punycode",
    "idna",
    "ut\0f",
    "é",
    "\udc80",
]


@pytest.mark.parametrize("encoding", UNUSABLE)
@pytest.mark.parametrize("chunks", [[b"text"], []])
def test_an_unusable_encoding_is_a_usage_error(encoding, chunks):
    """Unknown names, and codecs that don't decode bytes to text incrementally."""
    with pytest.raises(UsageError, match="--encoding"):
        list(decode(chunks, NAME, CorpusConfig(encoding=encoding)))


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\rb\r", "a\n\n\nb", "a\u2028b\x0bc\x85", "no newline", "\r", "\n\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_newlines_are_unchanged(text, encoding):
    """Carriage returns and Unicode's other line ends are ordinary characters, however the bytes are cut."""
    data = text.encode(encoding)
    for size in range(1, len(data) + 1):
        assert read(cut(data, [size]), encoding=encoding) == text


@pytest.mark.parametrize("config", [CorpusConfig(), CorpusConfig(encoding="latin-1"), CorpusConfig(bytes=True)])
def test_decoding_is_incremental(config):
    """An endless text is read no further than needed."""
    pieces = decode(itertools.repeat(b"abc"), NAME, config)
    assert "".join(itertools.islice(pieces, 4)) == "abc" * 4


def test_an_invalid_unit_without_a_mark_is_refused():
    """The line can't be counted, because the decoder has lost its position."""
    with pytest.raises(InputError, match=r"^f: "):
        list(decode([b"\xfe=\x00\xde=\xd8\x00"], "f", CorpusConfig(encoding="utf-16")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_only_one_mark_is_dropped(encoding):
    """A second one is a character, as in Python's decoders."""
    data = "\ufeff\ufeffa".encode(encoding.removesuffix("-sig"))
    once = data if encoding not in ("utf-16", "utf-32") else "\ufeffa".encode(encoding)
    assert "".join(decode([once], "f", CorpusConfig(encoding=encoding))) == "\ufeffa"


def test_utf16_read_as_latin1_is_binary():
    """It contains NULs."""
    with pytest.raises(InputError, match="binary"):
        list(decode(["ab".encode("utf-16")], "f", CorpusConfig(encoding="latin-1")))
