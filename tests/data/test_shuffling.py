"""Shuffling: documents keep their characters, in an order that only their number decides; their hashes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data import shuffling
from charrnn.data.shuffling import hash_documents, short_hashes, shuffle
from tests.conftest import cut

STOP = 0  # the id of a document's end
WIDTHS = [np.uint8, np.uint16, np.uint32]
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=8)
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=40)


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
        patch.setattr(shuffling, "_BUCKET", bucket)
        patch.setattr(shuffling, "_BATCH", 3)
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
        patch.setattr(shuffling, "_BUCKET", bucket)
        order = [marks.index(list(doc)) for doc in docs_of(shuffled([ids_of(marks)], folder, 3 * number))]
        found = docs_of(shuffled(cut(ids_of(others), [5]), folder, 3 * number))
    assert found == [tuple(others[index]) for index in order]


@pytest.mark.parametrize("bucket", [100, 1000, 1 << 22])
def test_shuffle_is_random(tmp_path, monkeypatch, bucket):
    """Old and new positions are uncorrelated, in every part of the text."""
    monkeypatch.setattr(shuffling, "_BUCKET", bucket)
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
    monkeypatch.setattr(shuffling, "_BUCKET", 10)
    ids = ids_of([[1], [2, 3]] * 50)
    shuffled([ids], tmp_path, len(ids))
    half = shuffle([ids], STOP, num_ids=len(ids), folder=tmp_path)
    next(half)
    half.close()
    assert list(tmp_path.iterdir()) == []


# hashes


@pytest.mark.parametrize("piece", [1, 10, 1 << 22])
def test_equal_documents_have_equal_hashes(monkeypatch, piece):
    """Wherever the pieces that are hashed at a time are cut; an incomplete last document has none."""
    monkeypatch.setattr(shuffling, "_PIECE", piece)
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
