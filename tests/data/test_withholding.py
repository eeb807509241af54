"""Pieces kept from the network: where they are, and what is left."""

import numpy as np
import pytest

from charrnn.data import batches as withholding
from charrnn.data.batches import PIECE_SIZE, TrainText, make_train_text


@pytest.mark.parametrize("starts", [[], [0], [3000], [500, 2500, 4000], [1000, 2000, 3000]])
def test_what_is_left_is_the_text_without_the_pieces(starts):
    """At any places, in any shape, and as a copy."""
    ids = np.random.default_rng(0).integers(0, 250, 5000).astype(np.uint8)
    text = TrainText(ids, np.array(starts, np.int64))
    pieces = [place for start in starts for place in range(start, start + PIECE_SIZE)]
    expected = np.delete(ids, pieces)
    assert len(text) == len(expected)
    assert (text[np.arange(len(text))] == expected).all()
    places = np.random.default_rng(1).integers(0, len(text), (7, 11))
    assert (text[places] == expected[places]).all()
    assert (text.left(0) == expected).all()
    later = np.delete(ids, pieces + list(range(2200)))
    if all(start >= 2200 or start + PIECE_SIZE <= 2200 for start in starts):
        assert (text.left(2200) == later).all()


@pytest.mark.parametrize(
    ("num_chars", "vocab_size", "count"),
    [
        (39_999, 65, 0),
        (40_000, 65, 1),
        (1_000_000, 65, 25),
        (2_000_000, 65, 30),
        (2_000_000, 30, 50),
        (1_000_000, 4000, 1),
    ],
)
def test_one_in_forty_is_withheld(num_chars, vocab_size, count):
    """Up to fifty pieces, and fewer of many characters; evenly spread, and with text before each."""
    text = make_train_text(np.zeros(num_chars, np.uint8), vocab_size)
    assert len(text.starts) == count
    assert len(text) == num_chars - count * PIECE_SIZE
    if count:
        assert text.starts[0] >= num_chars // (2 * count) - PIECE_SIZE
        assert text.starts[-1] + PIECE_SIZE <= num_chars
        assert (np.abs(np.diff(text.starts, 2)) <= 1).all()


def test_a_text_of_very_many_characters_keeps_nothing_back():
    """Whose distributions would be most of the work."""
    assert len(make_train_text(np.zeros(100_000, np.uint16), withholding.MOST_DISTINCT + 1).starts) == 0


def test_of_a_very_long_text_the_pieces_are_in_its_end(monkeypatch):
    """Where n-grams are counted."""
    monkeypatch.setattr(withholding, "MOST_COUNTED", 100_000)
    text = make_train_text(np.zeros(1_000_000, np.uint8), 65)
    assert len(text.starts) == 2
    assert text.starts.min() >= 900_000
