"""Similar characters: those whose embeddings point in similar directions.

Letters: N characters, V vocabulary, E embedding.
"""

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Vocab
from charrnn.inspection.findings import Alike
from charrnn.text.characters import UNKNOWN

NUM_CHARS, NUM_NEAREST = 16, 3
MIN_COUNT = 10  # in the text; the embedding of a rarer one has hardly been trained


def find_alike(embedding: NDArray[np.float32], ids: NDArray[np.int64], vocab: Vocab) -> tuple[Alike, ...] | None:
    """Find the most similar characters of the most frequent ones in a text, by the cosine of their embeddings (V, E).

    ids: (N,). Characters that occur only a few times are left out; None if there are fewer than two others.
    """
    counts = np.bincount(ids, minlength=len(vocab))
    counts[[char == UNKNOWN for char in vocab.chars]] = 0
    known = np.flatnonzero(counts >= MIN_COUNT)
    if len(known) < 2:
        return None
    order = known[counts[known].argsort(kind="stable")[::-1]]
    vectors = embedding[order].astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    found = []
    for row, index in zip(cosines[:NUM_CHARS], order[:NUM_CHARS].tolist(), strict=True):
        nearest = row.argsort(kind="stable")[::-1][: min(NUM_NEAREST, len(order) - 1)]
        pairs = tuple((vocab.chars[order[other]], float(row[other])) for other in nearest)
        found.append(Alike(vocab.chars[index], pairs))
    return tuple(found)
