"""From texts to ids: every character accounted for, read again only when need be, never mixed up."""

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
from charrnn.data import corpus as module
from charrnn.data import sources
from charrnn.data.cache import Cache
from charrnn.data.corpus import find_corpus, load_corpus, read_known, read_text, split
from charrnn.data.vocab import END, UNKNOWN, Vocab
from charrnn.errors import CharrnnError, InputError, UsageError
from tests.conftest import make_text

CHARS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXT = st.text(CHARS, min_size=MIN_CHARS, max_size=200).filter(lambda text: text[0] != "\ufeff")
FEW = st.text(st.sampled_from("ab\n\r éz€😀"), min_size=MIN_CHARS, max_size=200)
DOCUMENTS = st.text(st.sampled_from("ab\n\n\n \t\r|"), max_size=200)  # and what separates them


def write(folder, name, content):
    """Write a file, folders above it included, and return its path as an argument."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(*names, cache, **config):
    """Load texts as the command line does, with these settings."""
    return load_corpus(names, CorpusConfig(**config), SourceConfig(), cache)


def decoded(corpus):
    """All of a corpus as text."""
    return corpus.vocab.decode(corpus.ids)


def parts(corpus):
    """Training, held-out and test text."""
    return [corpus.vocab.decode(ids) for ids in (corpus.train_ids, corpus.valid_ids, corpus.test_ids)]


def naive_documents(text, kind):
    """The documents of a text, by the definition of their kind."""
    if kind == "blank-lines":  # the beginning and the end of a text are as good as some
        text = re.sub(r"\n[ \t\r\n]*\Z", "", "\n" + text)
        first, *others = re.split(r"\n(?:[ \t\r]*\n)+", text)
        pieces = [first.removeprefix("\n"), *others]
    else:
        pieces = text.split("\n" if kind == "lines" else kind)
    return [piece for piece in pieces if piece]


def naive_border(starts, place):
    """Where the first document begins from a place on, or else the last one."""
    return min((start for start in starts if start >= place), default=starts[-1])


def refuse(*args, **kwargs):
    """Stand in for what must not happen."""
    raise AssertionError("this was not to be called")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for the texts of all examples of a property."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One cache for all examples of a property."""
    return Cache(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def settled(monkeypatch):
    """Files are taken for old enough that an edit can't leave their times as they are."""
    monkeypatch.setattr(module, "_SETTLED", -1e9)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(CHARS), min_size=1, max_size=4))
@example(texts=["a\r\nb\r\n" * 5, "a\rb\r" * 5, "a\n\n\nb", "a\u2028b\x0bc\x85", "no newline"])
def test_files_are_joined_in_the_order_named(folder, shared, texts):
    """Byte for byte, with nothing between them, whatever newlines they end with; the hash is over the bytes."""
    texts = [text.removeprefix("\ufeff") for text in texts]
    assume(len("".join(texts)) >= MIN_CHARS)
    assume(not any(text.startswith("\ufeff") for text in texts))
    names = [write(folder, f"{len(texts) - index}.txt", text) for index, text in enumerate(texts)]
    corpus, text = load(*names, cache=shared), "".join(texts)
    assert decoded(corpus) == text
    assert corpus.vocab.chars == "".join(sorted(set(text)))
    assert corpus.ids.dtype == corpus.vocab.dtype
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.names == tuple(names)
    assert not corpus.is_apart


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(FEW, min_size=1, max_size=3), chunk=st.integers(2, 50), kind=st.sampled_from(["", "lines", "ab"]))
def test_the_pieces_in_which_a_text_is_read_make_no_difference(folder, tmp_path_factory, texts, chunk, kind):
    """The same ids, characters of several bytes and separators cut in two or not."""
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
def test_ids_take_as_few_bytes_as_they_can(tmp_path, cache, num_distinct, dtype):
    """They are mapped from the cache and can't be changed, and so are all parts of them."""
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


def test_a_vocabulary_of_more_than_two_bytes_is_read(tmp_path, cache):
    """All of Unicode's first plane, and of the others a character here and there, to the very last."""
    text = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x1000F, 0x110000, 16)]))
    corpus = load(write(tmp_path, "a", text), cache=cache)
    assert corpus.ids.dtype == np.uint32
    assert decoded(corpus) == corpus.vocab.chars == text


def test_a_byte_order_mark_is_dropped(tmp_path, cache):
    """From each file, but only at its start; the hash is over the bytes as they are."""
    one, two = b"\xef\xbb\xbfone" * 1 + b" " * 20, b"\xef\xbb\xbftwo\xef\xbb\xbf"
    corpus = load(write(tmp_path, "a", one), write(tmp_path, "b", two), cache=cache)
    assert decoded(corpus) == "one" + " " * 20 + "two\ufeff"
    assert corpus.sha256 == hashlib.sha256(one + two).hexdigest()


def test_the_same_file_twice_counts_twice(tmp_path, cache):
    """A name given again is read again, and that is said."""
    text = make_text(100)
    name = write(tmp_path, "a.txt", text)
    corpus = load(name, name, cache=cache)
    assert decoded(corpus) == text + text
    assert any("twice" in note for note in corpus.notes)


def test_names_are_made_absolute(tmp_path, monkeypatch, cache):
    """So that the text is found again from another folder."""
    name = write(tmp_path, "a.txt", make_text(100))
    monkeypatch.chdir(tmp_path)
    assert load("a.txt", cache=cache).names == (name,)


def test_the_standard_library_is_read_whole(tmp_path, cache):
    """A folder of real source files is their texts, one after the other, by name."""
    place = Path(sysconfig.get_paths()["stdlib"])
    (tmp_path / "library").mkdir()
    for path in sorted(place.glob("*.py"))[:30]:
        shutil.copy(path, tmp_path / "library")
    paths = sorted((tmp_path / "library").iterdir())
    assert len(paths) == 30
    corpus = load(str(tmp_path / "library"), cache=cache)
    assert decoded(corpus) == b"".join(path.read_bytes() for path in paths).decode()
    assert corpus.names == tuple(map(str, paths))


def test_a_folder_is_read_without_what_training_wrote_into_it(tmp_path, cache):
    """`charrnn train .` finds the same text the second time, and the entry of the first."""
    write(tmp_path, "texts/a.txt", make_text(100))
    before = load(str(tmp_path / "texts"), cache=cache)
    write(tmp_path, "texts/checkpoints/a/log.jsonl", "{}")
    after = load(str(tmp_path / "texts"), cache=cache)
    assert (after.key, decoded(after), after.names) == (before.key, decoded(before), before.names)


def feed_stdin(monkeypatch, data):
    """Put bytes on stdin."""
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_stdin_is_read_where_it_is_named(tmp_path, monkeypatch, cache, settled):
    """Between files, under the name of a dash; read again from a copy, of which nothing is left."""
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
def test_a_fifo_is_a_stream(tmp_path, cache, settled):
    """What comes out of it can't be found again, so its name is a dash; what it holds later is read anew."""
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
def test_one_fifo_may_be_trained_on_and_another_held_out(tmp_path, cache):
    """They have the same name afterwards, but aren't the same text."""
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
def test_a_text_that_can_not_be_read_is_named(tmp_path, cache, content, config, words):
    """With what is wrong, whichever of the texts it is, held out or not; nothing is left in the cache."""
    good = write(tmp_path, "good", make_text(100))
    bad = str(tmp_path / "bad") if content is None else write(tmp_path, "bad", content)
    for names, more in (([bad], {}), ([good, bad], {}), ([good], {"valid": bad})):
        with pytest.raises((InputError, UsageError)) as caught:
            load(*names, cache=cache, **config, **more)
        assert words in str(caught.value)
        assert str(caught.value).startswith((f"{bad}: ", "--encoding "))
    assert list(cache.folder.iterdir()) == []


def test_no_more_is_read_than_was_allowed(tmp_path, cache):
    """The limit is one on all texts together, and each reading has all of it."""
    names = [write(tmp_path, "a", make_text(100)), write(tmp_path, "b", make_text(50))]
    assert len(load_corpus(names, CorpusConfig(), SourceConfig(max_bytes=150), cache).ids) == 150
    names += [write(tmp_path, "c", "c")]
    with pytest.raises(InputError, match="--max-bytes") as caught:
        load_corpus(names, CorpusConfig(), SourceConfig(max_bytes=150), cache)
    assert str(caught.value).startswith(f"{names[-1]}: ")


# How a text is split.


def made(size):
    """A text of so many characters in which neighbours differ."""
    return "".join(chr(97 + place % 17) for place in range(size))


def test_every_size_is_split_in_two(folder, shared):
    """Training and held-out characters are the text in order; neither is empty; a tenth at most is held out.

    A shorter text is refused by what it has and what it needs.
    """
    for size in [*range(64), *range(64, 2001, 16), 1999, 2000]:
        name = write(folder, "size.txt", made(size))
        if size < MIN_CHARS:
            with pytest.raises(InputError) as caught:
                load(name, cache=shared)
            few = f"{size} characters are too few to learn from; at least {MIN_CHARS} are needed"
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
def test_a_test_text_lies_behind_the_held_out_one(folder, shared, size, valid, test):
    """The three parts are the whole text, each as large as asked for to within a character; none overlap."""
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
    """No characters at all are nothing to learn from."""
    names = [write(tmp_path, f"{index}.txt", content) for index, content in enumerate(contents)]
    with pytest.raises(InputError, match="empty"):
        load(*names, cache=cache, documents=documents)


def test_one_character_over_and_over_is_a_text(tmp_path, cache):
    """A vocabulary of one is legal."""
    corpus = load(write(tmp_path, "a", "a" * 20), cache=cache)
    assert (len(corpus.vocab), corpus.num_train, len(corpus.valid_ids)) == (1, 18, 2)


# What the cache saves, and what it must not.


def test_an_unchanged_file_is_not_opened_again(tmp_path, cache, monkeypatch, settled):
    """The second loading finds all in the cache, by the file's place, size and times, and says the same."""
    names = [write(tmp_path, "a", make_text(500)), write(tmp_path, "b", make_text(300, seed=1) + "\r\n")]
    first = load(*names, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    monkeypatch.setattr(Cache, "add", refuse)
    second = load(*names, cache=cache)
    assert decoded(second) == decoded(first)
    assert (second.names, second.sha256, second.key, second.notes) == (
        first.names,
        first.sha256,
        first.key,
        first.notes,
    )
    assert (second.num_train, second.num_valid) == (first.num_train, first.num_valid)


def test_what_is_held_out_may_change_without_reading(tmp_path, cache, monkeypatch, settled):
    """The share is no part of what was read."""
    name = write(tmp_path, "a", made(1000))
    load(name, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    corpus = load(name, cache=cache, valid_fraction=0.25, test_fraction=0.2)
    assert [len(part) for part in parts(corpus)] == [550, 250, 200]


def test_a_file_that_was_just_written_is_read_again(tmp_path, cache, monkeypatch):
    """It could be edited within the same tick of the clock, so only its content tells."""
    name = write(tmp_path, "a", make_text(500))
    load(name, cache=cache)
    assert list(cache.folder.glob("*.key")) == []
    monkeypatch.setattr(Cache, "add", refuse)
    load(name, cache=cache)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    with pytest.raises(AssertionError):
        load(name, cache=cache)


def test_an_edited_file_is_noticed(tmp_path, cache, settled):
    """Also one of the same size whose time of change was put back."""
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
def test_a_file_is_read_again_if_anything_about_it_changed(tmp_path, cache, monkeypatch, settled, field):
    """One thing is enough, as not every file system keeps all of them well."""
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


def test_a_file_in_anothers_place_is_noticed(tmp_path, cache, settled):
    """It is another file, whatever its times are."""
    name, other = write(tmp_path, "a", make_text(500, seed=1)), write(tmp_path, "b", make_text(500, seed=2))
    load(name, cache=cache)
    status = os.stat(name)
    os.replace(other, name)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert decoded(load(name, cache=cache)) == make_text(500, seed=2)


@pytest.mark.parametrize("how", ["touched", "copied", "renamed", "unsettled"])
def test_the_same_bytes_are_the_same_entry(tmp_path, cache, monkeypatch, how):
    """A text that was read before under another name or time isn't written a second time."""
    monkeypatch.setattr(module, "_SETTLED", 2.0 if how == "unsettled" else -1e9)
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


def test_the_same_bytes_in_other_files_are_another_entry(tmp_path, cache, settled):
    """Marks and documents end where files do, so the borders matter, and what is held out does too."""
    halves = [write(tmp_path, "a", make_text(100)[:50]), write(tmp_path, "b", make_text(100)[50:])]
    whole, third = write(tmp_path, "c", make_text(100)), write(tmp_path, "d", make_text(100)[:30])
    rest = write(tmp_path, "e", make_text(100)[30:])
    found = [load(*names, cache=cache) for names in (halves, [whole], [third, rest])]
    found.append(load(halves[0], cache=cache, valid=halves[1]))
    assert len({corpus.key for corpus in found}) == 4
    assert {decoded(corpus) for corpus in found} == {make_text(100)}
    assert len({corpus.sha256 for corpus in found}) == 1


def test_every_setting_that_changes_the_ids_is_another_entry(tmp_path, cache, monkeypatch, settled):
    """And each is found again, however many others were read meanwhile."""
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
    ]
    first = [load(name, cache=cache, **way) for way in ways]
    assert len({corpus.key for corpus in first}) == len(cache.entries()) == len(ways)
    assert decoded(first[1]) == "Grüße\n\nan alle, naïve Gäste\n".encode().decode("latin-1") * 10
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    for way, corpus in zip(ways, first, strict=True):
        again = load(name, cache=cache, **way)
        assert (again.key, decoded(again)) == (corpus.key, decoded(corpus))


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("place", [0, 80, 300, -1])
def test_a_damaged_entry_is_made_again(tmp_path, cache, monkeypatch, is_settled, place):
    """That is said, once; afterwards all is as before."""
    monkeypatch.setattr(module, "_SETTLED", -1e9 if is_settled else 2.0)
    name = write(tmp_path, "a", make_text(2000))
    first = load(name, cache=cache)
    (path,) = cache.entries()
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1
    path.unlink()  # who has it open keeps it
    path.write_bytes(damaged)
    second = load(name, cache=cache)
    assert decoded(second) == decoded(first) == make_text(2000)
    notes = [note for note in second.notes if note not in first.notes]
    assert notes == [f"{path}: the cached copy of the text is damaged; it is made again"]
    assert path.read_bytes() == content
    assert load(name, cache=cache).notes == first.notes


@pytest.mark.parametrize("lost", ["*.ids", "*.key", "*"])
def test_what_is_lost_is_made_again(tmp_path, cache, settled, lost):
    """An entry that was dropped, or a signature that was, costs time, nothing else."""
    name = write(tmp_path, "a", make_text(500))
    first = load(name, cache=cache)
    names = sorted(path.name for path in cache.folder.iterdir())
    for path in cache.folder.glob(lost):
        path.unlink()
    second = load(name, cache=cache)
    assert (decoded(second), second.key, second.notes) == (decoded(first), first.key, first.notes)
    assert sorted(path.name for path in cache.folder.iterdir()) == names


@pytest.mark.parametrize("content", ["", "b" * 64, "../a", "\0", "x" * 1000, "\n"])
def test_a_damaged_signature_does_no_harm(tmp_path, cache, settled, content):
    """Wherever it leads, the text is read, and what is said there is put right."""
    name = write(tmp_path, "a", make_text(500))
    first = load(name, cache=cache)
    (path,) = cache.folder.glob("*.key")
    path.write_text(content)
    assert decoded(load(name, cache=cache)) == decoded(first)
    assert path.read_text() == first.key


def test_a_signature_of_another_text_does_no_harm(tmp_path, cache, settled):
    """An entry says itself what it is, so a key that was written by hand gives that text and its hash."""
    name, other = write(tmp_path, "a", make_text(500)), write(tmp_path, "b", made(100))
    load(name, cache=cache)
    (path,) = cache.folder.glob("*.key")
    path.write_text(load(other, cache=cache).key)
    corpus = load(name, cache=cache)
    assert (decoded(corpus), corpus.sha256) == (made(100), hashlib.sha256(made(100).encode()).hexdigest())


@pytest.mark.parametrize("what", ["truncated", "edited", "deleted", "cache removed"])
def test_what_happens_to_a_file_later_is_of_no_effect(tmp_path, cache, settled, what):
    """The ids are a copy; even the cache may go."""
    name = write(tmp_path, "a", make_text(100_000))
    first = load(name, cache=cache)
    second = load(name, cache=cache)
    if what == "truncated":
        os.truncate(name, 0)
    elif what == "edited":
        with open(name, "r+b") as file:
            file.write(b"#" * 50_000)
    elif what == "deleted":
        os.unlink(name)
    else:
        shutil.rmtree(cache.folder)
    assert decoded(first) == decoded(second) == make_text(100_000)


TEXTS = {"edited": "ba", "longer": "ab" * 50 + "a", "shorter": "ab", "another character": "é", "emptied": ""}


@pytest.mark.parametrize("documents", ["", "b"])
@pytest.mark.parametrize("change", [*TEXTS, "order", "deleted", "made binary"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path, cache, monkeypatch, change, which, documents):
    """Between the two passes, any of the texts; nothing of it is kept, and the next time all is well."""
    names = [write(tmp_path, name, "ab" * 50 + "b" * (name == "b")) for name in "abc"]

    def edit():
        if change == "deleted":
            os.unlink(names[which])
        elif change == "made binary":
            write(tmp_path, "abc"[which], b"a\0b")
        elif change == "order":
            write(tmp_path, "abc"[which], "ba" * 50 + "b" * (which == 1))
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
    for name in names:
        write(tmp_path, Path(name).name, "ab" * 50)
    assert len(load(*names[:2], cache=cache, documents=documents, valid=names[2]).ids) == 300


def test_a_long_text_takes_little_memory(tmp_path, cache):
    """As much for 40 MB as for 10, nearly: neither the text nor its ids are ever held whole."""
    tracemalloc = pytest.importorskip("tracemalloc")
    peaks = []
    for size in (10, 40):
        name = write(tmp_path, "a", (made(9_999) + "é") * 100 * size)
        tracemalloc.start()
        try:
            corpus = load(name, cache=cache)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(corpus.ids) == 10**6 * size
    assert peaks[1] < peaks[0] + 5e6
    assert peaks[1] < 60e6


# A text of its own that is held out.


@settings(deadline=None, max_examples=30)
@given(train=st.lists(TEXT, min_size=1, max_size=3), valid=TEXT)
def test_a_text_may_be_held_out(folder, shared, train, valid):
    """All of the others is trained on; of it all is predicted but the first character, which nothing leads to."""
    names = [write(folder, f"{index}.txt", text) for index, text in enumerate(train)]
    corpus = load(*names, cache=shared, valid=write(folder, "valid.txt", valid))
    assert parts(corpus) == ["".join(train), valid[1:], ""]
    assert corpus.vocab.decode(corpus.valid_context) == valid[0]
    assert decoded(corpus) == "".join(train) + valid
    assert corpus.vocab.chars == "".join(sorted(set("".join(train) + valid)))
    assert corpus.sha256 == hashlib.sha256(("".join(train) + valid).encode()).hexdigest()
    assert corpus.is_apart
    assert corpus.names == tuple(names)


def test_a_text_that_is_held_out_is_found_again(tmp_path, cache, monkeypatch, settled):
    """By both files, in these parts; turned round they are another entry."""
    one, two = write(tmp_path, "a", made(50)), write(tmp_path, "b", made(30))
    load(one, cache=cache, valid=two)
    load(two, cache=cache, valid=one)
    load(one, two, cache=cache)
    assert len(cache.entries()) == 3
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    assert parts(load(one, cache=cache, valid=two)) == [made(50), made(30)[1:], ""]
    assert parts(load(two, cache=cache, valid=one)) == [made(30), made(50)[1:], ""]
    assert "".join(parts(load(one, two, cache=cache))) == made(50) + made(30)


@pytest.mark.parametrize("kind", ["lines", "|"])
def test_documents_that_are_held_out_stay_as_they_are(tmp_path, cache, kind):
    """In their order, the first character included, as that comes after an end; the others are shuffled."""
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


@pytest.mark.parametrize("alias", ["same", "relative", "dotted", "linked", "in folder", "in both"])
def test_what_is_trained_on_can_not_be_held_out(tmp_path, monkeypatch, cache, alias):
    """However it is named."""
    name = write(tmp_path, "texts/a.txt", make_text(100))
    monkeypatch.chdir(tmp_path)
    os.symlink(name, "link")
    names = {"relative": "texts/a.txt", "dotted": "texts/../texts/./a.txt", "linked": "link", "in both": "texts"}
    valid = names.get(alias, name)
    with pytest.raises(InputError, match="held out by --valid") as caught:
        load("texts" if alias.startswith("in ") else name, cache=cache, valid=valid)
    assert str(caught.value).startswith(f"{valid}: ")


def test_stdin_can_not_be_both_trained_on_and_held_out(monkeypatch, cache):
    """There would be nothing left for the second."""
    feed_stdin(monkeypatch, make_text(100).encode())
    with pytest.raises((InputError, UsageError), match=r"^-: "):
        load("-", cache=cache, valid="-")


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_too_short_to_be_held_out_is_refused(tmp_path, cache, content):
    """It has to have something that is predicted; two characters are enough."""
    name, valid = write(tmp_path, "a", make_text(100)), write(tmp_path, "b", content)
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, valid=valid)
    assert str(caught.value).startswith(f"{valid}: ")
    assert "two characters" in str(caught.value)
    assert len(load(name, cache=cache, valid=write(tmp_path, "b", "ab")).valid_ids) == 1


def test_a_short_text_does_not_become_longer_by_what_is_held_out(tmp_path, cache):
    """What is trained on has to be long enough itself."""
    with pytest.raises(InputError, match=rf": {MIN_CHARS - 1} characters are too few"):
        load(write(tmp_path, "a", made(MIN_CHARS - 1)), cache=cache, valid=write(tmp_path, "b", made(1000)))
    corpus = load(write(tmp_path, "a", made(MIN_CHARS)), cache=cache, valid=write(tmp_path, "b", made(1000)))
    assert corpus.num_train == MIN_CHARS


def test_a_text_apart_and_a_share_for_the_test_do_not_go_together():
    """The test text is scored by a command of its own."""
    with pytest.raises(UsageError, match="--test-fraction"):
        CorpusConfig(valid="b.txt", test_fraction=0.1)
    assert CorpusConfig(valid="b.txt").test_fraction == 0


# Rare characters.


def naive_folding(text, min_count):
    """The text with each character that occurs less often than that made UNKNOWN."""
    counts = Counter(text)
    return "".join(char if counts[char] >= min_count else UNKNOWN for char in text)


@settings(deadline=None, max_examples=60)
@given(text=FEW, min_count=st.integers(1, 40))
@example(text="a" * 20, min_count=20)
@example(text="a" * 20, min_count=21)
@example(text="a" * 19 + "b", min_count=19)
def test_rare_characters_become_one_symbol(folder, shared, text, min_count):
    """Those that occur less often than asked for; how many that are is said; without any there is no symbol."""
    corpus = load(write(folder, "rare.txt", text), cache=shared, min_count=min_count)
    folded = naive_folding(text, min_count)
    assert decoded(corpus) == folded
    assert corpus.vocab.chars == "".join(sorted(set(folded)))
    rare = folded.count(UNKNOWN)
    assert (UNKNOWN in corpus.vocab.chars) == (rare > 0)
    said = [note for note in corpus.notes if "one symbol" in note]
    expected = f"{rare:,} characters, {rare / len(text):.3%}, occur less than {min_count} times: one symbol"
    assert said == [expected] * (rare > 0)


def test_rare_characters_are_counted_over_all_texts(tmp_path, cache):
    """Once in each of two is twice, also where one of them is held out."""
    one, two = write(tmp_path, "a", "é" + "ab" * 20), write(tmp_path, "b", "é" + "ab" * 20 + "ß")
    for corpus in (load(one, two, cache=cache, min_count=2), load(one, cache=cache, min_count=2, valid=two)):
        assert decoded(corpus) == ("é" + "ab" * 20) * 2 + UNKNOWN
        assert corpus.vocab.chars == "abé" + UNKNOWN


def test_the_end_of_a_document_is_never_rare(tmp_path, cache):
    """However few there are."""
    text = "\n".join(["a" * 50, "b" * 50, "c"])
    corpus = load(write(tmp_path, "a", text), cache=cache, min_count=10, documents="lines", valid_fraction=0.5)
    assert corpus.vocab.chars == "ab" + END + UNKNOWN
    assert sorted(decoded(corpus).split(END)) == sorted(["", "a" * 50, "b" * 50, UNKNOWN])


# What is said about a text.


@settings(deadline=None, max_examples=30)
@given(text=st.text(st.sampled_from("a\r\n"), min_size=MIN_CHARS, max_size=60))
def test_carriage_returns_are_told(folder, shared, text):
    """With their number, and how to be rid of them; a text without any isn't spoken of."""
    corpus = load(write(folder, "returns.txt", text), cache=shared)
    said = [note for note in corpus.notes if "carriage" in note]
    assert len(said) == ("\r" in text)
    assert all(f"has {text.count(chr(13)):,} carriage returns" in note for note in said)


def test_replaced_bytes_are_told(tmp_path, cache):
    """With their number, where they were to be replaced."""
    name = write(tmp_path, "a", b"abc\xff" * 1200 + b"\n")
    corpus = load(name, cache=cache, errors="replace")
    assert decoded(corpus) == "abc\ufffd" * 1200 + "\n"
    assert [note for note in corpus.notes if "U+FFFD" in note and "1,200" in note]
    good = write(tmp_path, "b", "abc\ufffd" * 50)
    assert not [note for note in load(good, cache=cache).notes if "U+FFFD" in note]
    with pytest.raises(InputError, match=r"byte 3 \(0xff\)"):
        load(name, cache=cache)


@pytest.mark.parametrize(("size", "config"), [(999, {}), (1000, {}), (500, {"valid_fraction": 0.2}), (99, {})])
def test_a_short_part_that_is_held_out_is_told(tmp_path, cache, size, config):
    """Scores of fewer than a hundred characters are rough."""
    corpus = load(write(tmp_path, "a", made(size)), cache=cache, **config)
    said = [f"only {corpus.num_valid} characters are held out, so scores are rough"] * (corpus.num_valid < 100)
    assert list(corpus.notes) == said


def many_distinct(number):
    """A text of so many distinct characters, a tenth of which occur once, another twice, and so on."""
    return "".join(chr(0x3400 + index) * (1 + index % 10) for index in range(number))


def test_a_large_vocabulary_is_told(tmp_path, cache):
    """With the least count that leaves a usual one, and what that leaves and takes, as it then turns out."""
    text = many_distinct(20_001)
    name = write(tmp_path, "a", text)
    (note,) = load(name, cache=cache).notes
    counts = Counter(text)
    enough = next(count for count in itertools.count(1) if sum(each >= count for each in counts.values()) < 5000)
    kept = sum(each >= enough for each in counts.values())
    share = sum(each for each in counts.values() if each < enough) / len(text)
    assert note.startswith("20,001 distinct characters ")
    assert f"--min-count {enough} would leave {kept:,} and take {share:.3%} of the text for one symbol" in note
    folded = load(name, cache=cache, min_count=enough)
    assert len(folded.vocab) == kept + 1
    assert decoded(folded).count(UNKNOWN) / len(text) == share
    assert load(write(tmp_path, "a", many_distinct(20_000)), cache=cache).notes == ()


def test_what_the_cache_lacks_is_told(tmp_path):
    """A text that was read into a temporary folder is read anew next time, and that is said with it."""
    (tmp_path / "file").touch()
    with Cache(tmp_path / "file").writable() as cache:
        corpus = load(write(tmp_path, "a", make_text(2000)), cache=cache)
    assert corpus.notes == (cache.lack,)
    assert decoded(corpus) == make_text(2000)


# Documents.


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(DOCUMENTS, min_size=1, max_size=3),
    kind=st.sampled_from(["lines", "blank-lines", "|", "ab", "||"]),
    test_fraction=st.sampled_from([0.0, 0.1, 0.4]),
    valid_fraction=st.sampled_from([1e-6, 0.1, 0.5]),
)
def test_documents_are_those_of_the_texts(folder, shared, texts, kind, test_fraction, valid_fraction):
    """Each of them once, in another order, ended by its symbol; no part begins or ends within one; none is empty."""
    names = [write(folder, f"{index}.txt", text) for index, text in enumerate(texts)]
    expected = sorted(document for text in texts for document in naive_documents(text, kind))
    config = {"documents": kind, "test_fraction": test_fraction, "valid_fraction": valid_fraction}
    size = sum(len(document) + 1 for document in expected)
    if size < MIN_CHARS or len(expected) < (3 if test_fraction else 2):
        with pytest.raises(InputError) as caught:
            load(*names, cache=shared, **config)
        words = "too few documents" if size >= MIN_CHARS else f"{size} characters are too few" if size else "empty"
        assert words in str(caught.value)
        return
    found = decoded(load(*names, cache=shared, documents=kind))  # two documents are always enough for two parts
    assert sorted(found.split(END)) == ["", *expected]
    starts = [place + 1 for place, char in enumerate(found[:-1]) if char == END]
    num_train, num_valid = split(size, CorpusConfig(**config))
    first = naive_border(starts, num_train)
    last = naive_border(starts, max(num_train + num_valid, first + 1)) if test_fraction else size
    if first == last:  # the part behind it would have none
        with pytest.raises(InputError, match="too few documents"):
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
def test_documents_are_split_near_the_share_asked_for(tmp_path, cache, valid, test):
    """To within a document at each border; the share is one of all kinds, wherever in the files they stood."""
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


def test_the_order_of_documents_is_always_the_same(tmp_path, cache):
    """Another cache, or another machine, splits alike; it isn't the one they had."""
    text = "\n".join(f"document {number}" for number in range(500))
    name = write(tmp_path, "a", text)
    first = load(name, cache=cache, documents="lines")
    (tmp_path / "another").mkdir()
    second = load(name, cache=Cache(tmp_path / "another"), documents="lines")
    assert decoded(first) == decoded(second)
    assert decoded(first).split(END)[:-1] != text.split("\n")


@pytest.mark.parametrize(("text", "test"), [("a" * 50, 0.0), ("a" * 50 + "\n", 0.0), ("a" * 50 + "\nb\n", 0.2)])
def test_too_few_documents_are_refused(tmp_path, cache, text, test):
    """Each part needs one of its own."""
    name = write(tmp_path, "a", text)
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, documents="lines", test_fraction=test)
    assert str(caught.value) == f"{name}: too few documents to hold some of them out"


def test_two_documents_are_enough(tmp_path, cache):
    """One to be trained on, one to be held out, whichever is longer."""
    for text in ("a" * 50 + "\nb", "a\n" + "b" * 50, "a\n" * 2 + "b" * 30):
        corpus = load(write(tmp_path, "a", text), cache=cache, documents="lines")
        train, valid, test = parts(corpus)
        assert train.endswith(END)
        assert valid.endswith(END)
        assert test == ""


# Bytes.


@settings(deadline=None, max_examples=30)
@given(content=st.binary(min_size=MIN_CHARS, max_size=200))
def test_any_bytes_can_be_read(folder, shared, content):
    """Each is a character, whatever the file is."""
    assume(not content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")))
    corpus = load(write(folder, "bytes", content), cache=shared, bytes=True)
    assert decoded(corpus).encode("ascii", "surrogateescape") == content
    assert len(corpus.ids) == len(content)
    assert corpus.ids.dtype == np.uint8


# Without the files.


@pytest.mark.parametrize(
    "config", [{}, {"valid_fraction": 0.3, "test_fraction": 0.1}, {"documents": "lines"}, {"min_count": 3}]
)
def test_a_corpus_is_found_by_its_key(tmp_path, cache, monkeypatch, config):
    """All of it but its name, without a look at the files, which may be gone."""
    name = write(tmp_path, "a", make_text(3000))
    corpus = load(name, cache=cache, **config)
    os.unlink(name)
    monkeypatch.setattr(sources.Source, "chunks", refuse)
    found = find_corpus(corpus.key, CorpusConfig(**config), cache)
    assert (found.ids.tolist(), found.vocab, found.key) == (corpus.ids.tolist(), corpus.vocab, corpus.key)
    assert parts(found) == parts(corpus)
    assert (found.sha256, found.notes, found.names) == (corpus.sha256, corpus.notes, ())


def test_a_corpus_with_a_text_apart_is_found_by_its_key(tmp_path, cache):
    """The parts are where they were."""
    names = [write(tmp_path, "a", make_text(300)), write(tmp_path, "b", make_text(200, seed=1))]
    corpus = load(names[0], cache=cache, valid=names[1])
    found = find_corpus(corpus.key, CorpusConfig(valid=names[1]), cache)
    assert parts(found) == parts(corpus) == [make_text(300), make_text(200, seed=1)[1:], ""]
    assert found.is_apart


def test_a_corpus_that_the_cache_has_not_is_not_found(tmp_path, cache):
    """Nor one that is damaged."""
    assert find_corpus("a" * 64, CorpusConfig(), cache) is None
    corpus = load(write(tmp_path, "a", make_text(300)), cache=cache)
    (path,) = cache.entries()
    path.write_bytes(path.read_bytes()[:-1])
    assert find_corpus(corpus.key, CorpusConfig(), cache) is None


def known(name, vocab, cache, **config):
    """Read a text in a model's characters, as the command line does."""
    return read_known(name, vocab, CorpusConfig(**config), SourceConfig(), cache)


@settings(deadline=None, max_examples=50)
@given(text=FEW, chars=st.sets(st.sampled_from("ab\n éz€😀" + UNKNOWN)), chunk=st.integers(2, 50))
@example(text="b" * 20, chars={"a"}, chunk=7)
def test_a_text_in_a_models_characters_is_what_its_vocabulary_makes_of_it(folder, shared, text, chars, chunk):
    """The same ids as of the whole text at once, and the same count of what is missing, most frequent first."""
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
def test_a_text_of_which_nothing_is_known_is_empty(tmp_path, cache, text):
    """No ids are an array, too, of the type that the others have."""
    vocab = Vocab("".join(map(chr, range(0x400, 0x400 + 300))))
    ids, unknown = known(write(tmp_path, "a", text), vocab, cache)
    assert (ids.shape, ids.dtype) == ((0,), np.uint16)
    assert unknown == dict(Counter(text))


@pytest.mark.parametrize("has_end", [True, False])
def test_documents_in_a_models_characters_keep_their_order(tmp_path, cache, has_end):
    """Their ends are known to a model that learnt documents."""
    vocab = Vocab("ab" + END * has_end)
    name = write(tmp_path, "a", "ab\n\nba\nbé")
    ids, unknown = known(name, vocab, cache, documents="lines")
    assert vocab.decode(ids) == "ab-ba-b-".replace("-", END * has_end)
    assert unknown == {"é": 1} | ({} if has_end else {END: 3})


def test_a_folder_in_a_models_characters_is_all_of_its_texts(tmp_path, cache):
    """In order; and what was read survives the files."""
    for name, text in (("b", "bbb"), ("a", "aab"), ("c", "cab")):
        write(tmp_path, f"texts/{name}", text)
    ids, unknown = known(str(tmp_path / "texts"), Vocab("ab"), cache)
    shutil.rmtree(tmp_path / "texts")
    assert Vocab("ab").decode(ids) == "aabbbbab"
    assert unknown == {"c": 1}
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_a_short_text_is_read_as_it_is(tmp_path, cache, monkeypatch):
    """A prompt may be empty, in a file or on stdin; its mark is dropped, and what isn't UTF-8 refused."""
    assert read_text(write(tmp_path, "a", "\ufeffOnce\r\n"), cache) == "Once\r\n"
    assert read_text(write(tmp_path, "a", ""), cache) == ""
    feed_stdin(monkeypatch, "é".encode())
    assert read_text("-", cache) == "é"
    with pytest.raises(InputError, match=r"byte 1 \(0xe9\)"):
        read_text(write(tmp_path, "a", b"a\xe9"), cache)
    assert list(cache.folder.iterdir()) == []


def test_the_facts_of_an_entry_are_those_of_the_text(tmp_path, cache):
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


# what goes wrong late


def test_documents_that_end_nowhere_when_read_again_have_changed(tmp_path, cache, monkeypatch):
    """The text is edited between the passes, and has no separator any more."""
    name = write(tmp_path, "a", "aaaa\n" * 20)
    chunks, calls = sources.Source.chunks, itertools.count()

    def changing(source, limit):
        if next(calls) == 1:
            write(tmp_path, "a", "a" * 200)
        return chunks(source, limit)

    monkeypatch.setattr(sources.Source, "chunks", changing)
    with pytest.raises(InputError, match="changed while"):
        load(name, cache=cache, documents="lines")


def test_a_file_that_goes_away_when_it_is_read_is_not_missed(tmp_path, cache, monkeypatch):
    """Nothing is asked of it after the second pass."""
    name, add = write(tmp_path, "a", make_text(200)), Cache.add

    def and_delete(*args):
        entry = add(*args)
        os.unlink(name)
        return entry

    monkeypatch.setattr(Cache, "add", and_delete)
    assert load(name, cache=cache).names == (name,)


def test_a_separator_of_documents_is_spelt_as_they_are(tmp_path, cache):
    """In bytes where bytes are learnt."""
    name = write(tmp_path, "a", "one§two§" * 20)
    corpus = load(name, cache=cache, bytes=True, documents="§")
    assert set(corpus.vocab.chars) == set("onetw") | {END}


def test_a_large_vocabulary_without_a_way_out_is_told_without_one(tmp_path, cache):
    """Where every character occurs once there is no smaller share to keep."""
    name = write(tmp_path, "a", "".join(map(chr, range(0x3400, 0x3400 + 20_001))))
    assert load(name, cache=cache).notes == ("20,001 distinct characters are most of the work",)


@pytest.mark.parametrize("allowed", [1000, 150_000])
def test_a_full_disk_while_a_text_is_scored_is_told(tmp_path, cache, allowed):
    """As while one is learnt."""
    resource = pytest.importorskip("resource")
    name = write(tmp_path, "a", "a" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        with pytest.raises(CharrnnError, match="XDG_CACHE_HOME"):
            read_known(name, Vocab("a"), CorpusConfig(), SourceConfig(), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
