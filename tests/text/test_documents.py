"""Documents: where they begin and end, whatever separates them."""

import io
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.text import documents
from charrnn.text.characters import END
from charrnn.text.documents import end_documents, end_lines, unescape
from tests.conftest import cut

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=8)


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


@given(st.text("a b\r\n", max_size=40), st.integers(1, 9), st.sampled_from(["", "x:"]))
def test_each_line_can_be_a_document(text, size, label):
    """Also an empty one, wherever the pieces are cut."""
    lines = io.StringIO(text, newline="").readlines()
    expected = "".join(label + line.rstrip("\r\n") + END for line in lines)
    assert "".join(end_lines((text[start : start + size] for start in range(0, len(text), size)), label)) == expected
