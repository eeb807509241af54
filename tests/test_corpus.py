"""From files to ids: every byte accounted for, every refusal with its place."""

import codecs
import hashlib
import io
import math
import os
import types

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from charrnn.config import MAX_VALID_CHARS, MIN_CHARS, CorpusConfig
from charrnn.corpus import Text, build_corpus, read_texts, split
from charrnn.errors import InputError, UsageError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SEVERAL_BYTES = st.characters(min_codepoint=0x80, exclude_categories=["Cs"])


def write(folder, name, content):
    """Write a file, folders above it included, and return its path as an argument."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(*names, **config):
    """Read texts as the command line does, with these settings."""
    return read_texts(names, CorpusConfig(**config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("texts")


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_files_are_joined_in_the_order_named(folder, texts):
    """Byte for byte, with nothing between them, whatever newlines they end with."""
    texts = [text.removeprefix("\ufeff") for text in texts]
    assume(any(texts))
    names = [write(folder, f"{len(texts) - index}.txt", text) for index, text in enumerate(texts)]
    found = read(*names)
    assert found.text == "".join(texts)
    assert found.sha256 == hashlib.sha256("".join(texts).encode()).hexdigest()
    assert found.names == tuple(names)


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\rb\r", "a\n\n\nb", "a\u2028b\x0bc\x85", "no newline"])
def test_newlines_stay_as_they_are(tmp_path, text):
    """Carriage returns and the odd line ends of Unicode are characters like any other."""
    assert read(write(tmp_path, "a.txt", text)).text == text


def test_the_same_file_twice_counts_twice(tmp_path):
    """A name given again is read again."""
    name = write(tmp_path, "a.txt", "ab")
    assert read(name, name).text == "abab"


def test_names_are_made_absolute(tmp_path, monkeypatch):
    """So that the text is found again from another folder."""
    name = write(tmp_path, "a.txt", "ab")
    monkeypatch.chdir(tmp_path)
    assert read("a.txt").names == (name,)


def test_a_byte_order_mark_is_dropped(tmp_path):
    """From each file, but only at its start; the hash is over the bytes as they are."""
    one, two = b"\xef\xbb\xbfone", b"\xef\xbb\xbftwo\xef\xbb\xbf"
    found = read(write(tmp_path, "a", one), write(tmp_path, "b", two))
    assert found.text == "onetwo\ufeff"
    assert found.sha256 == hashlib.sha256(one + two).hexdigest()


@settings(deadline=None)
@given(before=TEXT, torn=st.one_of(st.just(""), SEVERAL_BYTES), after=TEXT, data=st.data())
def test_a_bad_byte_is_found_exactly(folder, before, torn, after, data):
    """A byte inserted anywhere in valid UTF-8 is refused at the offset of Python's own decoder."""
    good = (before + torn + after).encode()
    assume(not good.startswith(codecs.BOM_UTF8))
    start = len(before.encode())
    place = data.draw(st.integers(start, start + len(torn.encode())))
    damaged = good[:place] + bytes([data.draw(st.integers(0x80, 0xFF))]) + good[place:]
    with pytest.raises(UnicodeDecodeError) as expected:
        damaged.decode("utf-8")
    offset = expected.value.start
    name = write(folder, "damaged.txt", damaged)
    with pytest.raises(InputError) as caught:
        read(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert f" byte {offset} (0x{damaged[offset]:02x})" in message
    assert "--encoding" in message


def test_the_offset_is_that_of_the_file_it_is_in(tmp_path):
    """Characters of several bytes and files before it don't shift the place."""
    good, bad = write(tmp_path, "good.txt", "é" * 100), write(tmp_path, "bad.txt", "é€".encode() + b"\xe9t")
    with pytest.raises(InputError) as caught:
        read(good, bad)
    assert str(caught.value).startswith(f"{bad}: byte 5 (0xe9)")


@pytest.mark.parametrize(("bad", "words"), [(b"\xe9t", "byte 5 (0xe9)"), (b"\0", "byte 5")])
def test_the_offset_counts_the_byte_order_mark(tmp_path, bad, words):
    """An offset is one in the file, which begins with the mark that the text doesn't have."""
    name = write(tmp_path, "a.txt", codecs.BOM_UTF8 + b"ab" + bad)
    with pytest.raises(InputError) as caught:
        read(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "bad", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"], ids=["overlong", "surrogate", "big", "cut"]
)
def test_utf8_is_strict(tmp_path, bad):
    """Overlong forms, surrogates, code points past the last and cut characters are refused."""
    with pytest.raises(InputError, match=r"byte 3 "):
        read(write(tmp_path, "a.txt", b"abc" + bad))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "iso8859-15", "utf-16", "utf-32", "utf-16-be", "utf-8-sig"])
def test_other_encodings_are_read_when_named(tmp_path, encoding):
    """The text is the same in any encoding, marks aside; the hash is over the bytes."""
    text = "Grüße, naïve Café-Gäste\r\n" * 5
    name = write(tmp_path, "a.txt", text.encode(encoding))
    found = read(name, encoding=encoding)
    assert found.text == text
    assert found.sha256 == hashlib.sha256(text.encode(encoding)).hexdigest()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_wide_encoding_is_recognised_and_its_flag_named(tmp_path, encoding):
    """The error ends with the option that reads the file."""
    name = write(tmp_path, "a.txt", "some text".encode(encoding))
    with pytest.raises(InputError, match=f"--encoding {encoding}$"):
        read(name)
    assert read(name, encoding=encoding).text == "some text"


@pytest.mark.parametrize("encoding", ["no-such", "rot13", "base64", "", "ut\0f", "undefined"])
def test_an_encoding_must_be_one_of_texts(tmp_path, encoding):
    """Unknown names and codecs that don't make text of bytes are usage errors that name the flag."""
    with pytest.raises(UsageError, match="--encoding"):
        read(write(tmp_path, "a.txt", "text"), encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("ascii", b"ab\xff"),
        ("cp1252", b"ab\x81"),
        ("utf-16", b"abc"),
        ("utf-32", b"\xff\xff\xff\xff"),
        ("utf-7", b"ab\xff"),
        ("gb18030", b"ab\x81"),
        ("punycode", b"ab-\xff"),
        ("idna", b"xn--a-"),
    ],
)
def test_bytes_outside_another_encoding_are_refused(tmp_path, encoding, data):
    """Any codec's complaint becomes an InputError that names the file."""
    name = write(tmp_path, "a.txt", data)
    with pytest.raises(InputError) as caught:
        read(name, encoding=encoding)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("encoding", "data"), [("unicode_escape", b"a\\ud83d\\ude00"), ("utf-7", b"a+2AA-b"), ("utf-16-le", b"\0\xd8a\0")]
)
def test_half_a_character_is_refused(tmp_path, encoding, data):
    """Some codecs let lone surrogates through, which no model file and no output could hold."""
    name = write(tmp_path, "a.txt", data)
    with pytest.raises(InputError) as caught:
        read(name, encoding=encoding)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"ab\0cd", b"a" * 8000 + b"\0"])
def test_a_binary_file_is_refused(tmp_path, content, encoding):
    """A NUL near the start of what should be bytes of text gives it away, and its place is told."""
    name = write(tmp_path, "a.out", content)
    with pytest.raises(InputError) as caught:
        read(name, encoding=encoding)
    assert str(caught.value).startswith(f"{name}: a binary file")
    assert f"byte {content.index(0)})" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """The error says what can be named instead."""
    name = str(tmp_path / "gone.txt")
    with pytest.raises(InputError) as caught:
        read(name)
    assert str(caught.value).startswith(f"{name}: no such file")


@pytest.mark.parametrize("contents", [[""], ["", ""], ["\ufeff"]])
def test_an_empty_text_is_refused(tmp_path, contents):
    """No characters at all are nothing to learn from."""
    names = [write(tmp_path, f"{index}.txt", content) for index, content in enumerate(contents)]
    with pytest.raises(InputError, match="empty"):
        read(*names)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    """Sorted, at any depth; hidden files, files in hidden folders and binary ones are passed over."""
    place = tmp_path / ".hidden-above"  # only what is hidden inside the folder counts
    expected = [write(place, name, name + "\n") for name in ("B.txt", "a.md", "b/one", "b/two/x", "c")]
    for name in (".x", ".git/config", "b/.cache/y", "b/.z"):
        write(place, name, "hidden")
    write(place, "b/picture.png", b"\x89PNG\0")
    found = read(str(place))
    assert found.text == "B.txt\na.md\nb/one\nb/two/x\nc\n"
    assert found.names == tuple(expected)


def test_a_folder_stands_where_it_is_named(tmp_path):
    """Folders and files mix, in the order of the command line."""
    first, last = write(tmp_path, "z.txt", "z"), write(tmp_path, "a.txt", "a")
    write(tmp_path, "middle/m", "m")
    assert read(first, str(tmp_path / "middle"), last).text == "zma"


def test_wide_text_in_a_folder_is_not_binary(tmp_path):
    """It has NULs but says by its mark what it is, so it isn't dropped in silence."""
    write(tmp_path, "a.txt", "text".encode("utf-16"))
    assert read(str(tmp_path), encoding="utf-16").text == "text"
    with pytest.raises(InputError, match=r"--encoding utf-16"):
        read(str(tmp_path))


@pytest.mark.parametrize("names", [[], [".hidden"], ["picture.png"]])
def test_a_folder_without_texts_is_refused(tmp_path, names):
    """It is named, so that a mistyped path is noticed."""
    for name in names:
        write(tmp_path, name, b"\0")
    with pytest.raises(InputError) as caught:
        read(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ")


def feed_stdin(monkeypatch, data):
    """Put bytes on stdin."""
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_stdin_is_read_where_it_is_named(tmp_path, monkeypatch):
    """Its bytes are treated as a file's are."""
    name = write(tmp_path, "a.txt", "file\n")
    feed_stdin(monkeypatch, codecs.BOM_UTF8 + "pipé\r\n".encode())
    found = read(name, "-", name)
    assert found.text == "file\npipé\r\nfile\n"
    assert found.names == (name, "-", name)
    assert found.sha256 == hashlib.sha256(b"file\n" + codecs.BOM_UTF8 + "pipé\r\nfile\n".encode()).hexdigest()


def test_stdin_is_not_read_unless_named(tmp_path, monkeypatch):
    """A program in a pipe must not wait for what it doesn't need."""
    monkeypatch.setattr("sys.stdin", None)
    assert read(write(tmp_path, "a.txt", "file")).text == "file"


@pytest.mark.parametrize(("data", "words"), [(b"ab\xff", "byte 2 "), (b"\0", "binary"), (b"", "empty")])
def test_errors_on_stdin_name_it(monkeypatch, data, words):
    """The file's name in an error is then a dash."""
    feed_stdin(monkeypatch, data)
    with pytest.raises(InputError, match=words) as caught:
        read("-")
    assert str(caught.value).startswith("-: ")


def test_stdin_can_be_named_once(monkeypatch):
    """The second reading would be of nothing."""
    feed_stdin(monkeypatch, b"text")
    with pytest.raises(UsageError, match="stdin"):
        read("-", "-")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission_is_named(tmp_path):
    """The system's own words follow the name."""
    name = write(tmp_path, "a.txt", "text")
    os.chmod(name, 0)
    with pytest.raises(InputError) as caught:
        read(name)
    assert str(caught.value).startswith(f"{name}: ")


def make_corpus(text, **config):
    """Build a corpus of a text that needs no file."""
    return build_corpus(Text(("made.txt",), text, "0" * 64), CorpusConfig(**config))


def test_every_size_is_split_in_two():
    """Training and held-out characters are the text in order; neither is empty; a tenth at most is held out."""
    for size in range(MIN_CHARS, 2001):
        text = "".join(chr(97 + place % 17) for place in range(size))
        corpus = make_corpus(text)
        train, valid = corpus.vocab.decode(corpus.train_ids), corpus.vocab.decode(corpus.valid_ids)
        assert train + valid == text
        assert len(train) == corpus.num_train
        assert 1 <= len(valid) <= math.ceil(size / 10), size
        assert len(valid) >= size // 10, size


def test_the_standard_small_corpus_is_split_as_elsewhere():
    """1,115,394 characters give 1,003,854 and 111,540, the figures others publish for that text."""
    assert split(1_115_394, CorpusConfig()) == (1_003_854, 111_540)
    assert 1_115_394 - 1_003_854 == 111_540


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.25])
@pytest.mark.parametrize("size", [10**6, 4 * 10**6, 20 * 10**6 - 1, 20 * 10**6 + 1, 10**9, 10**12])
def test_no_more_than_two_million_are_held_out(size, fraction):
    """A share of a huge text says nothing new and takes minutes to score."""
    num_train, held = split(size, CorpusConfig(valid_fraction=fraction))
    assert num_train + held == size
    assert MAX_VALID_CHARS == 2_000_000
    assert abs(held - min(size * fraction, 2_000_000)) <= 1


@pytest.mark.parametrize("fraction", [1e-6, 0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("size", [20, 21, 33, 1000, 12345])
def test_the_share_that_is_held_out_is_the_one_asked_for(size, fraction):
    """To within a character, and at least one."""
    num_train, held = split(size, CorpusConfig(valid_fraction=fraction))
    assert num_train + held == size
    assert 1 <= held < size
    assert abs(held - size * fraction) <= 1


@pytest.mark.parametrize("size", [20, 1000, 10**8])
@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.0), (0.1, 0.1), (0.5, 0.4), (1e-6, 0.05)])
def test_a_test_text_lies_behind_the_held_out_one(size, valid, test):
    """The three parts are the whole text, each as large as asked for to within a character; none overlap."""
    num_train, num_valid = split(size, CorpusConfig(valid_fraction=valid, test_fraction=test))
    num_test = size - num_train - num_valid
    assert num_train >= 1
    assert num_valid >= 1
    assert num_test == min(int(size * test), MAX_VALID_CHARS)
    assert abs(num_valid - max(1, min(size * valid, MAX_VALID_CHARS))) <= 1
    if size == 1000:
        corpus = make_corpus(
            "".join(chr(97 + place % 17) for place in range(size)), valid_fraction=valid, test_fraction=test
        )
        assert len(corpus.test_ids) == num_test
        parts = [corpus.train_ids, corpus.valid_ids, corpus.test_ids]
        assert [char for part in parts for char in part.tolist()] == corpus.ids.tolist()


@pytest.mark.parametrize("size", range(MIN_CHARS))
def test_a_text_too_short_to_split_is_refused(size):
    """The error says how long it is and how long it has to be."""
    with pytest.raises(InputError) as caught:
        make_corpus("a" * size)
    assert str(caught.value).startswith(f"made.txt: {size} ")
    assert f"at least {MIN_CHARS} " in str(caught.value)


def test_a_corpus_remembers_its_text():
    """Ids, vocabulary, names and hash all are those of the whole text."""
    text = "to be or not to be that is"
    corpus = make_corpus(text)
    assert corpus.vocab.chars == "".join(sorted(set(text)))
    assert corpus.vocab.decode(corpus.ids) == text
    assert corpus.ids.dtype == corpus.vocab.dtype
    assert (corpus.names, corpus.sha256) == (("made.txt",), "0" * 64)


def test_one_character_over_and_over_is_a_text():
    """A vocabulary of one is legal."""
    corpus = make_corpus("a" * 20)
    assert (len(corpus.vocab), corpus.num_train, len(corpus.valid_ids)) == (1, 18, 2)


def test_a_folder_is_read_without_what_training_wrote_into_it(tmp_path):
    """`charrnn train .` finds the same text the second time."""
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    before = read_texts([str(tmp_path)], CorpusConfig())
    (tmp_path / "checkpoints" / "a").mkdir(parents=True)
    (tmp_path / "checkpoints" / "a" / "log.jsonl").write_text("{}", encoding="utf-8")
    assert read_texts([str(tmp_path)], CorpusConfig()) == before
