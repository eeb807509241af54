"""From texts to ids: every character accounted for, read again only when need be, never mixed up."""

import gzip
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import re
import shutil
import sysconfig
import threading
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from charrnn.config import MAX_VALID_CHARS, MIN_CHARS, CorpusConfig, SourceConfig
from charrnn.data import texts as texts_module
from charrnn.data.cache import Cache
from charrnn.data.corpus import find_corpus, load_corpus
from charrnn.data.splitting import split
from charrnn.data.texts import encode_text, read_prompt
from charrnn.data.vocab import Vocab, count_unknown
from charrnn.errors import CharrnnError, InputError, UsageError
from charrnn.text import sources
from charrnn.text.characters import END, UNKNOWN
from charrnn.text.folders import find_sources
from tests.conftest import make_text

CHARS = st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])
TEXT = st.text(CHARS, min_size=MIN_CHARS, max_size=200)
FEW = st.text(st.sampled_from("ab\n\r éz€😀"), min_size=MIN_CHARS, max_size=200)
DOCUMENTS = st.text(st.sampled_from("ab\n\n\n \t\r|"), max_size=200)  # and their separators


def write(folder, name, content):
    """Write a file, creating folders above it, and return its path as an argument."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(*names, cache, **config):
    """Load texts as the command line does, with these settings."""
    return load_corpus(names, CorpusConfig(**config), SourceConfig(), cache)


def decoded(corpus):
    """Return a whole corpus as text."""
    return corpus.vocab.decode(corpus.ids)


def parts(corpus):
    """Return the training, held-out and test text."""
    return [corpus.vocab.decode(ids) for ids in (corpus.train_ids, corpus.valid_ids, corpus.test_ids)]


def joined(texts):
    """Join texts, with a newline after each that ends without one, but for the last."""
    whole = ""
    for text in filter(None, texts):
        whole += ("\n" if whole and whole[-1] not in "\r\n" else "") + text
    return whole


def naive_documents(text, kind):
    """Split a text into documents by the definition of their kind."""
    if kind == "blank-lines":  # the beginning and the end of a text count as blank lines
        end = r"(?:\r\n|\r(?!\n)|(?<!\r)\n)"
        pieces = re.split(rf"{end}(?:[ \t]*{end})+", re.sub(r"[\r\n][ \t\r\n]*\Z", "", "\n\n" + text))
    else:
        pieces = re.split("[\r\n]", text) if kind == "lines" else text.split(kind)
    return [piece for piece in pieces if piece]


def nearest(starts, position):
    """Return the start nearest to a position, the later one of two."""
    return min(starts, key=lambda start: (abs(start - position), -start))


def refuse(*args, **kwargs):
    """Fail; replaces functions that must not be called."""
    raise AssertionError("must not be called")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Share one folder for the texts of all examples of a property."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Share one cache between all examples of a property."""
    return Cache(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def settled(monkeypatch):
    """Treat all files as old enough that an edit would change their times."""
    monkeypatch.setattr(texts_module, "_SETTLED", -1e9)


@settings(max_examples=25)
@given(texts=st.lists(st.text(CHARS), max_size=3).flatmap(lambda short: TEXT.map(lambda text: [*short, text])))
@example(texts=["a\r\nb\r\n" * 5, "a\rb\r" * 5, "a\n\n\nb", "a\u2028b\x0bc\x85", "no newline"])
def test_files_are_joined_in_the_order_given(folder, shared, texts):
    """Each on a new line, otherwise byte for byte, whatever their line ends; the hash is that of the bytes."""
    names = [write(folder, f"{len(texts) - index}.txt", text) for index, text in enumerate(texts)]
    corpus, text = load(*names, cache=shared), joined(texts)
    assert decoded(corpus) == text
    assert corpus.vocab.chars == "".join(sorted(set(text)))
    assert corpus.ids.dtype == corpus.vocab.dtype
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.names == tuple(names)
    assert not corpus.has_valid_file


@settings(max_examples=20)
@given(texts=st.lists(FEW, min_size=1, max_size=3), chunk=st.integers(2, 50), kind=st.sampled_from(["", "lines", "ab"]))
def test_result_does_not_depend_on_the_size_of_chunks(folder, tmp_path_factory, texts, chunk, kind):
    """The ids are the same even if characters or separators are split."""
    names = [write(folder, f"{index}.txt", text) for index, text in enumerate(texts)]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for size in (sources.CHUNK, chunk):
            patch.setattr(sources, "CHUNK", size)
            cache = Cache(tmp_path_factory.mktemp("cache"))
            try:
                corpus = load(*names, cache=cache, documents=kind)
                found.append((decoded(corpus), corpus.num_train, corpus.num_valid, corpus.sha256, corpus.key))
            except InputError as error:
                found.append(str(error))
    assert found[0] == found[1]


@pytest.mark.parametrize(("num_distinct", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_ids_are_small_mapped_and_read_only(tmp_path, cache, num_distinct, dtype):
    """They have the smallest dtype; all parts are mapped from the cache and can't be changed."""
    text = "".join(map(chr, range(0x100, 0x100 + num_distinct))) * 10
    corpus = load(write(tmp_path, "a", text), cache=cache, test_fraction=0.1)
    for ids in (corpus.ids, corpus.train_ids, corpus.valid_ids, corpus.test_ids):
        assert ids.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            ids[0] = 0
        base = ids
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)


def test_a_vocabulary_may_need_four_bytes_per_id(tmp_path, cache):
    """All of Unicode's first plane, and a sample of the others up to the last character."""
    text = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x1000F, 0x110000, 16)]))
    corpus = load(write(tmp_path, "a", text), cache=cache)
    assert corpus.ids.dtype == np.uint32
    assert decoded(corpus) == corpus.vocab.chars == text.replace("\ufeff", "")


def test_a_byte_order_mark_is_dropped(tmp_path, cache):
    """At the start of each file; the hash is that of the original bytes."""
    one, two = b"\xef\xbb\xbfone" + b"\n" * 20, b"\xef\xbb\xbftwo"
    corpus = load(write(tmp_path, "a", one), write(tmp_path, "b", two), cache=cache)
    assert decoded(corpus) == "one" + "\n" * 20 + "two"
    assert corpus.sha256 == hashlib.sha256(one + two).hexdigest()


def test_a_file_named_twice_is_read_twice(tmp_path, cache):
    """A note says so."""
    text = make_text(100)
    name = write(tmp_path, "a.txt", text)
    corpus = load(name, name, cache=cache)
    assert decoded(corpus) == joined([text, text])
    assert any("twice" in note for note in corpus.notes)


def test_names_are_absolute_paths(tmp_path, monkeypatch, cache):
    """The text can be found again from another folder."""
    name = write(tmp_path, "a.txt", make_text(100))
    monkeypatch.chdir(tmp_path)
    assert load("a.txt", cache=cache).names == (name,)


def test_a_folder_of_source_files_is_read_in_the_order_of_its_names_hashes(tmp_path, cache):
    """Files of the standard library. Beside a text that is held out, they are in the order of their names."""
    (tmp_path / "library").mkdir()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:30]:
        shutil.copy(path, tmp_path / "library")
    paths = sorted((tmp_path / "library").iterdir())
    assert len(paths) == 30
    write(tmp_path, "valid.txt", make_text(100))
    corpus = load(str(tmp_path / "library"), cache=cache, valid=str(tmp_path / "valid.txt"))
    assert corpus.names == tuple(map(str, paths))
    paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
    corpus = load(str(tmp_path / "library"), cache=cache)
    assert decoded(corpus) == b"".join(path.read_bytes() for path in paths).decode()
    assert corpus.names == tuple(map(str, paths))


def test_a_folders_checkpoints_are_not_read(tmp_path, cache):
    """`charrnn train .` finds the same text, and the same cache entry, the second time."""
    write(tmp_path, "texts/a.txt", make_text(100))
    before = load(str(tmp_path / "texts"), cache=cache)
    write(tmp_path, "texts/checkpoints/a/log.jsonl", "{}")
    after = load(str(tmp_path / "texts"), cache=cache)
    assert (after.key, decoded(after), after.names) == (before.key, decoded(before), before.names)


def test_records_that_are_read_as_plain_text_are_noted(tmp_path, cache):
    """Unless the user says what the documents are."""
    names = [write(tmp_path, name, "name,year\nAnna,1990\n" * 40) for name in ("names.csv", "a.txt", "more.csv")]
    note = "names.csv is read as plain text; --column NAME reads one column of the records"
    assert any(found.endswith(note) for found in load(*names[:2], cache=cache).notes)
    assert any("more.csv are read as plain text" in found for found in load(*names, cache=cache).notes)
    for options in ({"column": "name"}, {"documents": "lines"}):
        assert not any("plain text" in found for found in load(names[0], cache=cache, **options).notes)


@pytest.mark.parametrize("valid", [None, "held.txt"])
def test_files_do_not_run_into_one_another(tmp_path, cache, valid):
    """A newline is added and noted where a text ends without one, but not to the last text or the held-out one."""
    texts = {"a": "alpha beta", "b": "gamma\n", "c": "", "d": "delta", "e": "", "f": "epsilon\r", "g": "zeta"}
    names = [write(tmp_path, name, text) for name, text in texts.items()]
    held = valid and write(tmp_path, valid, "held")
    corpus = load(*names, cache=cache, valid=held)
    whole = "alpha beta\ngamma\ndelta\nepsilon\rzeta"
    assert decoded(corpus) == whole + ("held" if valid else "")
    assert "2 texts end without a newline; one was added before the next text" in corpus.notes
    assert load(*names, cache=cache, valid=held).notes == corpus.notes
    joined_before = load(write(tmp_path, "whole", whole), cache=cache, valid=held)
    assert (joined_before.sha256, decoded(joined_before)) == (corpus.sha256, decoded(corpus))
    assert not [note for note in joined_before.notes if "newline" in note]


@pytest.mark.parametrize("config", [{"bytes": True}, {"documents": "lines"}, {"documents": "|"}])
def test_bytes_and_documents_are_not_joined_by_newlines(tmp_path, cache, config):
    """Bytes stay as they are, and a document ends with its file."""
    names = [write(tmp_path, name, text) for name, text in (("a", "alpha beta gamma"), ("b", "delta epsilon"))]
    assert "\n" not in decoded(load(*names, cache=cache, valid_fraction=0.5, **config))


def test_marks_inside_a_text_are_dropped_and_counted(tmp_path, cache):
    """As `cat` leaves them; a text of bytes keeps them."""
    mark, text = "\ufeff", make_text(1200)
    name = write(tmp_path, "a", (mark + text) * 3)
    corpus = load(name, cache=cache)
    assert decoded(corpus) == text * 3
    assert corpus.notes == ("2 byte-order marks inside the text were dropped",)
    assert load(write(tmp_path, "b", mark + text), cache=cache).notes == ()
    assert len(load(name, cache=cache, bytes=True).ids) == 3 * (len(text) + 3)


def feed_stdin(monkeypatch, data):
    """Put bytes on stdin."""
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_stdin_can_be_one_of_several_texts(tmp_path, monkeypatch, cache, settled):
    """It is named by a dash and read twice from a copy, which is removed."""
    name = write(tmp_path, "a.txt", "file\n")
    for _ in range(2):
        feed_stdin(monkeypatch, "pipé\r\n".encode() * 4)
        corpus = load(name, "-", name, cache=cache)
        assert decoded(corpus) == "file\n" + "pipé\r\n" * 4 + "file\n"
        assert corpus.names == (name, "-", name)
        assert corpus.sha256 == hashlib.sha256(b"file\n" + "pipé\r\n".encode() * 4 + b"file\n").hexdigest()
        assert [path.name for path in cache.folder.iterdir()] == [f"{corpus.key}.ids"]
    feed_stdin(monkeypatch, b"pipe\r\n" * 4)
    assert decoded(load(name, "-", name, cache=cache)) == "file\n" + "pipe\r\n" * 4 + "file\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_read_as_a_stream(tmp_path, cache, settled):
    """It can't be found again, so its name is a dash; later content is read again."""
    os.mkfifo(tmp_path / "fifo")
    for text in (make_text(300, seed=1), make_text(300, seed=2)):
        writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=(text,), daemon=True)
        writer.start()
        corpus = load(str(tmp_path / "fifo"), cache=cache)
        writer.join(10)
        assert decoded(corpus) == text
        assert corpus.names == ("-",)
    assert len(cache.entries()) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_one_fifo_can_be_trained_on_and_another_held_out(tmp_path, cache):
    """Both are named by a dash but are different texts."""
    texts = {"one": make_text(300, seed=1), "two": make_text(200, seed=2)}
    for name, text in texts.items():
        os.mkfifo(tmp_path / name)
        threading.Thread(target=(tmp_path / name).write_text, args=(text,), daemon=True).start()
    corpus = load(str(tmp_path / "one"), cache=cache, valid=str(tmp_path / "two"))
    assert parts(corpus) == [texts["one"], texts["two"][1:], ""]


@pytest.mark.parametrize(
    ("content", "config", "words"),
    [
        (b"0123456789" * 3 + b"\xe9", {}, "byte 30 (0xe9)"),
        (b"\0", {}, "binary"),
        (None, {}, "no such file"),
        (b"a" * 30, {"encoding": "no-such"}, "--encoding"),
    ],
    ids=["bad byte", "binary", "missing", "encoding"],
)
def test_an_unreadable_text_is_named(tmp_path, cache, content, config, words):
    """With the problem, whichever text it is; nothing is left in the cache."""
    good = write(tmp_path, "good", make_text(100))
    bad = str(tmp_path / "bad") if content is None else write(tmp_path, "bad", content)
    for names, more in (([bad], {}), ([good, bad], {}), ([good], {"valid": bad})):
        with pytest.raises((InputError, UsageError)) as caught:
            load(*names, cache=cache, **config, **more)
        assert words in str(caught.value)
        assert str(caught.value).startswith((f"{bad}: ", "--encoding "))
    assert list(cache.folder.iterdir()) == []


def test_max_bytes_limits_all_texts_together(tmp_path, cache):
    """Each of the two passes may use the whole limit."""
    names = [write(tmp_path, "a", make_text(100)), write(tmp_path, "b", make_text(50))]
    assert len(load_corpus(names, CorpusConfig(), SourceConfig(max_bytes=150), cache).ids) == 151  # with a newline
    names += [write(tmp_path, "c", "c")]
    with pytest.raises(InputError, match="--max-bytes") as caught:
        load_corpus(names, CorpusConfig(), SourceConfig(max_bytes=150), cache)
    assert str(caught.value).startswith(f"{names[-1]}: ")


def test_max_bytes_limits_a_text_from_the_cache(tmp_path, cache, monkeypatch, settled):
    """By its unpacked size, which the cache knows, without reading the text."""
    name = write(tmp_path, "a", gzip.compress(make_text(1000).encode()))
    load(name, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    assert len(load_corpus([name], CorpusConfig(), SourceConfig(max_bytes=1000), cache).ids) == 1000
    with pytest.raises(InputError, match="more than 999 bytes of text; --max-bytes") as caught:
        load_corpus([name], CorpusConfig(), SourceConfig(max_bytes=999), cache)
    assert str(caught.value).startswith(f"{name}: ")


def test_glob_needs_a_folder(tmp_path, cache):
    """Among the texts, or as the held-out text."""
    name, folder = write(tmp_path, "a", make_text(100)), str(tmp_path / "texts")
    write(tmp_path, "texts/b.txt", make_text(100, seed=1))
    only_texts = SourceConfig(glob="*.txt")
    with pytest.raises(UsageError, match=r"--glob \*.txt"):
        load_corpus([name], CorpusConfig(), only_texts, cache)
    with pytest.raises(UsageError, match=r"--glob \*.txt"):
        load_corpus([name], CorpusConfig(valid=name), only_texts, cache)
    assert len(load_corpus([name, folder], CorpusConfig(), only_texts, cache).ids) == 201
    assert len(load_corpus([name], CorpusConfig(valid=folder), only_texts, cache).ids) == 200


# splitting


def made(size):
    """Return a text of this many characters in which neighbours differ."""
    return "".join(chr(97 + index % 17) for index in range(size))


def test_texts_of_every_size_are_split_in_two(folder, shared):
    """Neither part is empty; at most a tenth is held out. A text that is too short is refused."""
    for size in [0, 1, *range(18, 42), 63, 64, 65, 99, 100, 101, 999, 1000, 1001, 1999, 2000]:
        name = write(folder, "size.txt", made(size))
        if size < MIN_CHARS:
            with pytest.raises(InputError) as caught:
                load(name, cache=shared)
            few = f"too few characters to learn from: {size}; at least {MIN_CHARS} are needed"
            assert str(caught.value) == f"{name}: {few if size else 'the text is empty'}"
            continue
        corpus = load(name, cache=shared)
        train, valid, test = parts(corpus)
        assert (train + valid, test) == (made(size), "")
        assert len(train) == corpus.num_train >= 1
        assert len(valid) == corpus.num_valid
        assert max(1, size // 10) <= len(valid) <= math.ceil(size / 10), size
        assert len(corpus.valid_context) == corpus.num_train
        assert any("rough" in note for note in corpus.notes) == (len(valid) < 100)


def test_the_standard_small_corpus_is_split_as_in_the_literature():
    """1,115,394 characters give 1,003,854 and 111,540, the figures that others publish for this text."""
    assert split(1_115_394, CorpusConfig()) == (1_003_854, 111_540)
    assert 1_115_394 - 1_003_854 == 111_540


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.25])
@pytest.mark.parametrize("size", [10**6, 4 * 10**6, 20 * 10**6 - 1, 20 * 10**6 + 1, 10**9, 10**12])
def test_at_most_two_million_characters_are_held_out(size, fraction):
    """More would take minutes to score without changing the result."""
    num_train, held = split(size, CorpusConfig(valid_fraction=fraction))
    assert num_train + held == size
    assert MAX_VALID_CHARS == 2_000_000
    assert abs(held - min(size * fraction, 2_000_000)) <= 1


@pytest.mark.parametrize("fraction", [1e-6, 0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("size", [20, 21, 33, 1000, 12345])
def test_the_held_out_share_is_the_requested_one(size, fraction):
    """To within one character, and at least one."""
    num_train, held = split(size, CorpusConfig(valid_fraction=fraction))
    assert num_train + held == size
    assert 1 <= held < size
    assert abs(held - size * fraction) <= 1


@pytest.mark.parametrize("size", [20, 1000, 10**8])
@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.0), (0.1, 0.1), (0.5, 0.4), (1e-6, 0.05)])
def test_the_test_text_follows_the_held_out_text(folder, shared, size, valid, test):
    """The three parts are the whole text; each has the requested size to within one character."""
    num_train, num_valid = split(size, CorpusConfig(valid_fraction=valid, test_fraction=test))
    num_test = size - num_train - num_valid
    assert num_train >= 1
    assert num_valid >= 1
    assert num_test == min(int(size * test), MAX_VALID_CHARS)
    assert abs(num_valid - max(1, min(size * valid, MAX_VALID_CHARS))) <= 1
    if size <= 1000:
        name = write(folder, "parts.txt", made(size))
        corpus = load(name, cache=shared, valid_fraction=valid, test_fraction=test)
        assert [len(part) for part in parts(corpus)] == [num_train, num_valid, num_test]
        assert "".join(parts(corpus)) == made(size)


@pytest.mark.parametrize("contents", [[""], ["", ""], ["\ufeff"]])
@pytest.mark.parametrize("documents", ["", "lines"])
def test_an_empty_text_is_refused(tmp_path, cache, contents, documents):
    """It has nothing to learn from."""
    names = [write(tmp_path, f"{index}.txt", content) for index, content in enumerate(contents)]
    with pytest.raises(InputError, match="empty"):
        load(*names, cache=cache, documents=documents)


def test_a_text_may_have_a_single_distinct_character(tmp_path, cache):
    """A vocabulary of one character is valid."""
    corpus = load(write(tmp_path, "a", "a" * 20), cache=cache)
    assert (len(corpus.vocab), corpus.num_train, len(corpus.valid_ids)) == (1, 18, 2)


# using the cache


def test_an_unchanged_file_is_not_read_again(tmp_path, cache, monkeypatch, settled):
    """It is found in the cache by its path, size and times, with the same notes."""
    names = [write(tmp_path, "a", make_text(500)), write(tmp_path, "b", make_text(300, seed=1) + "\r\n")]
    first = load(*names, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    monkeypatch.setattr(Cache, "add", refuse)
    second = load(*names, cache=cache)
    assert decoded(second) == decoded(first)
    assert (second.names, second.sha256, second.key) == (first.names, first.sha256, first.key)
    assert second.notes == first.notes
    assert (second.num_train, second.num_valid) == (first.num_train, first.num_valid)


def test_the_held_out_share_can_change_without_reading_again(tmp_path, cache, monkeypatch, settled):
    """The share is not part of the cache key."""
    name = write(tmp_path, "a", made(1000))
    load(name, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    corpus = load(name, cache=cache, valid_fraction=0.25, test_fraction=0.2)
    assert [len(part) for part in parts(corpus)] == [550, 250, 200]


def test_a_recent_file_is_read_again(tmp_path, cache, monkeypatch):
    """It could be edited within the same tick of the clock, so only its content counts."""
    name = write(tmp_path, "a", make_text(500))
    load(name, cache=cache)
    assert list(cache.folder.glob("*.key")) == []
    monkeypatch.setattr(Cache, "add", refuse)
    load(name, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    with pytest.raises(AssertionError):
        load(name, cache=cache)


def test_an_edited_file_is_read_again(tmp_path, cache, settled):
    """Even if it has the same size and its modification time was reset."""
    name = write(tmp_path, "a", make_text(500, seed=1))
    status = os.stat(name)
    first = load(name, cache=cache)
    time.sleep(0.05)  # the clock of files has coarse ticks
    write(tmp_path, "a", make_text(500, seed=2))
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(name).st_mtime_ns == status.st_mtime_ns
    second = load(name, cache=cache)
    assert decoded(second) == make_text(500, seed=2)
    assert second.key != first.key
    assert decoded(first) == make_text(500, seed=1)


@pytest.mark.parametrize("field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_a_file_is_read_again_if_its_status_changed(tmp_path, cache, monkeypatch, settled, field):
    """One field is enough, because not every file system maintains all of them."""
    name = write(tmp_path, "a", make_text(500))
    load(name, cache=cache)
    status = os.stat(name)
    fields = {each: getattr(status, each) for each in dir(status) if each.startswith("st_")}
    chunks, opened = sources.Source.chunks, []
    monkeypatch.setattr(sources.Source, "chunks", lambda self, limit: opened.append(1) or chunks(self, limit))
    for change, num_opened in ((0, 0), (1, 1), (1, 1)):
        found = types.SimpleNamespace(**fields | {field: fields[field] + change})
        monkeypatch.setattr(sources.Source, "status", property(lambda self, found=found: found))
        load(name, cache=cache)
        assert len(opened) == num_opened


def test_a_replaced_file_is_read_again(tmp_path, cache, settled):
    """It is another file, whatever its times are."""
    name, other = write(tmp_path, "a", make_text(500, seed=1)), write(tmp_path, "b", make_text(500, seed=2))
    load(name, cache=cache)
    status = os.stat(name)
    os.replace(other, name)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert decoded(load(name, cache=cache)) == make_text(500, seed=2)


@pytest.mark.parametrize("how", ["touched", "copied", "renamed", "unsettled"])
def test_equal_bytes_share_an_entry(tmp_path, cache, monkeypatch, how):
    """A text that was read under another name or time isn't written a second time."""
    monkeypatch.setattr(texts_module, "_SETTLED", 2.0 if how == "unsettled" else -1e9)
    name = write(tmp_path, "a", make_text(500))
    first = load(name, cache=cache)
    if how == "touched":
        os.utime(name, (1, 1))
    elif how == "copied":
        name = write(tmp_path, "b", make_text(500))
    elif how == "renamed":
        os.rename(name, tmp_path / "b")
        name = str(tmp_path / "b")
    monkeypatch.setattr(Cache, "add", refuse)
    second = load(name, cache=cache)
    assert (second.key, decoded(second), second.names) == (first.key, decoded(first), (name,))


def test_equal_bytes_split_into_other_files_are_another_entry(tmp_path, cache, settled):
    """Byte-order marks and documents end where files do, so the boundaries matter."""
    text = "".join(f"line {number:04}\n" for number in range(10))
    halves = [write(tmp_path, "a", text[:50]), write(tmp_path, "b", text[50:])]
    whole, third = write(tmp_path, "c", text), write(tmp_path, "d", text[:30])
    rest = write(tmp_path, "e", text[30:])
    found = [load(*names, cache=cache) for names in (halves, [whole], [third, rest])]
    found.append(load(halves[0], cache=cache, valid=halves[1]))
    assert len({corpus.key for corpus in found}) == 4
    assert {decoded(corpus) for corpus in found} == {text}
    assert len({corpus.sha256 for corpus in found}) == 1


def test_every_setting_that_changes_the_ids_changes_the_key(tmp_path, cache, monkeypatch, settled):
    """All these entries can be found again later."""
    name = write(tmp_path, "a", "Grüße\n\nan alle, naïve Gäste\n" * 10)
    ways = [
        {},
        {"encoding": "latin-1"},
        {"errors": "replace"},
        {"bytes": True},
        {"min_count": 20},
        {"min_count": 21},
        {"documents": "lines"},
        {"documents": "blank-lines"},
        {"documents": ","},
        {"documents": ",", "keep_separator": True},
        {"documents": ",", "label_from": "file"},
        {"documents": ",", "label_from": "folder"},
        {"column": "1", "format": "tsv"},
        {"column": "1", "format": "csv", "errors": "replace"},
    ]
    first = [load(name, cache=cache, **way) for way in ways]
    assert len({corpus.key for corpus in first}) == len(cache.entries()) == len(ways)
    assert decoded(first[1]) == "Grüße\n\nan alle, naïve Gäste\n".encode().decode("latin-1") * 10
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    for way, corpus in zip(ways, first, strict=True):
        again = load(name, cache=cache, **way)
        assert (again.key, decoded(again)) == (corpus.key, decoded(corpus))


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("position", [0, 80, 300, -1])
def test_a_damaged_entry_is_created_again(tmp_path, cache, monkeypatch, is_settled, position):
    """A note says so once; afterwards everything is as before."""
    monkeypatch.setattr(texts_module, "_SETTLED", -1e9 if is_settled else 2.0)
    name = write(tmp_path, "a", make_text(2000))
    first = load(name, cache=cache)
    (path,) = cache.entries()
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[position] ^= 1
    path.unlink()  # a process that has it open can still read it
    path.write_bytes(damaged)
    second = load(name, cache=cache)
    assert decoded(second) == decoded(first) == make_text(2000)
    notes = [note for note in second.notes if note not in first.notes]
    assert notes == [f"{path}: the cached copy of the text is damaged; it is created again"]
    assert path.read_bytes() == content
    assert load(name, cache=cache).notes == first.notes


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": None},
        {"vocab": "ba"},
        {"vocab": "aab"},
        {"vocab": "a"},
        {"vocab": "a\ud800"},
        {"vocab": "".join(map(chr, range(300))), "counts": [0] * 299 + [2000]},
        {"counts": [1999]},
        {"counts": [-1, 2001]},
        {"counts": [1999.0, 1.0]},
        {"counts": {"a": 1}},
        {"counts": 2000},
        {"num_joined": -1},
        {"num_joined": 0},
        {"num_joined": 2001},
        {"num_joined": 2000.0},
        {"num_joined": True},
        {"num_joined": "2000"},
        {"num_chars": 2000.0},
        {"num_bytes": None},
        {"num_texts": -1},
        {"num_added": True},
        {"num_marks": None},
        {"num_skipped": None},
        {"first_skipped": 1},
        {"labels": None},
        {"labels": ["a"]},
        {"labels": {"a": "1"}},
        {"labels": {"a": -1}},
        {"sha256": 7},
        {"sha256": "../a"},
    ],
    ids=str,
)
def test_a_planted_entry_is_a_damaged_one(tmp_path, cache, settled, change):
    """Its hash is right, but its facts have wrong types or don't fit each other: the text is read again."""
    name = write(tmp_path, "a", "a" * 1999 + "b")
    first = load(name, cache=cache)
    facts = json.loads(cache.entries()[0].read_bytes().partition(b"\n")[0])
    del facts["format"], facts["key"]
    cache.add(first.key, facts | change, [first.ids.copy()])
    second = load(name, cache=cache)
    assert (decoded(second), second.vocab, second.num_train) == (decoded(first), first.vocab, first.num_train)
    assert [note for note in second.notes if "damaged" in note] == [
        f"{cache.entries()[0]}: the cached copy of the text is damaged; it is created again"
    ]


def test_an_entry_without_the_characters_of_the_base_model_is_a_damaged_one(tmp_path, cache, settled):
    """A run that starts from a model needs an id for each of its characters."""
    name = write(tmp_path, "a", "ab" * 50)
    key = load(name, cache=cache, known="xyz").key
    facts = {"sha256": "0" * 64, "vocab": "ab", "counts": [50, 50], "dtype": "uint8", "num_chars": 100}
    cache.add(
        key,
        facts | {"num_joined": 100, "num_bytes": 100, "num_texts": 1, "num_added": 0, "num_marks": 0},
        [np.tile(np.array([0, 1], np.uint8), 50)],
    )
    assert load(name, cache=cache, known="xyz").vocab.chars == "abxyz"


@pytest.mark.parametrize("lost", ["*.ids", "*.key", "*"])
def test_lost_cache_files_are_created_again(tmp_path, cache, settled, lost):
    """A dropped entry or key costs only time."""
    name = write(tmp_path, "a", make_text(500))
    first = load(name, cache=cache)
    names = sorted(path.name for path in cache.folder.iterdir())
    for path in cache.folder.glob(lost):
        path.unlink()
    second = load(name, cache=cache)
    assert (decoded(second), second.key, second.notes) == (decoded(first), first.key, first.notes)
    assert sorted(path.name for path in cache.folder.iterdir()) == names


@pytest.mark.parametrize("content", ["", "b" * 64, "../a", "\0", "x" * 1000, "\n"])
def test_a_damaged_key_file_is_corrected(tmp_path, cache, settled, content):
    """Wherever it leads, the text is read."""
    name = write(tmp_path, "a", make_text(500))
    first = load(name, cache=cache)
    (path,) = cache.folder.glob("*.key")
    path.write_text(content)
    assert decoded(load(name, cache=cache)) == decoded(first)
    assert path.read_text() == first.key


def test_a_key_file_that_names_another_text_gives_that_text(tmp_path, cache, settled):
    """The corpus then has the hash of the text that it holds."""
    name, other = write(tmp_path, "a", make_text(500)), write(tmp_path, "b", made(100))
    load(name, cache=cache)
    (path,) = cache.folder.glob("*.key")
    path.write_text(load(other, cache=cache).key)
    corpus = load(name, cache=cache)
    assert (decoded(corpus), corpus.sha256) == (made(100), hashlib.sha256(made(100).encode()).hexdigest())


@pytest.mark.parametrize("what", ["truncated", "edited", "deleted", "cache removed"])
def test_later_changes_to_a_file_have_no_effect(tmp_path, cache, settled, what):
    """The ids are a copy; even the cache may be removed."""
    name = write(tmp_path, "a", make_text(20_000))
    first = load(name, cache=cache)
    second = load(name, cache=cache)
    if what == "truncated":
        os.truncate(name, 0)
    elif what == "edited":
        with open(name, "r+b") as file:
            file.write(b"#" * 10_000)
    elif what == "deleted":
        os.unlink(name)
    else:
        shutil.rmtree(cache.folder)
    assert decoded(first) == decoded(second) == make_text(20_000)


TEXTS = {"edited": "ba", "longer": "ab" * 50 + "aa", "shorter": "ab", "another character": "é", "emptied": ""}


@pytest.mark.parametrize("change", [*TEXTS, "order", "deleted", "made binary"])
@pytest.mark.parametrize(("which", "documents"), [(0, ""), (1, ""), (2, ""), (0, "b"), (2, "b")])
def test_a_text_that_changes_between_the_passes_is_refused(tmp_path, cache, monkeypatch, change, which, documents):
    """Whichever text it is, nothing of it is stored, and it can be read later."""
    rest = {"a": "", "b": "b", "c": "a"}
    names = [write(tmp_path, name, "ab" * 50 + rest[name]) for name in "abc"]

    def edit():
        if change == "deleted":
            os.unlink(names[which])
        elif change == "made binary":
            write(tmp_path, "abc"[which], b"a\0b")
        elif change == "order":
            write(tmp_path, "abc"[which], "ba" * 50 + rest["abc"[which]])
        else:
            write(tmp_path, "abc"[which], TEXTS[change])

    chunks, calls = sources.Source.chunks, itertools.count()

    def changing(source, limit):
        if next(calls) == len(names):
            edit()
        return chunks(source, limit)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Source, "chunks", changing)
        with pytest.raises(InputError) as caught:
            load(*names[:2], cache=cache, documents=documents, valid=names[2])
    words = {"deleted": "no such file", "made binary": "binary"}.get(change, "changed while it was being read")
    assert words in str(caught.value)
    assert names[which] in str(caught.value)
    assert list(cache.folder.iterdir()) == []
    for name, text in zip(names, ("ab" * 50, "ab" * 50, "ba" * 50), strict=True):
        write(tmp_path, Path(name).name, text)
    assert len(load(*names[:2], cache=cache, documents=documents, valid=names[2]).ids) == (300 if documents else 301)


def test_a_long_text_takes_little_memory(tmp_path, cache):
    """Neither the text nor its ids are held in memory as a whole."""
    tracemalloc = pytest.importorskip("tracemalloc")
    peaks = []
    for size in (4, 16):
        name = write(tmp_path, "a", (made(9_999) + "é") * 100 * size)
        tracemalloc.start()
        try:
            corpus = load(name, cache=cache)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(corpus.ids) == 10**6 * size
    assert peaks[1] < peaks[0] + 2e6
    assert peaks[1] < 60e6


# a separate held-out text


@settings(max_examples=15)
@given(train=st.lists(TEXT, min_size=1, max_size=3), valid=TEXT)
def test_a_separate_text_can_be_held_out(folder, shared, train, valid):
    """All of it is predicted except its first character, which has no context."""
    assume(valid not in train)
    names = [write(folder, f"{index}.txt", text) for index, text in enumerate(train)]
    corpus = load(*names, cache=shared, valid=write(folder, "valid.txt", valid))
    assert parts(corpus) == [joined(train), valid[1:], ""]
    assert corpus.vocab.decode(corpus.valid_context) == valid[0]
    assert decoded(corpus) == joined(train) + valid
    assert corpus.vocab.chars == "".join(sorted(set(joined(train) + valid)))
    assert corpus.sha256 == hashlib.sha256((joined(train) + valid).encode()).hexdigest()
    assert corpus.has_valid_file
    assert corpus.names == tuple(names)


def test_a_separate_held_out_text_is_found_in_the_cache(tmp_path, cache, monkeypatch, settled):
    """Swapping the two texts gives another entry."""
    one, two = write(tmp_path, "a", made(50)), write(tmp_path, "b", made(30))
    load(one, cache=cache, valid=two)
    load(two, cache=cache, valid=one)
    load(one, two, cache=cache)
    assert len(cache.entries()) == 3
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    assert parts(load(one, cache=cache, valid=two)) == [made(50), made(30)[1:], ""]
    assert parts(load(two, cache=cache, valid=one)) == [made(30), made(50)[1:], ""]
    assert "".join(parts(load(one, two, cache=cache))) == joined([made(50), made(30)])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, cache, end):
    """The documents have no line ends, and no note mentions them."""
    text = "".join(f"document {number}{end}" for number in range(100))
    corpus = load(write(tmp_path, "a", text), cache=cache, documents="lines")
    assert sorted(decoded(corpus).split(END)) == sorted(text.split(end))
    assert not any("carriage" in note for note in corpus.notes)


@pytest.mark.parametrize("kind", ["lines", "|"])
def test_separate_held_out_documents_keep_their_order(tmp_path, cache, kind):
    """Their first character is predicted, because it follows an END; the training documents are shuffled."""
    separator = "\n" if kind == "lines" else kind
    train, valid = [f"document {number}" for number in range(200)], [f"held {number}" for number in range(50)]
    names = [write(tmp_path, name, separator.join(texts)) for name, texts in (("a", train), ("b", valid))]
    corpus = load(names[0], cache=cache, documents=kind, valid=names[1])
    found = corpus.vocab.decode(corpus.train_ids)
    assert found.endswith(END)
    assert found.split(END)[:-1] != train
    assert sorted(found.split(END)[:-1]) == sorted(train)
    assert corpus.vocab.decode(corpus.valid_ids) == END.join([*valid, ""])
    assert corpus.vocab.decode(corpus.valid_context) == found
    assert len(corpus.test_ids) == 0


@pytest.mark.parametrize("alias", ["same", "relative", "dotted", "linked", "hard link", "copy", "in folder", "in both"])
def test_a_training_text_cannot_be_held_out(tmp_path, monkeypatch, cache, alias):
    """However it is named."""
    name = write(tmp_path, "texts/a.txt", make_text(100))
    monkeypatch.chdir(tmp_path)
    os.symlink(name, "link")
    os.link(name, "hard")
    shutil.copy(name, "copy")
    names = {"relative": "texts/a.txt", "dotted": "texts/../texts/./a.txt", "linked": "link", "in both": "texts"}
    names |= {"hard link": "hard", "copy": "copy"}
    valid = names.get(alias, name)
    with pytest.raises(InputError, match="held out by --valid") as caught:
        load("texts" if alias.startswith("in ") else name, cache=cache, valid=valid)
    assert str(caught.value).startswith(f"{'texts/a.txt' if alias == 'in both' else valid}: ")


def test_texts_of_one_size_are_no_copies(tmp_path, cache):
    """Only equal bytes are; nor is an empty file a copy of another one in a folder."""
    name, valid = write(tmp_path, "texts/a", make_text(100)), write(tmp_path, "b", make_text(100, seed=1))
    write(tmp_path, "texts/empty", "")
    write(tmp_path, "held/b", make_text(100, seed=1))
    write(tmp_path, "held/empty", "")
    assert load(name, cache=cache, valid=valid).num_train == 100
    assert load(str(tmp_path / "texts"), cache=cache, valid=str(tmp_path / "held")).num_train == 100


def test_stdin_cannot_be_both_trained_on_and_held_out(monkeypatch, cache):
    """It can be read only once."""
    feed_stdin(monkeypatch, make_text(100).encode())
    with pytest.raises((InputError, UsageError), match=r"^-: "):
        load("-", cache=cache, valid="-")


@pytest.mark.parametrize("content", ["", "a"])
def test_a_separate_held_out_text_needs_two_characters(tmp_path, cache, content):
    """One of them has to be predicted."""
    name, valid = write(tmp_path, "a", make_text(100)), write(tmp_path, "b", content)
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, valid=valid)
    assert str(caught.value).startswith(f"{valid}: ")
    assert "two characters" in str(caught.value)
    assert len(load(name, cache=cache, valid=write(tmp_path, "b", "ab")).valid_ids) == 1


def test_a_held_out_text_does_not_count_towards_the_minimum(tmp_path, cache):
    """The training text has to be long enough by itself."""
    with pytest.raises(InputError, match=rf"too few characters to learn from: {MIN_CHARS - 1};"):
        load(write(tmp_path, "a", made(MIN_CHARS - 1)), cache=cache, valid=write(tmp_path, "b", made(1000)))
    corpus = load(write(tmp_path, "a", made(MIN_CHARS)), cache=cache, valid=write(tmp_path, "b", made(1000)))
    assert corpus.num_train == MIN_CHARS


def test_valid_and_test_fraction_cannot_be_combined():
    """A test text is scored by a separate command."""
    with pytest.raises(UsageError, match="--test-fraction"):
        CorpusConfig(valid="b.txt", test_fraction=0.1)
    assert CorpusConfig(valid="b.txt").test_fraction == 0


# rare characters


def naive_folding(text, min_count):
    """Replace the characters that occur less often than min_count by UNKNOWN."""
    counts = Counter(text)
    return "".join(char if counts[char] >= min_count else UNKNOWN for char in text)


@settings(max_examples=25)
@given(text=FEW, min_count=st.integers(1, 40))
@example(text="a" * 20, min_count=20)
@example(text="a" * 20, min_count=21)
@example(text="a" * 19 + "b", min_count=19)
def test_rare_characters_become_one_symbol(folder, shared, text, min_count):
    """A note says how many; without rare characters there is no symbol."""
    corpus = load(write(folder, "rare.txt", text), cache=shared, min_count=min_count)
    expected_text = naive_folding(text, min_count)
    assert decoded(corpus) == expected_text
    assert corpus.vocab.chars == "".join(sorted(set(expected_text)))
    rare = expected_text.count(UNKNOWN)
    assert (UNKNOWN in corpus.vocab.chars) == (rare > 0)
    notes = [note for note in corpus.notes if "one symbol" in note]
    expected = f"{rare:,} characters ({rare / len(text):.3%}) occur fewer than {min_count} times: one symbol"
    assert notes == ([expected] if rare else [])


def test_rare_characters_are_counted_over_all_texts(tmp_path, cache):
    """A character that occurs once in each of two texts occurs twice, even if one text is held out."""
    text = "é" + "ab" * 20 + "\n"
    one, two = write(tmp_path, "a", text), write(tmp_path, "b", text + "ß")
    for corpus in (load(one, two, cache=cache, min_count=2), load(one, cache=cache, min_count=2, valid=two)):
        assert decoded(corpus) == text * 2 + UNKNOWN
        assert corpus.vocab.chars == "\nabé" + UNKNOWN


def test_the_end_of_a_document_is_never_rare(tmp_path, cache):
    """However few documents there are."""
    text = "\n".join(["a" * 50, "b" * 50, "c"])
    corpus = load(write(tmp_path, "a", text), cache=cache, min_count=10, documents="lines", valid_fraction=0.5)
    assert corpus.vocab.chars == "ab" + END + UNKNOWN
    assert sorted(decoded(corpus).split(END)) == sorted(["", "a" * 50, "b" * 50, UNKNOWN])


# notes


@settings(max_examples=15)
@given(text=st.text(st.sampled_from("a\r\n"), min_size=MIN_CHARS, max_size=60))
def test_a_note_counts_carriage_returns(folder, shared, text):
    """It says how to remove them, or how to replace them where they end lines; without any there is no note."""
    corpus = load(write(folder, "returns.txt", text), cache=shared)
    notes = [note for note in corpus.notes if "carriage" in note]
    assert len(notes) == ("\r" in text)
    assert all(f"has {text.count(chr(13)):,} carriage returns" in note for note in notes)
    end_lines = 2 * text.count("\n") < text.count("\r")
    assert all(("tr '\\r' '\\n' <" in note, "tr -d '\\r' <" in note) == (end_lines, not end_lines) for note in notes)


def test_a_note_counts_replaced_bytes(tmp_path, cache):
    """Only if --errors replace was given."""
    name = write(tmp_path, "a", b"abc\xff" * 1200 + b"\n")
    corpus = load(name, cache=cache, errors="replace")
    assert decoded(corpus) == "abc\ufffd" * 1200 + "\n"
    assert [note for note in corpus.notes if "U+FFFD" in note and "1,200" in note]
    good = write(tmp_path, "b", "abc\ufffd" * 50)
    assert not [note for note in load(good, cache=cache).notes if "U+FFFD" in note]
    with pytest.raises(InputError, match=r"byte 3 \(0xff\)"):
        load(name, cache=cache)


@pytest.mark.parametrize(("size", "config"), [(999, {}), (1000, {}), (500, {"valid_fraction": 0.2}), (99, {})])
def test_a_note_warns_of_a_short_held_out_text(tmp_path, cache, size, config):
    """Scores of fewer than a hundred characters are rough."""
    corpus = load(write(tmp_path, "a", made(size)), cache=cache, **config)
    note = f"only {corpus.num_valid} characters are held out, so scores are rough"
    assert corpus.notes == ((note,) if corpus.num_valid < 100 else ())


def many_distinct(number):
    """Return a text of this many distinct characters; a tenth of them occur once, a tenth twice, and so on."""
    return "".join(chr(0x3400 + index) * (1 + index % 10) for index in range(number))


def test_a_note_advises_on_a_large_vocabulary(tmp_path, cache):
    """It names the smallest --min-count that gives a usual size, and its effect is as stated."""
    text = many_distinct(20_001)
    name = write(tmp_path, "a", text)
    (note,) = load(name, cache=cache).notes
    counts = Counter(text)
    min_count = next(least for least in itertools.count(1) if sum(n >= least for n in counts.values()) < 5000)
    kept = sum(n >= min_count for n in counts.values())
    share = sum(n for n in counts.values() if n < min_count) / len(text)
    assert note.startswith("20,001 distinct characters ")
    assert f"--min-count {min_count} would keep {kept:,} of them" in note
    assert f"turn {share:.3%} of the text into one symbol" in note
    corpus = load(name, cache=cache, min_count=min_count)
    assert len(corpus.vocab) == kept + 1
    assert decoded(corpus).count(UNKNOWN) / len(text) == share
    assert load(write(tmp_path, "a", many_distinct(20_000)), cache=cache).notes == ()


def test_a_note_reports_the_problem_of_the_cache(tmp_path):
    """A text that was read into a temporary folder has to be read again next time."""
    (tmp_path / "file").touch()
    with Cache(tmp_path / "file").writable() as cache:
        corpus = load(write(tmp_path, "a", make_text(2000)), cache=cache)
    assert corpus.notes == (cache.problem,)
    assert decoded(corpus) == make_text(2000)


# documents


@settings(max_examples=40)
@given(
    texts=st.lists(DOCUMENTS, min_size=1, max_size=3),
    kind=st.sampled_from(["lines", "blank-lines", "|", "ab", "||"]),
    test_fraction=st.sampled_from([0.0, 0.1, 0.4]),
    valid_fraction=st.sampled_from([1e-6, 0.1, 0.5]),
)
def test_documents_are_shuffled_and_never_split(folder, shared, texts, kind, test_fraction, valid_fraction):
    """Each occurs once, ends with its symbol, and lies within one part; none is empty."""
    names = [write(folder, f"{index}.txt", text) for index, text in enumerate(texts)]
    expected = sorted(document for text in texts for document in naive_documents(text, kind))
    config = {"documents": kind, "test_fraction": test_fraction, "valid_fraction": valid_fraction}
    size = sum(len(document) + 1 for document in expected)
    if size < MIN_CHARS or len(expected) < (3 if test_fraction else 2):
        with pytest.raises(InputError) as caught:
            load(*names, cache=shared, **config)
        words = (
            "too few documents"
            if size >= MIN_CHARS
            else f"too few characters to learn from: {size};"
            if size
            else "empty"
        )
        assert words in str(caught.value)
        return
    found = decoded(load(*names, cache=shared, documents=kind, valid=write(folder, "valid.txt", "ab")))[:size]
    assert sorted(found.split(END)) == ["", *expected]
    starts = [index + 1 for index, char in enumerate(found[:-1]) if char == END]
    num_train, num_valid = split(size, CorpusConfig(**config))
    first = nearest(starts[:-1] if test_fraction else starts, num_train)
    last = nearest([start for start in starts if start > first], num_train + num_valid) if test_fraction else size
    if 2 * first < num_train:
        with pytest.raises(InputError, match="characters would be left to train on"):
            load(*names, cache=shared, **config)
        return
    corpus = load(*names, cache=shared, **config)
    assert decoded(corpus) == found
    assert (corpus.num_train, corpus.num_train + corpus.num_valid) == (first, last)
    assert corpus.vocab.chars == "".join(sorted(set(found)))
    for part in parts(corpus)[: 3 if test_fraction else 2]:
        assert part.endswith(END)
        assert not part.startswith(END)
    assert "".join(parts(corpus)) == found
    assert bool(len(corpus.test_ids)) == bool(test_fraction)


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.0), (0.1, 0.1), (0.5, 0.4), (1e-6, 0.0), (0.3, 0.2)])
def test_documents_are_split_near_the_requested_share(tmp_path, cache, valid, test):
    """To within a document; the share is a sample of all parts of the files."""
    documents = [("x" if number < 1000 else "y") * (1 + number % 30) for number in range(2000)]
    name = write(tmp_path, "a", "\n".join(documents))
    config = {"documents": "lines", "valid_fraction": valid, "test_fraction": test}
    corpus = load(name, cache=cache, **config)
    num_train, num_valid = split(len(corpus.ids), CorpusConfig(**config))
    assert abs(corpus.num_train - num_train) <= 30
    assert abs(corpus.num_valid - num_valid) <= 31 if test else corpus.num_train + corpus.num_valid == len(corpus.ids)
    if valid >= 0.1:
        held = corpus.vocab.decode(corpus.valid_ids)
        assert 0.35 < held.count("x") / (held.count("x") + held.count("y")) < 0.65


def test_the_order_of_documents_is_reproducible(tmp_path, cache):
    """Another cache gives the same order, which is not the original one."""
    text = "\n".join(f"document {number}" for number in range(500))
    name = write(tmp_path, "a", text)
    first = load(name, cache=cache, documents="lines")
    (tmp_path / "another").mkdir()
    second = load(name, cache=Cache(tmp_path / "another"), documents="lines")
    assert decoded(first) == decoded(second)
    assert decoded(first).split(END)[:-1] != text.split("\n")


@pytest.mark.parametrize(("text", "test"), [("a" * 50, 0.0), ("a" * 50 + "\n", 0.0), ("a" * 50 + "\nb\n", 0.2)])
def test_too_few_documents_are_refused(tmp_path, cache, text, test):
    """Each part needs at least one."""
    name = write(tmp_path, "a", text)
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, documents="lines", test_fraction=test)
    number, needed = (2, 3) if test else (1, 2)
    words = f"too few documents: {number} of one line each; at least {needed} are needed to hold some out"
    assert str(caught.value) == f"{name}: {words}"


def test_two_documents_are_enough(tmp_path, cache):
    """One for training and one held out, unless the longer one would be held out."""
    trained = 0
    for text in ("a" * 50 + "\nb", "a\n" + "b" * 50, "a\n" * 2 + "b" * 30, "a" * 50 + "\n" + "b" * 49):
        name = write(tmp_path, "a", text)
        try:
            corpus = load(name, cache=cache, documents="lines")
        except InputError as error:
            assert "characters would be left to train on" in str(error)  # noqa: PT017 - or none comes
            continue
        trained += 1
        train, valid, test = parts(corpus)
        assert train.endswith(END)
        assert valid.endswith(END)
        assert len(train) > 0.8 * len(valid)
        assert test == ""
    assert trained >= 1


def long_last(tmp_path, cache, sizes):
    """Write documents of these sizes in an order that shuffling turns into the given one; return the file's name."""
    order = decoded(
        load(write(tmp_path, "o", "".join(f"{n:09}\n" for n in range(len(sizes)))), cache=cache, documents="lines")
    )
    places = [int(number) for number in order.split(END)[:-1]]
    lines = {place: "x" * size for place, size in zip(places, sizes, strict=True)}
    return write(tmp_path, "long", "\n".join(lines[number] for number in range(len(sizes))))


def test_a_long_document_at_the_end_is_not_held_out_silently(tmp_path, cache):
    """A text of which little would be left is refused with advice; a larger share than asked for is noted."""
    name = long_last(tmp_path, cache, [1, 1, 5000])
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, documents="lines")
    assert str(caught.value).startswith(f"{name}: 4 of 5,005 characters would be left to train on")
    corpus = load(long_last(tmp_path, cache, [100] * 30 + [1000]), cache=cache, documents="lines")
    assert corpus.num_valid == 1001
    asked = 31 + 4000 - split(4031, CorpusConfig())[0]
    note = f"the held-out text has 1,001 characters instead of {asked}, because documents are never split"
    assert note in corpus.notes


def test_the_nearest_boundary_can_lie_before_the_requested_one(tmp_path, cache):
    """A document that straddles the boundary is held out if most of it lies behind."""
    name = long_last(tmp_path, cache, [100] * 16 + [200, 5])
    corpus = load(name, cache=cache, documents="lines")
    assert corpus.num_train == 16 * 101
    name = long_last(tmp_path, cache, [100] * 50 + [400, 5, 5])
    corpus = load(name, cache=cache, documents="lines", test_fraction=0.05)
    assert len(corpus.test_ids) in (6, 12, 413)
    assert corpus.num_valid in (4 * 101, 5 * 101, 401)


def notes_of(*names, cache, **config):
    """Return the notes about documents."""
    return [note for note in load(*names, cache=cache, **config).notes if "documents" in note or "separates" in note]


def test_a_note_says_how_many_documents_there_are(tmp_path, cache):
    """What separates them, and their mean length; a separator that doesn't occur is named."""
    text = "".join(f"{number:06}\n" for number in range(3000))
    name, other = write(tmp_path, "a", text), write(tmp_path, "b", "one###two###" * 500)
    assert notes_of(name, cache=cache) == []
    (note,) = notes_of(name, cache=cache, documents="lines")
    assert note == "3,000 documents of one line each, 6 characters on average"
    (note,) = notes_of(other, cache=cache, documents="###")
    assert note == "1,000 documents separated by '###', 3 characters on average"
    (note,) = notes_of(other, cache=cache, documents="###", keep_separator=True)
    assert note == "1,000 documents that begin with '###', 6 characters on average"
    third = write(tmp_path, "c", text.replace("0", "1"))
    _, note, *_ = notes_of(name, third, cache=cache, documents="%%%", valid_fraction=0.5)
    assert note == "'%%%' separates nothing: each text is one document"
    with pytest.raises(InputError, match="too few documents: 1 separated by '%%%'; at least 2"):
        load(name, cache=cache, documents="%%%")


# bytes


@settings(max_examples=15)
@given(content=st.binary(min_size=MIN_CHARS, max_size=200))
def test_any_bytes_can_be_read(folder, shared, content):
    """Each is one character, whatever the file contains."""
    assume(not content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")))
    corpus = load(write(folder, "bytes", content), cache=shared, bytes=True)
    assert decoded(corpus).encode("ascii", "surrogateescape") == content
    assert len(corpus.ids) == len(content)
    assert corpus.ids.dtype == np.uint8


# without the files


@pytest.mark.parametrize(
    "config", [{}, {"valid_fraction": 0.3, "test_fraction": 0.1}, {"documents": "lines"}, {"min_count": 3}]
)
def test_find_corpus_by_its_key(tmp_path, cache, monkeypatch, config):
    """Everything but its name, without access to the files, which may be gone."""
    name = write(tmp_path, "a", make_text(3000))
    corpus = load(name, cache=cache, **config)
    os.unlink(name)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    found = find_corpus(corpus.key, CorpusConfig(**config), cache)
    assert (found.ids.tolist(), found.vocab, found.key) == (corpus.ids.tolist(), corpus.vocab, corpus.key)
    assert parts(found) == parts(corpus)
    assert (found.sha256, found.notes, found.names) == (corpus.sha256, corpus.notes, ())


def test_find_corpus_with_a_separate_held_out_text(tmp_path, cache):
    """The parts are the same."""
    names = [write(tmp_path, "a", make_text(300)), write(tmp_path, "b", make_text(200, seed=1))]
    corpus = load(names[0], cache=cache, valid=names[1])
    found = find_corpus(corpus.key, CorpusConfig(valid=names[1]), cache)
    assert parts(found) == parts(corpus) == [make_text(300), make_text(200, seed=1)[1:], ""]
    assert found.has_valid_file


def test_find_corpus_returns_none_for_a_missing_or_damaged_entry(tmp_path, cache):
    """The caller then needs the text itself."""
    assert find_corpus("a" * 64, CorpusConfig(), cache) is None
    corpus = load(write(tmp_path, "a", make_text(300)), cache=cache)
    (path,) = cache.entries()
    path.write_bytes(path.read_bytes()[:-1])
    assert find_corpus(corpus.key, CorpusConfig(), cache) is None


def known(name, vocab, cache, **config):
    """Read a text as ids of a vocabulary, as the command line does; count its other characters."""
    found = find_sources([name], SourceConfig()).sources
    ((ids, unknown),) = encode_text(found, [vocab], CorpusConfig(**config), SourceConfig(), cache)
    return ids, count_unknown(unknown)


@settings(max_examples=20)
@given(text=FEW, chars=st.sets(st.sampled_from("ab\n éz€😀" + UNKNOWN)), chunk=st.integers(2, 50))
@example(text="b" * 20, chars={"a"}, chunk=7)
def test_encode_text_matches_encoding_the_whole_text(folder, shared, text, chars, chunk):
    """The same ids and the same counts of unknown characters, most frequent first."""
    assume(chars)
    vocab = Vocab("".join(sorted(chars)))
    name = write(folder, "known.txt", text)
    before = sorted(shared.folder.iterdir())
    expected_ids, expected = vocab.encode_known(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        ids, unknown = known(name, vocab, shared)
    assert ids.tolist() == expected_ids.tolist()
    assert ids.dtype == vocab.dtype
    assert unknown == expected == {char: text.count(char) for char in set(text) - chars}
    assert list(unknown.values()) == sorted(unknown.values(), reverse=True)
    assert sorted(shared.folder.iterdir()) == before


@pytest.mark.parametrize("text", ["", "bbb"])
def test_encode_text_returns_an_empty_array_if_nothing_is_known(tmp_path, cache, text):
    """It has the vocabulary's dtype."""
    vocab = Vocab("".join(map(chr, range(0x400, 0x400 + 300))))
    ids, unknown = known(write(tmp_path, "a", text), vocab, cache)
    assert (ids.shape, ids.dtype) == ((0,), np.uint16)
    assert unknown == dict(Counter(text))


@pytest.mark.parametrize("has_end", [True, False])
def test_encode_text_keeps_the_order_of_documents(tmp_path, cache, has_end):
    """END is unknown to a model that was not trained on documents."""
    vocab = Vocab("ab" + END if has_end else "ab")
    name = write(tmp_path, "a", "ab\n\nba\nbé")
    ids, unknown = known(name, vocab, cache, documents="lines")
    assert vocab.decode(ids) == "ab-ba-b-".replace("-", END if has_end else "")
    assert unknown == {"é": 1} | ({} if has_end else {END: 3})


def test_encode_text_joins_the_texts_of_a_folder(tmp_path, cache):
    """The ids outlive the files."""
    for name, text in (("b", "bbb"), ("a", "aab"), ("c", "cab")):
        write(tmp_path, f"texts/{name}", text)
    ids, unknown = known(str(tmp_path / "texts"), Vocab("\nab"), cache)
    shutil.rmtree(tmp_path / "texts")
    assert Vocab("\nab").decode(ids) == "aab\nbbb\nab"
    assert unknown == {"c": 1}
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_a_prompt_is_read(tmp_path, cache, monkeypatch):
    """From a file or stdin; it may be empty, a byte-order mark is dropped; only models of bytes accept any bytes."""
    vocab = Vocab("ae")
    assert read_prompt(write(tmp_path, "a", "\ufeffOnce\r\n"), vocab, cache) == "Once\r\n"
    assert read_prompt(write(tmp_path, "a", ""), vocab, cache) == ""
    feed_stdin(monkeypatch, "é".encode())
    assert read_prompt("-", vocab, cache) == "é"
    with pytest.raises(InputError, match=r"byte 1 \(0xe9\).*iconv"):
        read_prompt(write(tmp_path, "a", b"a\xe9"), vocab, cache)
    assert read_prompt(write(tmp_path, "a", b"a\xe9\xc3\xa9"), Vocab("a\udca9\udcc3\udce9"), cache) == "a\udce9é"
    assert list(cache.folder.iterdir()) == []


def test_an_entry_holds_the_facts_about_the_text(tmp_path, cache):
    """Vocabulary, counts, sizes and hash, so that nothing has to be counted again."""
    text = "abracadabra, abracadabra\n" + "x"
    corpus = load(write(tmp_path, "a", text), cache=cache, min_count=2, valid=write(tmp_path, "b", "ab"))
    with open(cache.entries()[0], "rb") as file:
        facts = json.loads(file.readline())
    counts = Counter(naive_folding(text + "ab", 2))
    assert facts["vocab"] == corpus.vocab.chars == "".join(sorted(counts))
    assert facts["counts"] == [counts[char] for char in sorted(counts)]
    assert (facts["num_chars"], facts["num_joined"]) == (len(text) + 2, len(text))
    assert facts["sha256"] == hashlib.sha256((text + "ab").encode()).hexdigest()


# late problems


def test_documents_that_lose_their_separators_have_changed(tmp_path, cache, monkeypatch):
    """The text is edited between the passes."""
    name = write(tmp_path, "a", "aaaa\n" * 20)
    chunks, calls = sources.Source.chunks, itertools.count()

    def changing(source, limit):
        if next(calls) == 1:
            write(tmp_path, "a", "a" * 200)
        return chunks(source, limit)

    monkeypatch.setattr(sources.Source, "chunks", changing)
    with pytest.raises(InputError, match="changed while"):
        load(name, cache=cache, documents="lines")


def test_a_file_can_be_deleted_after_the_second_pass(tmp_path, cache, monkeypatch):
    """It is not needed any more."""
    name, add = write(tmp_path, "a", make_text(200)), Cache.add

    def and_delete(*args):
        entry = add(*args)
        os.unlink(name)
        return entry

    monkeypatch.setattr(Cache, "add", and_delete)
    assert load(name, cache=cache).names == (name,)


def test_the_document_separator_is_converted_to_bytes(tmp_path, cache):
    """If the text is read as bytes."""
    name = write(tmp_path, "a", "one§two§" * 20)
    corpus = load(name, cache=cache, bytes=True, documents="§")
    assert set(corpus.vocab.chars) == set("onetw") | {END}


def test_a_note_on_a_large_vocabulary_gives_no_useless_advice(tmp_path, cache):
    """If every character occurs once, no --min-count keeps some of them."""
    name = write(tmp_path, "a", "".join(map(chr, range(0x3400, 0x3400 + 20_001))))
    assert load(name, cache=cache).notes == ("20,001 distinct characters make up most of the work",)


@pytest.mark.parametrize("allowed", [1000, 150_000])
def test_encode_text_reports_a_full_disk(tmp_path, cache, allowed):
    """As `load_corpus` does."""
    resource = pytest.importorskip("resource")
    name = write(tmp_path, "a", "a" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        with pytest.raises(CharrnnError, match="CHARRNN_CACHE"):
            encode_text([sources.Source(name)], [Vocab("a")], CorpusConfig(), SourceConfig(), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
