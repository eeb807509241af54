"""Views of one pass over a text: lines, totals, the first characters, the least predictable lines."""

import itertools

import numpy as np
import pytest

from charrnn.data.vocab import END, UNKNOWN, Vocab, bytes_as_chars
from charrnn.evaluation.summary import LineSplitter, summarise
from charrnn.kernels.head import Predictions


def parts_of(text, vocab, sizes):
    """Predictions in parts of these sizes, in which each character has as many nats as its number in the text."""
    ids, nats = vocab.encode(text), np.arange(1.0, len(text) + 1)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        empty = np.empty((stop - start, 0), np.int32)
        yield Predictions(ids[start:stop], nats[start:stop], empty, empty, empty, empty)


def split_lines(text, sizes):
    """The lines of a text whose predictions come in parts of these sizes."""
    vocab = Vocab.from_text(text)
    splitter = LineSplitter(vocab)
    lines = [line for part in parts_of(text, vocab, sizes) for line in splitter.split(part)]
    return [*lines, *splitter.rest()]


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [3, 1, 8], [4, 4, 4]])
def test_a_line_has_the_nats_of_its_characters(sizes):
    """Its newline counts, and so does an unfinished last line, wherever the parts are cut."""
    lines = split_lines("ab\n\ncde\nfghi", sizes)
    assert [(line.number, line.text, line.nats, line.num_chars) for line in lines] == [
        (1, "ab", 6.0, 3),
        (2, "", 4.0, 1),
        (3, "cde", 26.0, 4),
        (4, "fghi", 42.0, 4),
    ]


def test_a_document_ends_a_line_and_rare_characters_are_not_scored():
    """A line of rare characters only has no bits per character."""
    lines = split_lines(f"a{UNKNOWN}{END}{UNKNOWN}\nb", [6])
    assert [(line.text, line.nats, line.num_chars) for line in lines] == [
        ("a\ufffd", 4.0, 2),
        ("\ufffd", 5.0, 1),
        ("b", 6.0, 1),
    ]
    (lone,) = split_lines(UNKNOWN, [1])
    assert (lone.num_chars, lone.bits, lone.bits_per_char) == (0, 0.0, 0.0)


def test_lines_of_bytes_are_decoded():
    """Bytes that are not UTF-8 are replaced."""
    text = bytes_as_chars("né\n") + "\udcff"
    assert [(line.text, line.num_chars) for line in split_lines(text, [len(text)])] == [("né", 4), ("\ufffd", 1)]


@pytest.mark.parametrize("sizes", [[33], [10, 23], [1] * 33, [12, 12, 9]])
def test_one_pass_gives_all_views(sizes):
    """The total, as many first predictions as asked for, and the hardest lines that are long enough."""
    text = "0123456789\nshort\nabcdefghijklmno\n"
    vocab = Vocab.from_text(text)
    found = summarise(parts_of(text, vocab, sizes), vocab, unknown={"é": 2}, num_first=12, num_hardest=1)
    assert found.score.nats == sum(range(1, 34))
    assert (found.score.num_chars, found.score.unknown, found.score.experts) == (33, {"é": 2}, None)
    assert vocab.decode(found.first.ids) == text[:12]
    assert found.first.nats.tolist() == list(range(1, 13))
    assert [line.text for line in found.hardest] == ["abcdefghijklmno"]
    both = summarise(parts_of(text, vocab, sizes), vocab, unknown={}, num_first=99, num_hardest=9)
    assert [line.number for line in both.hardest] == [3, 1]
    assert len(both.first.ids) == 33


def test_views_that_nobody_asked_for_are_empty():
    """The score is always there."""
    vocab = Vocab.from_text("ab\n")
    found = summarise(parts_of("ab\nab\n", vocab, [2, 4]), vocab, unknown={})
    assert found.score.nats == 21
    assert len(found.first.ids) == 0
    assert found.hardest == []
