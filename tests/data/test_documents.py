"""Documents as ids: equal ones have equal hashes, others don't."""

import itertools

import numpy as np
import pytest

from charrnn.data import documents
from charrnn.data.documents import hash_documents, short_hashes

STOP = 0  # the id of a document's end


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
