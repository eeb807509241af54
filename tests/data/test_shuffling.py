"""Shuffling: documents keep their characters, in an order that only their number decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data import shuffling
from charrnn.data.shuffling import shuffle
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
