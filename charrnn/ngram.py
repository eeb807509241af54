"""n-grams, smoothed by interpolated modified Kneser-Ney: how well counting alone predicts a text.

The probability of a character after the n-1 before it is its discounted share of what followed
them, and for the rest what the n-2 before it say. The longest n-grams count how often they
occur; shorter ones, after how many different characters. The discounts follow from how many
n-grams were seen once, twice, three and four times.
Source: Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling".

Letters: N characters, V vocabulary, K n-grams of a length, P of one less.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.ngrams import Doubles, Ints, count_before, discounted, find, grow

MAX_ORDER = 12


def nats_by_order(
    train: NDArray[Any], ids: NDArray[Any], *, context: NDArray[Any], vocab_size: int
) -> Iterator[Doubles]:
    """The nats that each character of a text costs, (N,), by n-grams of order 1, 2, … up to 12, or train's length.

    train: what is counted; context: what comes before the text; all hold ids below vocab_size. Two
    lengths of n-grams are in memory at a time, about 50 bytes a character of train.
    """
    train = np.array(train)  # kernels are compiled anew for arrays that are read-only
    before = min(MAX_ORDER, len(context))
    text = np.concatenate([context[len(context) - before :], ids])
    ends, found = np.zeros(len(train), np.int32), np.zeros(len(text), np.int32)  # the node that ends before each
    lower, num_nodes, shorter = np.full(len(text), 1 / vocab_size), 1, None
    for _ in range(MAX_ORDER):
        nodes, level = grow(train, ends, num_nodes, vocab_size)
        if len(level.char) == 0:  # the training text is shorter
            return
        hits = find(text, found, level.first, level.char)
        if shorter:
            first, nodes_before, hits_before, found_before = shorter
            contexts = count_before(nodes_before, level.place, num_nodes)
            lower = _interpolated(lower, first, contexts, found_before, hits_before)
        yield -np.log(_interpolated(lower, level.first, level.times, found, hits)[before:])
        shorter = level.first, nodes, hits, found
        ends, found, num_nodes = _one_later(nodes), _one_later(hits), len(level.char)


def _one_later(nodes: Ints) -> Ints:
    """What ends with each character as what ends before the next."""
    return np.concatenate([np.full(1, -1, np.int32), nodes[:-1]])


def _interpolated(lower: Doubles, first: Ints, counts: Ints, contexts: Ints, hits: Ints) -> Doubles:
    """Probabilities (N,) by n-grams of one length, where those a character shorter give `lower`.

    contexts: (N,), the node before each character, -1 where it has never occurred; hits: with it.
    """
    discounts = discounts_of(counts)
    total, share = discounted(first, counts, discounts)
    known = contexts >= 0
    count = np.where(hits[known] >= 0, counts[hits[known]], 0)
    kept = (count - discounts[np.minimum(count, 3)]) / np.maximum(total[contexts[known]], 1)
    probabilities = lower.copy()
    probabilities[known] = kept + share[contexts[known]] * lower[known]
    return probabilities


def discounts_of(counts: Ints) -> Doubles:
    """What to take off a count of 0, 1, 2, and of 3 or more.

    Too few n-grams for the estimate have a half off each.
    """
    once, twice, thrice, four = (int(np.count_nonzero(counts == times)) for times in (1, 2, 3, 4))
    if 0 in (once, twice, thrice):
        return np.array([0.0, 0.5, 0.5, 0.5])
    rate = once / (once + 2 * twice)
    estimates = (1 - 2 * rate * twice / once, 2 - 3 * rate * thrice / twice, 3 - 4 * rate * four / thrice)
    return np.array([0.0, *(min(max(value, 0.0), times) for times, value in enumerate(estimates, start=1))])
