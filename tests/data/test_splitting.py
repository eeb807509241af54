"""Splitting: the held-out text begins at the document nearest to the wanted place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data import splitting
from charrnn.data.splitting import split_documents

STOP = 0  # the id of a document's end


def naive_split(ids, valid_start, test_start):
    """Choose among all starts of documents the nearest ones that leave a document for each part."""
    starts = [index + 1 for index, char in enumerate(ids[:-1]) if char == STOP]
    has_test = test_start < len(ids)
    if len(starts) < 1 + has_test:
        return None
    valid = min(starts[:-1] if has_test else starts, key=lambda start: (abs(start - valid_start), -start))
    later = [start for start in starts if start > valid]
    return valid, min(later, key=lambda start: (abs(start - test_start), -start)) if has_test else len(ids)


@settings(max_examples=200)
@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    bucket=st.sampled_from([1, 2, 3, 7, 1 << 22]),
    data=st.data(),
)
def test_a_text_is_split_at_the_nearest_documents(ids, bucket, data):
    """On either side of the requested positions, for any size of the pieces that are scanned."""
    valid_start = data.draw(st.integers(1, len(ids)))
    test_start = data.draw(st.one_of(st.just(len(ids)), st.integers(valid_start, len(ids))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_PIECE", bucket)
        found = split_documents(np.array(ids, np.uint8), STOP, valid_start=valid_start, test_start=test_start)
    assert found == naive_split(ids, valid_start, test_start)


@pytest.mark.parametrize(("position", "expected"), [(1, 3), (3, 3), (4, 5), (5, 5), (6, 5), (7, 5)])
def test_examples_of_a_split(position, expected):
    """No document begins where the text ends; of two at the same distance the later one is chosen."""
    ids = np.array([1, 1, 0, 2, 0, 3, 3, 0], np.uint8)
    assert split_documents(ids, STOP, valid_start=position, test_start=8) == (expected, 8)
    assert split_documents(ids, STOP, valid_start=position, test_start=7) == (3, 5)
    assert split_documents(ids[:5], STOP, valid_start=position, test_start=4) is None
    assert split_documents(ids[:3], STOP, valid_start=position, test_start=3) is None
