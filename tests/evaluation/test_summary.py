"""Views of one pass over a text: totals, the first characters, the least predictable lines."""

import pytest

from charrnn.data.vocab import Vocab
from charrnn.evaluation.summary import summarise
from tests.evaluation.test_lines import eval_text, parts_of


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


def test_views_that_nobody_asked_for_are_empty():
    """The score is always there."""
    text = eval_text("ab\nab\n")
    found = summarise(parts_of(text, [2, 4]), text, Vocab.from_text("ab\n"))
    assert found.score.nats == 21
    assert len(found.first.ids) == 0
    assert found.hardest == []
