"""n-grams, smoothed by interpolated modified Kneser-Ney: how well counting alone predicts a text.

The probability of a character after the n-1 before it is its discounted share of what followed
them, and for the rest what the n-2 before it say. The longest n-grams count how often they
occur; shorter ones, after how many different characters. The discounts follow from how many
n-grams were seen once, twice, three and four times.
Source: Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling".

Letters: N characters, V vocabulary, K n-grams of a length, P of one less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.ngrams import Ints, Mixture, Trie, count_before, discounted, find, follow_all, grow
from charrnn.kernels.vectors import Doubles, Floats

MAX_ORDER = 12
BYTES_PER_CHAR = 12.0  # of the training text, that a model's n-grams may take
ONCE_UP_TO = 4  # characters of n-grams that occur once: by longer ones, a model would write what it has read
_ROOM = 1 - 1e-6  # so that rounding makes no sum of shares as much as one
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1.0  # in a mixture
_LEAST_DISCOUNT = 1e-3  # without any, what was never seen would be impossible
Arrays = dict[str, NDArray[Any]]


def nats_by_order(
    train: NDArray[Any], ids: NDArray[Any], *, context: NDArray[Any], vocab_size: int
) -> Iterator[Doubles]:
    """The nats that each character of a text costs, (N,), by n-grams of order 1, 2, … up to 12, or train's length.

    train: what is counted; context: what comes before the text; all hold ids below vocab_size. Two
    lengths of n-grams are in memory at a time, about 50 bytes a character of train.
    """
    train, before = _of_one_kind(train, vocab_size), min(MAX_ORDER, len(context))
    text = _of_one_kind(np.concatenate([context[len(context) - before :], ids]), vocab_size)
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


def _of_one_kind(ids: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    """A copy of ids in a type that most vocabularies share: kernels are compiled for each, and for read-only ones."""
    return np.array(ids, np.uint16 if vocab_size <= 1 << 16 else np.uint32)


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
    return np.array([0.0, *(min(max(value, _LEAST_DISCOUNT), times) for times, value in enumerate(estimates, start=1))])


@dataclass(frozen=True)
class _Counted:
    """All n-grams of one length, as Level; kept: (K,), discounted shares; once: (K,), whether each occurs once."""

    first: Ints
    char: NDArray[Any]
    kept: Floats
    once: NDArray[np.bool_]


def build(train: NDArray[Any], order: int, *, vocab_size: int, bytes_per_char: float = BYTES_PER_CHAR) -> Arrays:
    """Count n-grams up to an order, as arrays for a model file.

    Long ones that occur once are left out, and shorter ones until all fit, the longest first.

    train: ids, at least one. Takes about 60 bytes a character of train while it counts.
    """
    levels, shorter = [], None
    train = _of_one_kind(train, vocab_size)
    ends, num_nodes = np.zeros(len(train), np.int32), 1
    for _ in range(min(order, len(train))):
        nodes, level = grow(train, ends, num_nodes, vocab_size)
        if shorter:
            first, nodes_before, char, once = shorter
            levels.append(_counted(first, char, count_before(nodes_before, level.place, num_nodes), once))
        shorter = level.first, nodes, level.char.astype(np.uint16), level.times == 1
        ends, num_nodes, times = _one_later(nodes), len(level.char), level.times
    assert shorter is not None
    first, _, char, once = shorter
    levels.append(_counted(first, char, times, once))
    for shortest in range(min(len(levels), ONCE_UP_TO), 0, -1):  # longer n-grams than that are pruned
        arrays = _arrays([_pruned(levels, place, shortest) for place in range(len(levels))])
        if sum(array.nbytes for array in arrays.values()) <= bytes_per_char * len(train):
            break
    return arrays


def _counted(first: Ints, char: NDArray[Any], times: Ints, once: NDArray[np.bool_]) -> _Counted:
    discounts = discounts_of(times)
    total, _ = discounted(first, times, discounts)
    kept = (times - discounts[np.minimum(times, 3)]) / np.repeat(total, np.diff(first))
    return _Counted(first, char, (_ROOM * kept).astype(np.float32), once)


def _pruned(levels: list[_Counted], place: int, shortest: int) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    """Of one length: how many of each parent's children stay, and these; what begins with a pruned one is pruned."""
    level = levels[place]
    stays = ~level.once if place >= shortest else np.ones(len(level.char), np.bool_)
    before = np.concatenate([[0], stays.cumsum()])
    children = np.diff(before[level.first])
    if place > shortest:
        children = children[~levels[place - 1].once]
    return children, level.char[stays], level.kept[stays]


def _arrays(levels: list[tuple[NDArray[Any], NDArray[Any], Floats]]) -> Arrays:
    children, char, kept = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return {"ngram.children": children.astype(np.uint16), "ngram.char": char, "ngram.kept": kept}


def mixture_of(arrays: Mapping[str, NDArray[Any]], *, vocab_size: int) -> Mixture | None:
    """n-grams with their weights out of a model file; None where there are none.

    Raises ValueError where they contradict themselves, or are not what a model file has.
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
        raise ValueError("not the arrays of n-grams")
    weights = arrays["ngram.weights"]
    if weights.ndim != 2 or weights.shape[1] != 2 or not 1 <= len(weights) <= MAX_ORDER:
        raise ValueError("n-grams without a length")
    if not ((weights >= LEAST_WEIGHT).all() and (weights <= MOST_WEIGHT).all()):
        raise ValueError("weights of n-grams that there can't be")
    return Mixture(trie_of(arrays, vocab_size=vocab_size), weights)


def trie_of(arrays: Mapping[str, NDArray[Any]], *, vocab_size: int) -> Trie:
    """n-grams as build counted them, ready to be asked. Raises ValueError where they contradict themselves."""
    children, char, kept = (arrays[f"ngram.{name}"] for name in ("children", "char", "kept"))
    first = np.concatenate([[0], np.cumsum(children, dtype=np.int64)])
    if not (children.ndim == char.ndim == kept.ndim == 1 and 1 <= len(children) <= len(char) + 1):
        raise ValueError("n-grams of no shape")
    if not (first[-1] == len(char) == len(kept) < 2**31 and char.max(initial=0) < vocab_size):
        raise ValueError("n-grams that don't add up")
    begins = np.zeros(len(char) + 1, np.bool_)
    begins[first] = True
    if not (begins[1:-1] | (char[1:] > char[:-1])).all():
        raise ValueError("n-grams that aren't in order")
    if not ((kept >= 0).all() and (kept <= 1).all()):
        raise ValueError("n-grams that are more or less than likely")
    rest = 1 - np.add.reduceat(np.append(kept, 0), first[:-1], dtype=np.float64) * (children > 0)
    if not (rest > 0).all():
        raise ValueError("n-grams that are more than certain")
    return Trie(first.astype(np.int32), char, kept, rest)


def contexts_of(mixture: Mixture, ids: NDArray[Any], *, context: NDArray[Any]) -> Ints:
    """The nodes that stand before each character of a text, (N, order), which comes after the context."""
    order = len(mixture.weights)
    before = np.array(context[len(context) - min(len(context), order) :], np.uint16)
    start = new_contexts(mixture)
    follow_all(mixture.trie, before, start, np.empty((len(before), order), np.int32))
    out = np.empty((len(ids), order), np.int32)
    follow_all(mixture.trie, np.array(ids, np.uint16), start, out)
    return out


def new_contexts(mixture: Mixture) -> Ints:
    """The nodes that no characters at all are: (order,)."""
    contexts = np.full(len(mixture.weights), -1, np.int32)
    contexts[:1] = 0
    return contexts
