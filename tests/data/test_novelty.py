"""How new a held-out text is: exact shares, no alarm for ordinary texts, an alarm for another language."""

from pathlib import Path

import numpy as np
import pytest

from charrnn.data.novelty import novelty, unusual_novelty
from charrnn.data.vocab import Vocab
from tests.conftest import make_text

POEMS = (Path(__file__).parents[2] / "corpora" / "poems.txt").read_text(encoding="utf-8")


def ids_of(*texts):
    """The ids of texts under one vocabulary."""
    vocab = Vocab.from_text("".join(texts))
    return [vocab.encode(text) for text in texts]


def test_novelty_counts_the_n_grams_that_do_not_occur():
    """Each occurrence counts."""
    train, ids = ids_of("abcabd", "abcaxabx")
    assert novelty(train, ids) == 4 / 6  # abc and bca occur; cax, axa, xab and abx do not
    assert novelty(train, train) == 0.0


def test_ids_of_any_size_are_told_apart():
    """The largest id of a vocabulary needs 21 bits."""
    largest = 0x10FFFF
    train = np.array([largest, 0, largest, largest], np.uint32)
    assert novelty(train, np.array([largest, 0, largest], np.uint32)) == 0.0
    assert novelty(train, np.array([0, largest, 0], np.uint32)) == 1.0


@pytest.mark.parametrize("size", [2000, 12_000, len(POEMS)])
def test_the_end_of_an_ordinary_text_is_not_unusual(size):
    """Neither of a short text, where most n-grams are new anyway, nor of a long one."""
    for start in range(0, len(POEMS) - size + 1, 30_000):
        text = POEMS[start : start + size]
        assert unusual_novelty(*ids_of(text[: size * 9 // 10], text[size * 9 // 10 :])) is None


def test_another_language_at_the_end_is_unusual():
    """Both shares are returned."""
    train, held_out = ids_of(POEMS[:20_000], make_text(2000))
    share, usual = unusual_novelty(train, held_out)
    assert share == novelty(train, held_out) > 0.3
    assert usual == novelty(train[:-2000], train[-2000:]) < 0.15
    assert unusual_novelty(train, held_out[:999]) is None
