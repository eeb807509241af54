"""Random words."""

import numpy as np

from charrnn.numerics.philox import fill_words


def test_words_are_those_of_numpys_generator():
    """For any keys and counters, up to the largest, and for rows of any length."""
    rng = np.random.default_rng(0)
    for num_rows, num_words in [(1, 4), (3, 8), (20, 100), (2, 4000)]:
        keys = rng.integers(0, 2**64, (num_rows, 2), np.uint64)
        counters = rng.integers(0, 2**64 - num_words, (num_rows, 4), np.uint64)
        keys[0], counters[0, 1:] = np.uint64(2**64 - 1), np.uint64(2**64 - 1)
        found = np.empty((num_rows, num_words), np.uint64)
        fill_words(keys, counters, found)
        for row, key, counter in zip(found, keys, counters, strict=True):
            assert (row == np.random.Philox(key=key, counter=counter).random_raw(num_words)).all()
