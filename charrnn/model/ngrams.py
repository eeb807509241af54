"""n-grams smoothed by interpolated modified Kneser-Ney: how well counting alone predicts a text.

The probability of a character after the n-1 characters before it is its discounted share of what
followed them in the training text, plus the backoff weight times the probability given n-2
characters. The longest n-grams use how often they occur. Shorter ones use continuation counts:
after how many different characters they occur. The discounts follow from how many n-grams have
a count of one, two, three and four.
Source: Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling".

Letters: N characters, V vocabulary, K n-grams of one length, P of one less.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.ngrams import (
    Ints,
    Mixture,
    Trie,
    build_level,
    count_continuations,
    discount_mass,
    fill_contexts,
    look_up,
)
from charrnn.numerics.vectors import Doubles, Floats

MAX_ORDER = 12
BYTES_PER_CHAR = 12.0  # of the training text, that a model's n-grams may take
MAX_SINGLETON_LENGTH = 4  # longer n-grams that occur once are pruned: with them a model would copy its training text
_SCALE = 1 - 1e-6  # so that rounding can't make shares sum to one
_MIN_WEIGHT, _MAX_WEIGHT = 0.001, 1.0  # of an expert in a mixture
_MIN_DISCOUNT = 1e-3  # with none at all, unseen characters would be impossible
Arrays = dict[str, NDArray[Any]]


def nats_by_order(
    train: NDArray[Any], ids: NDArray[Any], *, context: NDArray[Any], vocab_size: int
) -> Iterator[Doubles]:
    """Yield the nats of each character of a text, (N,), by n-grams of order 1, 2, … up to 12 or the length of train.

    train: the training text; context: the characters before the text; all hold ids below
    vocab_size. n-grams of two lengths are in memory at a time, about 50 bytes per character of train.
    """
    train, num_before = _common_type(train, vocab_size), min(MAX_ORDER, len(context))
    text = _common_type(np.concatenate([context[len(context) - num_before :], ids]), vocab_size)
    # the nodes that end before each character, in the training text and in the text
    train_parents, text_parents = np.zeros(len(train), np.int32), np.zeros(len(text), np.int32)
    lower, num_nodes, shorter = np.full(len(text), 1 / vocab_size), 1, None
    for _ in range(MAX_ORDER):
        nodes, level = build_level(train, train_parents, num_nodes, vocab_size)
        if len(level.char) == 0:  # the training text is shorter
            return
        hits = look_up(text, text_parents, level.first_child, level.char)
        if shorter:
            first_child, shorter_nodes, shorter_parents, shorter_hits = shorter
            counts = count_continuations(shorter_nodes, level.position, num_nodes)
            lower = _interpolate(lower, first_child, counts, shorter_parents, shorter_hits)
        yield -np.log(_interpolate(lower, level.first_child, level.counts, text_parents, hits)[num_before:])
        shorter = level.first_child, nodes, text_parents, hits
        train_parents, text_parents, num_nodes = _shift(nodes), _shift(hits), len(level.char)


def _common_type(ids: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    """Copy ids into one type for most vocabularies: kernels are compiled per type, and per read-only flag."""
    return np.array(ids, np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _shift(nodes: Ints) -> Ints:
    """Turn the nodes that end with each character into those that end before each."""
    return np.concatenate([np.full(1, -1, np.int32), nodes[:-1]])


def _interpolate(lower: Doubles, first_child: Ints, counts: Ints, parents: Ints, hits: Ints) -> Doubles:
    """Compute probabilities (N,) by n-grams of one length. lower: those by n-grams one character shorter.

    counts: (K,); parents: (N,), the node before each character, -1 if it never occurred; hits: (N,),
    the node that ends with the character.
    """
    discounts = estimate_discounts(counts)
    total, backoff = discount_mass(first_child, counts, discounts)
    known = parents >= 0
    count = np.where(hits[known] >= 0, counts[hits[known]], 0)
    discounted = (count - discounts[np.minimum(count, 3)]) / np.maximum(total[parents[known]], 1)
    probabilities = lower.copy()
    probabilities[known] = discounted + backoff[parents[known]] * lower[known]
    return probabilities


def estimate_discounts(counts: Ints) -> Doubles:
    """Estimate what to subtract from a count of 0, 1, 2, and of 3 or more.

    With too few n-grams for the estimate the discounts are a half.
    """
    once, twice, thrice, four = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if 0 in (once, twice, thrice):
        return np.array([0.0, 0.5, 0.5, 0.5])
    rate = once / (once + 2 * twice)
    estimates = (1 - 2 * rate * twice / once, 2 - 3 * rate * thrice / twice, 3 - 4 * rate * four / thrice)
    return np.array([0.0, *(min(max(value, _MIN_DISCOUNT), count) for count, value in enumerate(estimates, start=1))])


@dataclass(frozen=True)
class _SmoothedLevel:
    """All n-grams of one length: first_child and char as in Level.

    discounted: (K,), the discounted shares; is_singleton: (K,), whether the n-gram occurs once.
    """

    first_child: Ints
    char: NDArray[Any]
    discounted: Floats
    is_singleton: NDArray[np.bool_]


def count_ngrams(train: NDArray[Any], order: int, *, vocab_size: int) -> Arrays:
    """Count and smooth n-grams up to an order, as arrays for a model file.

    Long n-grams that occur once are pruned. If the rest is too large, shorter ones are pruned too,
    the longest first.

    train: ids, at least one. Counting takes about 30 bytes per character of a usual text, 110 of noise.
    """
    levels, shorter = [], None
    train = _common_type(train, vocab_size)
    parents, num_nodes = np.zeros(len(train), np.int32), 1
    for _ in range(min(order, len(train))):
        nodes, level = build_level(train, parents, num_nodes, vocab_size)
        if shorter:
            first_child, shorter_nodes, char, is_singleton = shorter
            continuations = count_continuations(shorter_nodes, level.position, num_nodes)
            levels.append(_smooth(first_child, char, continuations, is_singleton))
        shorter = level.first_child, nodes, level.char.astype(np.uint16), level.counts == 1
        parents, num_nodes, counts = _shift(nodes), len(level.char), level.counts
    assert shorter is not None
    first_child, _, char, is_singleton = shorter
    levels.append(_smooth(first_child, char, counts, is_singleton))
    for length in range(min(len(levels), MAX_SINGLETON_LENGTH), 0, -1):
        arrays = _join([_prune(levels, index, length) for index in range(len(levels))])
        if sum(array.nbytes for array in arrays.values()) <= BYTES_PER_CHAR * len(train):
            break
    return arrays


def _smooth(first_child: Ints, char: NDArray[Any], counts: Ints, is_singleton: NDArray[np.bool_]) -> _SmoothedLevel:
    discounts = estimate_discounts(counts)
    total, _ = discount_mass(first_child, counts, discounts)
    discounted = (counts - discounts[np.minimum(counts, 3)]) / np.repeat(total, np.diff(first_child))
    return _SmoothedLevel(first_child, char, (_SCALE * discounted).astype(np.float32), is_singleton)


def _prune(levels: list[_SmoothedLevel], index: int, max_length: int) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    """Drop n-grams longer than max_length that occur once, and with them all their extensions, which occur once too.

    Returns one level's number of children per remaining parent, and the remaining char and discounted.
    """
    level = levels[index]
    stays = ~level.is_singleton if index >= max_length else np.ones(len(level.char), np.bool_)
    num_before = np.concatenate([[0], stays.cumsum()])
    children = np.diff(num_before[level.first_child])
    if index > max_length:
        children = children[~levels[index - 1].is_singleton]
    return children, level.char[stays], level.discounted[stays]


def _join(levels: list[tuple[NDArray[Any], NDArray[Any], Floats]]) -> Arrays:
    children, char, discounted = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return {"ngram.children": children.astype(np.uint16), "ngram.char": char, "ngram.kept": discounted}


def make_mixture(arrays: Mapping[str, NDArray[Any]], *, vocab_size: int) -> Mixture | None:
    """Make the mixture of a model file's n-gram arrays; None if there are none.

    Raises ValueError if the arrays are inconsistent, or not those of a model file.
    """
    if not arrays:
        return None
    types = {
        "ngram.children": np.uint16,
        "ngram.char": np.uint16,
        "ngram.kept": np.float32,
        "ngram.weights": np.float64,
    }
    if {name: array.dtype.type for name, array in arrays.items()} != types:
        raise ValueError("its n-gram tensors have other names or types")
    weights = arrays["ngram.weights"]
    if weights.ndim != 2 or weights.shape[1] != 2 or not 1 <= len(weights) <= MAX_ORDER:
        raise ValueError("its mixture weights have the wrong shape")
    if not ((weights >= _MIN_WEIGHT).all() and (weights <= _MAX_WEIGHT).all()):
        raise ValueError("its mixture weights are out of range")
    return Mixture(make_trie(arrays, vocab_size=vocab_size), weights)


def make_trie(arrays: Mapping[str, NDArray[Any]], *, vocab_size: int) -> Trie:
    """Make the trie of n-gram arrays from count_ngrams. Raises ValueError if they are inconsistent."""
    children, char, discounted = (arrays[f"ngram.{name}"] for name in ("children", "char", "kept"))
    if not (children.ndim == char.ndim == discounted.ndim == 1 and 1 <= len(children) <= len(char) + 1):
        raise ValueError("its n-gram tensors have the wrong shapes")
    first_child = np.concatenate([[0], np.cumsum(children, dtype=np.int64)])
    if not (first_child[-1] == len(char) == len(discounted) < 2**31 and char.max(initial=0) < vocab_size):
        raise ValueError("its n-gram tensors don't fit each other or the vocabulary")
    is_first = np.zeros(len(char) + 1, np.bool_)
    is_first[first_child] = True
    if not (is_first[1:-1] | (char[1:] > char[:-1])).all():
        raise ValueError("its n-grams are not sorted")
    if not ((discounted >= 0).all() and (discounted <= 1).all()):
        raise ValueError("an n-gram's probability is out of range")
    backoff = 1 - np.add.reduceat(np.append(discounted, 0), first_child[:-1], dtype=np.float64) * (children > 0)
    if not (backoff > 0).all():
        raise ValueError("its n-grams' probabilities sum to more than 1")
    return Trie(first_child.astype(np.int32), char, discounted, backoff)


def find_contexts(
    mixture: Mixture, ids: NDArray[Any], *, context: NDArray[Any], boundary_ids: Sequence[int] = ()
) -> Ints:
    """Find the n-gram contexts before each character of a text: (N, order).

    context: the characters before the text. boundary_ids: the ids that no context reaches back beyond.
    """
    order = len(mixture.weights)
    before = np.array(context[len(context) - min(len(context), order) :], np.uint16)
    start = new_contexts(mixture)
    fill_contexts(mixture.trie, before, start, np.empty((len(before), order), np.int32))
    out = np.empty((len(ids), order), np.int32)
    fill_contexts(mixture.trie, np.array(ids, np.uint16), start, out)
    if boundary_ids and order > 0:
        places = np.arange(len(before) + len(ids))
        resets = np.where(np.isin(np.concatenate([before, ids]), boundary_ids), places, -order)
        num_known = (1 + places - np.maximum.accumulate(resets))[len(before) - 1 : -1]
        out[np.arange(order) > num_known[:, None]] = -1
    return out


def new_contexts(mixture: Mixture) -> Ints:
    """Make the contexts before any character: (order,)."""
    contexts = np.full(len(mixture.weights), -1, np.int32)
    contexts[:1] = 0
    return contexts
