"""Views of one pass over a text: lines, totals, the first characters, the least predictable lines."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Line
from charrnn.evaluation.summary import LONG_LINE, LineSplitter, excerpt, hardest_lines, summarise
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.head import Predictions
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars


def eval_text(text, *, before="", first_number=1, unknown=None, vocab=None):
    """A text to score after what comes before it in its first line; unknown: one character at its beginning."""
    vocab = vocab or Vocab.from_text(before + text)
    ids, unknown_chars = vocab.encode_around((unknown or "") + before + text)
    split = len(vocab.encode_known(before)[0])
    return EvalText("a", "a", ids[split:], ids[:split], unknown_chars, num_before=split, first_number=first_number)


def parts_of(text, sizes):
    """Predictions in parts of these sizes, in which each character has as many nats as its number in the text."""
    ids, nats = text.ids, np.arange(1.0, len(text.ids) + 1)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        empty = np.empty((stop - start, 0), np.int32)
        yield Predictions(ids[start:stop], nats[start:stop], empty, empty, empty, empty)


def split_lines(text, vocab, sizes):
    """The lines of a text whose predictions come in parts of these sizes."""
    splitter = LineSplitter(text, vocab)
    lines = [line for part in parts_of(text, sizes) for line in splitter.split(part)]
    return [*lines, *splitter.rest()]


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [3, 1, 8], [4, 4, 4]])
def test_a_line_has_the_nats_of_its_characters(sizes):
    """Its newline counts, and so does an unfinished last line, wherever the parts are cut."""
    lines = split_lines(eval_text("ab\n\ncde\nfghi"), Vocab.from_text("ab\n\ncde\nfghi"), sizes)
    assert [(line.number, line.text, line.nats, line.num_chars, line.start) for line in lines] == [
        (1, "ab", 6.0, 3, 0),
        (2, "", 4.0, 1, 3),
        (3, "cde", 26.0, 4, 4),
        (4, "fghi", 42.0, 4, 8),
    ]


@given(
    text=st.text("ab\n★é", min_size=1, max_size=30),
    known=st.sampled_from(["ab\n", "ab", "\n★", "ab\né" + UNKNOWN, UNKNOWN]),
    size=st.integers(1, 5),
)
@example(text="★\n★★\na★", known="ab\n", size=2)
def test_lines_are_those_of_the_file(text, known, size):
    """With the first character, which is only fed, and with unknown ones, which are counted."""
    vocab = Vocab("".join(sorted(known)))
    ids, unknown_chars = vocab.encode_around(text)
    num_before = min(1, len(ids))
    scored = EvalText("a", "a", ids[num_before:], ids[:num_before], unknown_chars, num_before=num_before)
    lines = split_lines(scored, vocab, [size] * (len(scored.ids) // size) + [len(scored.ids) % size])
    assert [line.text for line in lines] == text.removesuffix("\n").split("\n")
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert [line.num_unknown for line in lines] == [
        sum(char not in known for char in line) for line in text.splitlines(keepends=True)
    ]
    is_rare = ids[num_before:] == vocab.id_of(UNKNOWN)
    assert sum(line.num_chars for line in lines) == np.count_nonzero(~is_rare)
    assert sum(line.nats for line in lines) == (1 + np.flatnonzero(~is_rare)).sum()


def test_the_first_line_begins_before_the_scored_part():
    """As in the held-out part of a text; its number is that of the file."""
    text = eval_text("lo\nyou\n", before="hel", first_number=7)
    lines = split_lines(text, Vocab.from_text("hello\nyou"), [7])
    assert [(line.number, line.text, line.num_chars) for line in lines] == [(7, "hello", 3), (8, "you", 4)]


def test_a_document_ends_a_line_and_rare_characters_are_not_scored():
    """A line of rare characters only has no bits per character; lines of a document have its number."""
    vocab = Vocab.from_text(f"ab\n{UNKNOWN}{END}")
    lines = split_lines(eval_text(f"a{UNKNOWN}{END}{UNKNOWN}\nb", vocab=vocab), vocab, [6])
    assert [(line.number, line.text, line.nats, line.num_chars, line.num_unknown) for line in lines] == [
        (1, "a\ufffd", 4.0, 2, 1),
        (2, "\ufffd", 5.0, 1, 1),
        (2, "b", 6.0, 1, 0),
    ]
    assert all(line.is_document for line in lines)
    (lone,) = split_lines(eval_text(UNKNOWN, vocab=vocab), vocab, [1])
    assert (lone.num_chars, lone.bits, lone.bits_per_char) == (0, 0.0, 0.0)


def test_lines_of_bytes_are_decoded():
    """Bytes that are not UTF-8 are replaced."""
    text = bytes_as_chars("né\n") + "\udcff"
    lines = split_lines(eval_text(text), Vocab.from_text(text), [len(text)])
    assert [(line.text, line.num_chars) for line in lines] == [("né", 4), ("\ufffd", 1)]


def test_unknown_characters_make_a_line_hard():
    """Then its bits per character; a short line of a running text comes last, a short document doesn't."""
    lines = [
        Line(1, "easy enough", 10.0, LONG_LINE),
        Line(2, "", 9.0, 1),
        Line(3, "surprising", 40.0, LONG_LINE),
        Line(4, "★ of ten characters", 11.0, LONG_LINE, num_unknown=1),
        Line(5, "★★", 1.0, 1, num_unknown=2),
    ]
    assert [line.number for line in hardest_lines(lines, 9)] == [5, 4, 3, 1, 2]
    assert [line.number for line in hardest_lines(lines, 2)] == [5, 4]
    documents = [Line(1, "lj", 9.0, 1, is_document=True), Line(2, "annabelle", 30.0, 10, is_document=True)]
    assert [line.number for line in hardest_lines(documents, 2)] == [1, 2]


@pytest.mark.parametrize("sizes", [[33], [10, 23], [1] * 33, [12, 12, 9]])
def test_one_pass_gives_all_views(sizes):
    """The total, as many first predictions as asked for, and the hardest lines."""
    text = eval_text("0123456789\nshort\nabcdefghijklmno\n", unknown="é")
    vocab = Vocab.from_text("0123456789short\nabcdefghijklmno\n")
    found = summarise(parts_of(text, sizes), text, vocab, num_first=12, num_hardest=1)
    assert found.score.nats == sum(range(1, 34))
    assert (found.score.num_chars, found.score.unknown, found.score.experts) == (33, {"é": 1}, None)
    assert vocab.decode(found.first.ids) == "0123456789\ns"
    assert found.first.nats.tolist() == list(range(1, 13))
    assert [line.text for line in found.hardest] == ["é0123456789"]
    both = summarise(parts_of(text, sizes), text, vocab, num_first=99, num_hardest=9)
    assert [line.number for line in both.hardest] == [1, 3, 2]
    assert len(both.first.ids) == 33


def test_an_excerpt_has_the_characters_that_are_not_scored():
    """Those before the text in its first line, and unknown and rare ones, with 0 nats."""
    text = eval_text("def\ngh\n", before="abc", unknown="é")
    vocab = Vocab.from_text("abcdef\ngh\n")
    first = summarise(parts_of(text, [7]), text, vocab, num_first=7).first
    start, nats = excerpt(text, first, vocab, 5)
    assert start == "éabcdef\ng"
    assert nats.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    start, nats = excerpt(text, first, vocab, 2)  # of a long first line only as many are shown
    assert start == "bcde"
    assert nats.tolist() == [0, 0, 1, 2]
    rare = Vocab("ab" + UNKNOWN)
    text = eval_text("azb", unknown="é", vocab=rare)
    first = summarise(parts_of(text, [4]), text, rare, num_first=4).first
    start, nats = excerpt(text, first, rare, 9)
    assert start == "éazb"
    assert nats.tolist() == [0, 2, 0, 4]


def test_views_that_nobody_asked_for_are_empty():
    """The score is always there."""
    text = eval_text("ab\nab\n")
    found = summarise(parts_of(text, [2, 4]), text, Vocab.from_text("ab\n"))
    assert found.score.nats == 21
    assert len(found.first.ids) == 0
    assert found.hardest == []
