"""From bytes to characters: the same text however the bytes are cut, every refusal with its place."""

import codecs
import itertools
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from charrnn.config import CorpusConfig
from charrnn.data.decoding import decode
from charrnn.data.sources import WIDE_MARKS
from charrnn.errors import InputError, UsageError

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
    """Cut bytes into chunks of these lengths, over and over, the first one not shorter than asked; none is empty."""
    chunks, start = [], 0
    for index, size in enumerate(itertools.cycle(sizes)):
        if start >= len(data):
            return chunks
        stop = start + (max(size, first) if index == 0 else size)
        chunks.append(data[start:stop])
        start = stop
    return chunks


def all_chunkings(data):
    """Every way to cut bytes into chunks that aren't empty."""
    for borders in itertools.product([False, True], repeat=max(0, len(data) - 1)):
        places = [0, *(place for place, border in enumerate(borders, 1) if border), len(data)]
        yield [data[start:stop] for start, stop in itertools.pairwise(places) if stop > start]


def read(chunks, **config):
    """Decode chunks with these settings; no piece of the text is empty."""
    pieces = list(decode(chunks, NAME, CorpusConfig(**config)))
    assert all(pieces)
    return "".join(pieces)


def refusal(chunks, **config):
    """What is said of bytes that aren't a text; the name comes first."""
    with pytest.raises(InputError) as caught:
        read(chunks, **config)
    message = str(caught.value)
    assert message.startswith(f"{NAME}: ")
    assert "\n" not in message
    return message


def place_in(message):
    """Offset, byte and line that a refusal tells."""
    found = re.search(r" byte (\d+) \(0x([0-9a-f]{2})\) in line (\d+) ", message)
    assert found, message
    return int(found[1]), int(found[2], 16), int(found[3])


@settings(deadline=None, max_examples=300)
@given(text=TEXT, encoding=st.sampled_from(NARROW + WIDE), sizes=SIZES)
def test_a_text_is_the_same_however_its_bytes_are_cut(text, encoding, sizes):
    """Python's decoding of the whole, in any encoding, also where a border lies inside of a character."""
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
def test_every_border_is_crossed(text, encoding):
    """All ways to cut a few bytes give the one text."""
    data = text.encode(encoding)
    assert len(data) <= 13
    for chunks in all_chunkings(data):
        assert read(chunks, encoding=encoding) == text


@settings(deadline=None)
@given(text=TEXT, sizes=SIZES)
def test_utf8_is_what_is_read_unless_something_else_is_asked(text, sizes):
    """A mark at the start is no part of the text; any later one is a character like others."""
    data = text.encode()
    assert read(cut(data, sizes)) == data.decode().removeprefix("\ufeff")
    assert read(cut(codecs.BOM_UTF8 + data, sizes)) == text


@pytest.mark.parametrize("encoding", NARROW + WIDE)
def test_a_text_of_nothing_is_empty(encoding):
    """No chunks are no characters, and so is a mark alone."""
    assert list(decode([], NAME, CorpusConfig(encoding=encoding))) == []
    mark = "".encode(encoding)
    assert list(decode([mark] if mark else [], NAME, CorpusConfig(encoding=encoding))) == []


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030"]
)
def test_a_byte_order_mark_is_dropped_at_the_start_only(encoding):
    """In any encoding that has one, wherever the bytes are cut."""
    data = b"".join(part.encode(encoding.removesuffix("-sig")) for part in ["\ufeff", "a\ufeffb", "\ufeff"])
    for size in range(1, len(data) + 1):
        assert read(cut(data, [size]), encoding=encoding) == "a\ufeffb\ufeff"


@pytest.mark.parametrize("sizes", [[1], [2], [3], [4], [100]])
def test_marks_behind_the_first_stay(sizes):
    """Two at the start are a mark and a character."""
    assert read(cut(codecs.BOM_UTF8 * 3 + b"a", sizes)) == "\ufeff\ufeffa"


@settings(deadline=None)
@given(text=TEXT, wide=st.sampled_from(WIDE), sizes=SIZES, asked=st.sampled_from(["utf-8", "UTF8", "u8", "utf_8"]))
@example(text="a\ufeff\r\n😀", wide="utf-16-le", sizes=[1], asked="utf-8")
def test_a_wide_encoding_is_recognised_by_its_mark(text, wide, sizes, asked):
    """UTF-16 and UTF-32 in either order of bytes are read though UTF-8 is asked for; their mark is dropped."""
    assume(not text.startswith("\ufeff"))
    data = text.encode(wide) if wide in ("utf-16", "utf-32") else ("\ufeff" + text).encode(wide)
    assert read(cut(data, sizes, first=4), encoding=asked) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "utf-16-be"])
def test_a_mark_decides_nothing_where_another_encoding_is_asked_for(encoding):
    """What the user names is what is read."""
    data = b"\xff\xfea\xe9" if encoding != "gb18030" else b"\x81\x40\xfe\x50"
    assert read([data], encoding=encoding) == data.decode(encoding)


@settings(deadline=None, max_examples=300)
@given(before=TEXT, torn=st.one_of(st.just(""), SEVERAL_BYTES), after=TEXT, sizes=SIZES, data=st.data())
def test_a_bad_byte_is_found_exactly(before, torn, after, sizes, data):
    """A byte inserted anywhere in valid UTF-8 is refused at the offset of Python's own decoder, in its line."""
    good, start = (before + torn + after).encode(), len(before.encode())
    place = data.draw(st.integers(start, start + len(torn.encode())))
    damaged = good[:place] + bytes([data.draw(st.integers(0x80, 0xFF))]) + good[place:]
    assume(not damaged.startswith(MARKS))
    with pytest.raises(UnicodeDecodeError) as expected:
        damaged.decode()
    offset = expected.value.start
    message = refusal(cut(damaged, sizes))
    assert place_in(message) == (offset, damaged[offset], damaged[:offset].count(b"\n") + 1)
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
def test_the_place_does_not_depend_on_the_borders(data, encoding, offset, line):
    """Every way to cut the bytes tells the same offset, byte and line; a mark counts, as it does in the file."""
    for chunks in all_chunkings(data):
        assert place_in(refusal(chunks, encoding=encoding)) == (offset, data[offset], line)


def first_wrong(data, encoding):
    """Where Python's decoder of the whole finds a wrong byte, if it does."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return None


@settings(deadline=None, max_examples=300)
@given(
    text=TEXT,
    encoding=st.sampled_from(["ascii", "cp1252", "shift_jis", "gb18030", "euc_kr", "big5", "utf-16-le", "utf-32-le"]),
    sizes=SIZES,
    data=st.data(),
)
def test_the_place_is_told_in_other_encodings_too(text, encoding, sizes, data):
    """Whatever Python's decoder of the whole refuses is refused at its offset, and nothing else is."""
    good = text.encode(encoding, "ignore")
    place = data.draw(st.integers(0, len(good)))
    damaged = good[:place] + bytes([data.draw(st.integers(1, 0xFF))]) + good[place + data.draw(st.integers(0, 1)) :]
    assume(not damaged.startswith(MARKS))
    assume(b"\0" not in damaged or encoding in WIDE)
    offset, expected = first_wrong(damaged, encoding), damaged.decode(encoding, "ignore").removeprefix("\ufeff")
    if offset is None:
        assert read(cut(damaged, sizes), encoding=encoding) == expected
        return
    message = refusal(cut(damaged, sizes), encoding=encoding)
    line = damaged[:offset].decode(encoding).count("\n") + 1
    assert place_in(message) == (offset, damaged[offset], line)
    assert f"is not {codecs.lookup(encoding).name};" in message


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(("encoding", "unit"), [("utf-16", 2), ("utf-32", 4)])
def test_the_place_in_a_wide_text_counts_its_mark(encoding, unit, size):
    """Half a character behind two lines is refused where it stands in the file."""
    data = "\ufeffa\nb\n".encode(encoding + "-le") + b"\0\xd8" + bytes(unit - 2) + "c".encode(encoding + "-le")
    place = 5 * unit
    assert place_in(refusal(cut(data, [size], first=4))) == (place, 0, 3)
    assert place_in(refusal(cut(data, [size]), encoding=encoding)) == (place, 0, 3)


@pytest.mark.parametrize(
    "bad", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"], ids=["overlong", "surrogate", "big", "cut"]
)
def test_utf8_is_strict(bad):
    """Overlong forms, surrogates, code points past the last and cut characters are refused, however they are cut."""
    for chunks in all_chunkings(b"abc" + bad):
        assert place_in(refusal(chunks)) == (3, bad[0], 1)


@settings(deadline=None, max_examples=300)
@given(data=st.binary().filter(lambda data: b"\0" not in data), sizes=SIZES, torn=SEVERAL_BYTES, keep=st.integers(1, 3))
def test_replacing_gives_what_python_gives(data, sizes, torn, keep):
    """Each wrong byte of UTF-8 becomes the characters that decoding the whole makes of it."""
    data += torn.encode()[:keep] + data
    assume(not data.startswith(MARKS))
    assert read(cut(data, sizes), errors="replace") == data.decode("utf-8", "replace").removeprefix("\ufeff")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis", "gb18030", "utf-16-le", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_replacing_works_in_other_encodings(encoding, size):
    """What can't be decoded becomes U+FFFD, the rest of the text is as it was."""
    bad = {"utf-16-le": b"\0\xdc", "utf-32-be": b"\0\x11\0\0", "cp1252": b"\x81"}.get(encoding, b"\xff")
    data = "ab\n".encode(encoding) + bad + "c\nd".encode(encoding.removesuffix("-sig"))
    assert read(cut(data, [size]), encoding=encoding, errors="replace") == "ab\n\ufffdc\nd"


@settings(deadline=None)
@given(data=st.binary(), sizes=SIZES, errors=st.sampled_from(["strict", "replace"]))
@example(data=bytes(range(256)), sizes=[1], errors="strict")
@example(data=b"\xff\xfe\0\0\xef\xbb\xbf\x1f\x8b", sizes=[3], errors="replace")
def test_bytes_can_be_spelled_and_got_back(data, sizes, errors):
    """Any bytes, marks and NULs among them, are one character each, ASCII as it is."""
    text = read(cut(data, sizes), bytes=True, errors=errors)
    assert text.encode("ascii", "surrogateescape") == data
    assert len(text) == len(data)
    assert [char for char in text if char < "\x80"] == [chr(byte) for byte in data if byte < 0x80]


def test_bytes_need_no_encoding():
    """Where bytes are asked for, no encoding is looked up."""
    assert read([b"a\xff"], bytes=True, encoding="no-such") == "a\udcff"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "shift_jis"])
@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"ab\0cd", b"\0", b"\xef\xbb\xbfab\0", b"a" * 8000 + b"\0"])
def test_a_binary_file_is_refused(content, encoding):
    """A NUL near the start of what should be bytes of text gives it away; its place is told, and how to read it."""
    for errors in ("strict", "replace"):
        message = refusal([content, b"more"], encoding=encoding, errors=errors)
        assert "a binary file" in message
        assert f"byte {content.index(0)})" in message
        assert "--bytes" in message


@pytest.mark.parametrize("chunks", [[b"a" * 8192 + b"\0"], [b"a" * 8192, b"\0"]])
def test_a_nul_far_into_a_text_is_a_character(chunks):
    """Only the beginning is looked at."""
    assert read(chunks) == "a" * 8192 + "\0"


@pytest.mark.parametrize(
    ("encoding", "data", "half"),
    [
        ("raw_unicode_escape", b"a\nb\\udc00c", "U+DC00"),
        ("utf-7", b"a\nb+2AA-c", "U+D800"),
    ],
)
def test_half_a_character_is_refused(encoding, data, half):
    """Some codecs let lone surrogates through, which no model file could hold; the line is told."""
    for size in range(1, len(data) + 1):
        message = refusal(cut(data, [size]), encoding=encoding)
        assert f"({half}) in line 2;" in message
        assert "--encoding" in message


def test_half_a_character_in_a_wide_text_is_refused():
    """Where Python's codec minds, its offset is told."""
    for chunks in all_chunkings(b"a\0\n\0\0\xd8a\0"):
        assert place_in(refusal(chunks, encoding="utf-16-le")) == (4, 0, 2)


@pytest.mark.parametrize(("encoding", "data"), [("raw_unicode_escape", b"a\\ud83db"), ("utf-7", b"a+2AA-b")])
def test_half_a_character_can_be_replaced(encoding, data):
    """As a wrong byte can."""
    for chunks in all_chunkings(data):
        assert read(chunks, encoding=encoding, errors="replace") == "a\ufffdb"


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_wide_text_without_a_mark_is_refused(encoding, errors):
    """Its order of bytes isn't known; the error says so."""
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
def test_bytes_outside_another_encoding_are_refused(encoding, data):
    """Any codec's complaint names the file and what can be done."""
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
def test_an_encoding_must_be_one_of_texts(encoding, chunks):
    """Unknown names and codecs that don't make text of bytes, piece by piece, are usage errors that name the flag."""
    with pytest.raises(UsageError, match="--encoding"):
        list(decode(chunks, NAME, CorpusConfig(encoding=encoding)))


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\rb\r", "a\n\n\nb", "a\u2028b\x0bc\x85", "no newline", "\r", "\n\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_newlines_stay_as_they_are(text, encoding):
    """Carriage returns and the odd line ends of Unicode are characters like any other, wherever the bytes are cut."""
    data = text.encode(encoding)
    for size in range(1, len(data) + 1):
        assert read(cut(data, [size]), encoding=encoding) == text


@pytest.mark.parametrize("config", [CorpusConfig(), CorpusConfig(encoding="latin-1"), CorpusConfig(bytes=True)])
def test_a_text_is_decoded_as_it_comes(config):
    """One without end is read no further than needed."""
    pieces = decode(itertools.repeat(b"abc"), NAME, config)
    assert "".join(itertools.islice(pieces, 4)) == "abc" * 4


def test_a_wrong_unit_without_a_mark_is_refused():
    """The line can't be counted where the decoder has lost its way, but the place is told."""
    with pytest.raises(InputError, match=r"^f: "):
        list(decode([b"\xfe=\x00\xde=\xd8\x00"], "f", CorpusConfig(encoding="utf-16")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_only_one_mark_is_dropped(encoding):
    """A second one is a character, as Python's decoders have it."""
    data = "\ufeff\ufeffa".encode(encoding.removesuffix("-sig"))
    once = data if encoding not in ("utf-16", "utf-32") else "\ufeffa".encode(encoding)
    assert "".join(decode([once], "f", CorpusConfig(encoding=encoding))) == "\ufeffa"


def test_a_mark_is_no_text_in_an_encoding_of_bytes():
    """UTF-16 read as latin-1 has NULs, and is refused for them."""
    with pytest.raises(InputError, match="binary"):
        list(decode(["ab".encode("utf-16")], "f", CorpusConfig(encoding="latin-1")))
