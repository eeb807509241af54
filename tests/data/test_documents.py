"""Documents: where they end, how they are shuffled, and where the next one begins."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data import documents
from charrnn.data.characters import END
from charrnn.data.documents import end_documents, hash_documents, short_hashes, shuffle, split_documents, unescape

STOP = 0  # the id of a document's end
WIDTHS = [np.uint8, np.uint16, np.uint32]
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=8)
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=40)


def cut(whole, sizes):
    """Cut a text or an array into pieces of these lengths, repeatedly; none is empty."""
    pieces, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(whole):
            return pieces
        pieces.append(whole[start : start + size])
        start += size
    return pieces


def all_chunkings(whole):
    """Yield every way to cut a text into non-empty pieces."""
    for is_cut in itertools.product([False, True], repeat=max(0, len(whole) - 1)):
        cuts = [0, *(index for index, here in enumerate(is_cut, 1) if here), len(whole)]
        yield [whole[start:stop] for start, stop in itertools.pairwise(cuts) if stop > start]


def ended(parts):
    """Join the non-empty parts, each with END."""
    return "".join(part + END for part in parts if part)


def split_by(text, separator):
    """Split a text at a separator, searched from the left one character at a time."""
    parts, part, index = [], "", 0
    while index < len(text):
        if text.startswith(separator, index):
            parts.append(part)
            part, index = "", index + len(separator)
        else:
            part, index = part + text[index], index + 1
    return [*parts, part]


def paragraphs(text):
    """Return the runs of lines that contain more than spaces and tabs, without the last one's end."""
    lines = [found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", text)]
    groups = itertools.groupby(lines, key=lambda line: line.strip(" \t\r\n") == "")
    return [re.sub(r"(\r\n|\r|\n)\Z", "", "".join(lines)) for blank, lines in groups if not blank]


def documents_of(pieces, kind):
    """Join the documents after checking that no piece and no document is empty and each is ended."""
    pieces = list(end_documents(pieces, kind))
    text = "".join(pieces)
    assert all(pieces)
    assert END * 2 not in text
    assert not text.startswith(END)
    assert not text or text.endswith(END)
    return text


@settings(max_examples=50)
@given(text=st.text("ab\r\n \u2028"), sizes=SIZES)
def test_lines_are_documents(text, sizes):
    """A line feed, a carriage return or both end one; empty lines are dropped; the last line needs no end."""
    assert documents_of(cut(text, sizes), "lines") == ended(re.split("[\r\n]", text))


@settings(max_examples=100)
@given(text=st.text("ab\r\n \t\f"), blank=st.sampled_from(["", "\n\n", "\n \t\n\r\n"]), sizes=SIZES)
def test_blank_lines_separate_documents(text, blank, sizes):
    """One or more lines of spaces and tabs, also at the beginning and at the end."""
    text = blank + "x" + text
    assert documents_of(cut(text, sizes), "blank-lines") == ended(paragraphs(text))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("\n", []),
        ("\n\n\n", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\n", ["a"]),
        ("a\nb", ["a\nb"]),
        ("a\n\nb", ["a", "b"]),
        ("a\n\n\n\nb", ["a", "b"]),
        ("a\n \t \n\t\nb", ["a", "b"]),
        ("a\n  b\n\n  c\n", ["a\n  b", "  c"]),
        ("a \n\n b", ["a ", " b"]),
        ("a\r\n\r\nb\r\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a\r\nb"]),
        ("a\r\rb\rc\r", ["a", "b\rc"]),
        ("a\r \r\nb", ["a", "b"]),
        ("a\n\f\nb", ["a\n\f\nb"]),
        ("a\n\u00a0\nb", ["a\n\u00a0\nb"]),
        ("\n\na\n", ["a"]),
        ("a\n  ", ["a"]),
    ],
)
def test_examples_of_blank_lines(text, parts):
    """Indentation and single line feeds are kept; every way to cut the text gives the same result."""
    for pieces in all_chunkings(text):
        assert documents_of(pieces, "blank-lines") == ended(parts)


SEPARATORS = [
    "aa",
    "aba",
    "abab",
    "a",
    "<|end|>",
    ".*",
    "a|b",
    "(a",
    "[ab]",
    "\\",
    "$",
    "^",
    "\n%\n",
    "\n\n",
    "aab",
    "\r\n",
]


@settings(max_examples=100)
@given(separator=st.sampled_from(SEPARATORS), data=st.data(), sizes=SIZES)
def test_any_text_can_separate_documents(separator, data, sizes):
    """It is searched from the left, without overlaps, and literally, whatever it means in a pattern."""
    parts = st.one_of(st.just(separator), st.sampled_from(sorted(set(separator + "abc\n"))))
    text = "".join(data.draw(st.lists(parts, max_size=20)))
    assert documents_of(cut(text, sizes), separator) == ended(split_by(text, separator))


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("aaaaaaaaaaa", "aa"),
        ("aaaaaaaaaaa", "aaa"),
        ("abababababa", "aba"),
        ("x<|end|>y<", "<|end|>"),
        ("<|<|end|>y", "<|end|>"),
        ("x\n%\n\n%\ny%\n", "\n%\n"),
        ("aabaaabaab", "aab"),
    ],
)
def test_a_separator_is_found_across_pieces(text, separator):
    """Every way to cut the text gives the same result."""
    expected = ended(split_by(text, separator))
    for pieces in all_chunkings(text):
        assert documents_of(pieces, separator) == expected


@pytest.mark.parametrize(("kind", "separator"), [("lines", "\n"), ("blank-lines", "\n\n"), ("%%", "%%")])
@pytest.mark.parametrize("times", range(4))
def test_the_last_document_is_ended_once(kind, separator, times):
    """Whether or not separators follow it."""
    text = "a" + separator + "b" + times * separator
    assert documents_of([text], kind) == ended(["a", "b"])
    assert documents_of(list(text), kind) == ended(["a", "b"])


@pytest.mark.parametrize(("kind", "separator"), [("lines", "\n"), ("blank-lines", "\n\n"), ("%%", "%%")])
@pytest.mark.parametrize("times", range(4))
def test_separators_alone_give_no_documents(kind, separator, times):
    """Empty documents are dropped."""
    assert list(end_documents(list(separator * times), kind)) == []


@pytest.mark.parametrize("blank", ["\n", " ", "\r\n", "\r", " \n"])
def test_a_run_of_blanks_takes_linear_time_and_bounded_memory(monkeypatch, blank):
    """However long it is, no more than a few characters of it are looked at again with the next piece."""
    seen, split = [], documents._split

    def counted(text, *rest, **last):
        seen.append(len(text))
        return split(text, *rest, **last)

    monkeypatch.setattr(documents, "_split", counted)
    found = "".join(end_documents(["a\n", *[blank] * 1000, "b\n\nc"], "blank-lines"))
    assert found in (f"a{END}b{END}c{END}", f"a\n{blank * 1000}b{END}c{END}")
    assert sum(seen) < 20 * 1000
    assert blank == " " or max(seen) < 20


@pytest.mark.parametrize(
    ("kind", "piece"), [("lines", "ab\n"), ("blank-lines", "ab\n\n"), ("%%", "ab%%"), ("%%", "ab")]
)
def test_end_documents_is_incremental(kind, piece):
    """An endless text is read no further than needed."""
    first = "".join(itertools.islice(end_documents(itertools.repeat(piece), kind), 3))
    assert re.match("ab", first)


def ids_of(docs, dtype=np.uint8):
    """Return documents as one array, each followed by the end."""
    return np.array([char for doc in docs for char in [*doc, STOP]], dtype)


def docs_of(ids):
    """Return the documents in an array that ends with an end."""
    found, doc = [], []
    for char in ids.tolist():
        if char == STOP:
            found.append(tuple(doc))
            doc = []
        else:
            doc.append(char)
    assert doc == []
    return found


def shuffled(pieces, folder, num_ids):
    """Return the shuffled ids as one array."""
    return np.concatenate(list(shuffle(pieces, STOP, num_ids=num_ids, folder=folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Share one folder between all examples of a property."""
    return tmp_path_factory.mktemp("shuffled")


@settings(max_examples=40)
@given(docs=DOCUMENTS, sizes=SIZES, bucket=st.sampled_from([1, 8, 50, 1 << 22]), dtype=st.sampled_from(WIDTHS))
def test_shuffle_keeps_every_document(folder, docs, sizes, bucket, dtype):
    """In one piece, with the same dtype; the result does not depend on how the ids were cut."""
    ids = ids_of(docs, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BUCKET", bucket)
        patch.setattr(documents, "_BATCH", 3)
        found = shuffled(cut(ids, sizes), folder, len(ids))
        whole = shuffled([ids], folder, len(ids))
    assert found.dtype == dtype
    assert sorted(docs_of(found)) == sorted(map(tuple, docs))
    assert found.tolist() == whole.tolist()


@settings(max_examples=20)
@given(data=st.data(), number=st.integers(1, 60), bucket=st.sampled_from([16, 1 << 22]))
def test_the_order_depends_only_on_the_number_of_documents(folder, data, number, bucket):
    """Documents with other contents go to the same positions."""
    marks = [[1 + index // 9, 1 + index % 9] for index in range(number)]
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=number, max_size=number))
    others = [[mark[0]] + [9] * length for mark, length in zip(marks, lengths, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BUCKET", bucket)
        order = [marks.index(list(doc)) for doc in docs_of(shuffled([ids_of(marks)], folder, 3 * number))]
        found = docs_of(shuffled(cut(ids_of(others), [5]), folder, 3 * number))
    assert found == [tuple(others[index]) for index in order]


@pytest.mark.parametrize("bucket", [100, 1000, 1 << 22])
def test_shuffle_is_random(tmp_path, monkeypatch, bucket):
    """Old and new positions are uncorrelated, in every part of the text."""
    monkeypatch.setattr(documents, "_BUCKET", bucket)
    number = 5000
    docs = [[1 + index // 100, 1 + index % 100] for index in range(number)]
    found = docs_of(shuffled(cut(ids_of(docs), [999]), tmp_path, 3 * number))
    order = np.array([100 * (first - 1) + second - 1 for first, second in found])
    assert sorted(order.tolist()) == list(range(number))
    assert abs(np.corrcoef(order, np.arange(number))[0, 1]) < 5 / np.sqrt(number)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(number)
    for tenth in np.split(order, 10):
        assert abs(tenth.mean() / number - 0.5) < 5 * np.sqrt(1 / 12 / len(tenth))


def test_shuffle_removes_its_files(tmp_path, monkeypatch):
    """When it is finished or stopped early."""
    monkeypatch.setattr(documents, "_BUCKET", 10)
    ids = ids_of([[1], [2, 3]] * 50)
    shuffled([ids], tmp_path, len(ids))
    half = shuffle([ids], STOP, num_ids=len(ids), folder=tmp_path)
    next(half)
    half.close()
    assert list(tmp_path.iterdir()) == []


def naive_split(ids, valid_start, test_start):
    """Choose among all starts of documents the nearest ones that leave a document for each part."""
    starts = [index + 1 for index, char in enumerate(ids[:-1]) if char == STOP]
    has_test = test_start < len(ids)
    if len(starts) < 1 + has_test:
        return None
    valid = min(starts[:-1] if has_test else starts, key=lambda start: (abs(start - valid_start), -start))
    later = [start for start in starts if start > valid]
    return valid, min(later, key=lambda start: (abs(start - test_start), -start)) if has_test else len(ids)


@settings(max_examples=200)
@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    bucket=st.sampled_from([1, 2, 3, 7, 1 << 22]),
    data=st.data(),
)
def test_a_text_is_split_at_the_nearest_documents(ids, bucket, data):
    """On either side of the requested positions, for any size of the pieces that are scanned."""
    valid_start = data.draw(st.integers(1, len(ids)))
    test_start = data.draw(st.one_of(st.just(len(ids)), st.integers(valid_start, len(ids))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BUCKET", bucket)
        found = split_documents(np.array(ids, np.uint8), STOP, valid_start=valid_start, test_start=test_start)
    assert found == naive_split(ids, valid_start, test_start)


@pytest.mark.parametrize(("position", "expected"), [(1, 3), (3, 3), (4, 5), (5, 5), (6, 5), (7, 5)])
def test_examples_of_a_split(position, expected):
    """No document begins where the text ends; of two at the same distance the later one is chosen."""
    ids = np.array([1, 1, 0, 2, 0, 3, 3, 0], np.uint8)
    assert split_documents(ids, STOP, valid_start=position, test_start=8) == (expected, 8)
    assert split_documents(ids, STOP, valid_start=position, test_start=7) == (3, 5)
    assert split_documents(ids[:5], STOP, valid_start=position, test_start=4) is None
    assert split_documents(ids[:3], STOP, valid_start=position, test_start=3) is None


@pytest.mark.parametrize(
    ("text", "separator", "parts"),
    [
        (">one\nAC\n>two\nGT\n", ">", [">one\nAC\n", ">two\nGT\n"]),
        ("; a comment\n>one\nAC\n", ">", ["; a comment\n", ">one\nAC\n"]),
        ("[Event a]\n1. e4\n\n[Event b]\n1. d4\n", "[Event", ["[Event a]\n1. e4\n\n", "[Event b]\n1. d4\n"]),
        (">>>a>", ">", [">a"]),
        (">", ">", []),
        ("", ">", []),
        ("a\n%\nb\n%\n", r"\n%\n", ["a", "\n%\nb"]),
    ],
)
def test_a_separator_can_be_kept(text, separator, parts):
    """At the beginning of the document that follows; every way to cut the text gives the same result."""
    chunkings = all_chunkings(text) if len(text) < 12 else [cut(text, [size]) for size in (1, 2, 3, 5, 99)]
    for pieces in chunkings:
        assert "".join(end_documents(pieces, separator, keep_separator=True)) == ended(parts)


@pytest.mark.parametrize(
    ("separator", "text"),
    [
        (r"\n", "\n"),
        (r"\n%\n", "\n%\n"),
        (r"\t", "\t"),
        (r"\r\n", "\r\n"),
        (r"\\", "\\"),
        (r"\\n", "\\n"),
        ("\\", "\\"),
        (r"\section", r"\section"),
        ("\n\t", "\n\t"),
        (r"\lines", "lines"),
        (r"\nlines", "\nlines"),
        (r"\blank-line", "blank-line"),
        ("###", "###"),
    ],
)
def test_escapes_in_a_separator(separator, text):
    """As people write them in single quotes; any other backslash is itself, but for one before a keyword."""
    assert unescape(separator) == text
    assert documents_of([f"one{text}two"], separator) == ended(["one", "two"])


@pytest.mark.parametrize("lines", ["\n", " \n", "\n\n", "\t\n \r\n"])
def test_blank_lines_at_the_beginning_are_dropped(lines):
    """One is enough there, because the beginning counts as a boundary."""
    for size in (1, 2, 99):
        text = lines + "a\nb\n\nc"
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert "".join(end_documents(pieces, "blank-lines")) == f"a\nb{END}c{END}"
    assert "".join(end_documents([" a\n\n"], "blank-lines")) == f" a{END}"


# hashes


@pytest.mark.parametrize("piece", [1, 10, 1 << 22])
def test_equal_documents_have_equal_hashes(monkeypatch, piece):
    """Wherever the pieces that are hashed at a time are cut; an incomplete last document has none."""
    monkeypatch.setattr(documents, "_PIECE", piece)
    generator, end = np.random.default_rng(0), 9
    ids = generator.choice(np.array([0, 1, 2, end], np.uint16), 2000)
    texts = "".join(map(str, ids)).split(str(end))[:-1]
    hashes = hash_documents(ids, end).tolist()
    assert len(hashes) == len(texts)
    assert len(set(zip(texts, hashes, strict=True))) == len(set(texts)) == len(set(hashes))
    assert hash_documents(np.array([1, 2], np.uint8), end).tolist() == []


def naive_hash(document):
    """The 32-bit hash of a document by the rule in docs/formats.md, with Python's integers."""
    factor, value = 0x9E3779B97F4A7C15, 0
    for place, char in enumerate(document):
        mixed = (char + 1) * 0xD6E8FEB86659FD93 % 2**64
        value += (mixed ^ mixed >> 32) * factor ** (place + 1)
    for _ in range(2):
        value = ((value ^ value % 2**64 >> 32) % 2**64) * factor % 2**64
    return value >> 32


def test_short_hashes_follow_the_published_rule():
    """So that another program can test whether a model knows a document."""
    texts = [[3, 1, 0], [0], [255, 7, 7, 7, 0]]
    found = short_hashes(hash_documents(np.array([*itertools.chain(*texts)], np.uint8), STOP))
    assert found.tolist() == [naive_hash(text) for text in texts]
    assert found.dtype == np.uint32


@pytest.mark.parametrize(("base", "length"), [(2, 16), (4, 8), (10, 5), (40, 3)])
def test_short_hashes_of_similar_documents_collide_as_seldom_as_random_ones(base, length):
    """All texts of a few characters: of n hashes, about n^2 / 2^33 pairs collide."""
    texts = np.array([[*text, STOP] for text in itertools.product(range(1, base + 1), repeat=length)], np.uint8)
    hashes = short_hashes(hash_documents(texts.ravel(), STOP))
    assert len(hashes) == base**length
    assert len(hashes) - len(np.unique(hashes)) <= 5
