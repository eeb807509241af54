"""Characters alike: the nearest by the cosine of their embeddings."""

import numpy as np
import pytest

from charrnn.data.vocab import Vocab
from charrnn.inspection.alike import MIN_COUNT, NUM_CHARS, find_alike
from charrnn.text.characters import UNKNOWN


def test_the_nearest_are_those_of_the_largest_cosine():
    """For each frequent character, the most frequent first; a length does not matter."""
    vocab = Vocab("abcd")
    embedding = np.array([[1, 0], [2, 0.1], [0, 3], [-1, 0]], np.float32)
    ids = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    found = find_alike(embedding, ids, vocab)
    assert [one.char for one in found] == ["a", "b", "c", "d"]
    assert [char for char, _ in found[0].nearest] == ["b", "c", "d"]
    cosines = [cosine for _, cosine in found[0].nearest]
    assert cosines == pytest.approx([2 / np.hypot(2, 0.1), 0.0, -1.0], abs=1e-6)


def test_characters_that_are_seldom_or_unknown_are_left_out():
    """Their embeddings have learnt nothing."""
    vocab = Vocab("abc" + UNKNOWN)
    ids = np.repeat([0, 1, 2, 3], [MIN_COUNT, MIN_COUNT, MIN_COUNT - 1, 50])
    found = find_alike(np.eye(4, dtype=np.float32), ids, vocab)
    assert {one.char for one in found} == {"a", "b"}
    assert [char for char, _ in found[0].nearest] in (["a"], ["b"])
    assert find_alike(np.eye(4, dtype=np.float32), ids[:MIN_COUNT], vocab) is None


def test_the_table_is_short_and_zeros_are_no_division_by_zero():
    """At most sixteen characters, three others each."""
    vocab = Vocab("".join(map(chr, range(40, 80))))
    found = find_alike(np.zeros((40, 3), np.float32), np.tile(np.arange(40), MIN_COUNT), vocab)
    assert len(found) == NUM_CHARS
    assert all(len(one.nearest) == 3 for one in found)
    for one in found:
        assert one.char not in dict(one.nearest)
        assert np.isfinite(list(dict(one.nearest).values())).all()
