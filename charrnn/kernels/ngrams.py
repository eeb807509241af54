"""n-grams: counting them, looking them up, mixing them into a network's logits, hashing them.

A node is an n-gram that occurs. Nodes of one length are numbered in the order of their
characters, so a node's children, the n-grams that extend it by one character, are contiguous.
That makes numbering them two counting sorts, by the last character and by the parent.

The mixture is a product of experts: log probabilities are added, each with a weight that
depends on how much of the context the n-grams know; softmax of the sum is the mixture.
Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence".

A hash is a polynomial in the ids modulo 2^64, which rolls: the hash of the next n-gram takes one
product and two sums.

Letters: N characters, V vocabulary, K nodes of the length at hand, P of one less, M hashes to look for.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.compilation import compiled
from charrnn.kernels.vectors import Doubles, Floats

Ints = NDArray[np.int32]
Hashes = NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no character is multiplied away
_ONE = np.uint64(1)
_SHIFT = np.uint64(43)  # leaves 21 bits: a table of 2 MB, which stays in the cache


class Level(NamedTuple):
    """All n-grams of one length.

    first: (P + 1,), where the children of each shorter one begin; char and times: (K,), the
    last character of each and how often it occurs; place: (K,), where it last ends in the text.
    """

    first: Ints
    char: Ints
    times: Ints
    place: Ints


@compiled
def grow(ids: NDArray[Any], parents: Ints, num_parents: int, vocab_size: int) -> tuple[Ints, Level]:
    """Number the n-grams of a text, given those that are a character shorter.

    ids: (N,) below V; parents: (N,), the node that ends before each character, -1 where none does.
    Returns the node that ends with each character, (N,), -1 where it has no parent; and all of them.
    """
    starts = np.zeros(vocab_size + 1, np.int64)
    begins = np.zeros(num_parents + 1, np.int64)
    for place in range(len(ids)):
        if parents[place] >= 0:
            starts[ids[place] + 1] += 1
            begins[parents[place] + 1] += 1
    _add_up(starts)
    _add_up(begins)
    by_char, places = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int32)
    for place in range(len(ids)):
        if parents[place] >= 0:
            by_char[starts[ids[place]]] = place
            starts[ids[place]] += 1
    for place in by_char:
        places[begins[parents[place]]] = place
        begins[parents[place]] += 1
    return _number(ids, parents, places, num_parents)


@compiled
def _add_up(counts: NDArray[np.int64]) -> None:
    """Turn numbers into their running sums, (n,): numba takes half a second to compile cumsum."""
    for index in range(1, len(counts)):
        counts[index] += counts[index - 1]


@compiled
def _number(ids: NDArray[Any], parents: Ints, places: Ints, num_parents: int) -> tuple[Ints, Level]:
    """Give equal n-grams, which are neighbours in `places`, one number."""
    nodes = np.full(len(ids), -1, np.int32)
    first = np.zeros(num_parents + 1, np.int32)
    char, times, last = np.empty_like(places), np.empty_like(places), np.empty_like(places)
    num_nodes = 0
    for index in range(len(places)):
        place, before = places[index], places[max(index - 1, 0)]
        if index == 0 or ids[place] != ids[before] or parents[place] != parents[before]:
            char[num_nodes], times[num_nodes] = ids[place], 0
            num_nodes += 1
            first[parents[place] + 1] = num_nodes
        times[num_nodes - 1] += 1
        last[num_nodes - 1] = place
        nodes[place] = num_nodes - 1
    for parent in range(num_parents):  # those that nothing follows
        first[parent + 1] = max(first[parent], first[parent + 1])
    return nodes, Level(first, char[:num_nodes].copy(), times[:num_nodes].copy(), last[:num_nodes].copy())


@compiled
def find(ids: NDArray[Any], parents: Ints, first: Ints, char: Ints) -> Ints:
    """The nodes that end with each character of another text, (N,): -1 where that n-gram has never occurred.

    parents: as for grow.
    """
    nodes = np.full(len(ids), -1, np.int32)
    for place in range(len(ids)):
        if parents[place] >= 0:
            high = first[parents[place] + 1]
            index = child_of(char, first[parents[place]], high, ids[place])
            if index < high and char[index] == ids[place]:
                nodes[place] = index
    return nodes


@compiled
def child_of(chars: NDArray[Any], low: int, high: int, char: int) -> int:
    """Where among the children low…high, sorted by character, that one stands, or would stand."""
    while low < high:
        middle = (low + high) // 2
        if chars[middle] < char:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def count_before(nodes: Ints, places: Ints, num_nodes: int) -> Ints:
    """How many different characters stand before each n-gram: (K,).

    nodes: (N,), the n-gram that ends with each character; places: where each n-gram that is one
    longer ends, once. The beginning of the text counts as a character, for there is no other.
    """
    counts = np.zeros(num_nodes, np.int32)
    for place in places:
        counts[nodes[place]] += 1
    for node in nodes:  # the first n-gram of the text has its beginning before it
        if node >= 0:
            counts[node] += 1
            break
    return counts


@compiled
def discounted(first: Ints, times: Ints, discounts: Doubles) -> tuple[Doubles, Doubles]:
    """The sum of each node's children's counts, and the share of it that is discounted: (P,) each.

    discounts: of a count of 0, 1, 2, and of 3 or more.
    """
    total, share = np.zeros(len(first) - 1), np.ones(len(first) - 1)
    for parent in range(len(first) - 1):
        rest = 0.0
        for child in range(first[parent], first[parent + 1]):
            total[parent] += times[child]
            rest += discounts[min(times[child], 3)]
        if total[parent] > 0:
            share[parent] = rest / total[parent]
    return total, share


class Trie(NamedTuple):
    """n-grams with their smoothed shares, ready to be asked: the root, then the nodes of each length.

    first: (I + 1,), where the children of each of the I nodes that may have some begin, the root's
    at 0; char: (K,), each node's last character, the root, which has none, left out; kept: (K,),
    its discounted share of what follows its parent; rest: (I,), what its children leave to
    shorter contexts, 1 where it has none.
    """

    first: Ints
    char: NDArray[np.uint16]
    kept: Floats
    rest: Doubles


@compiled
def follow(trie: Trie, contexts: Ints, char: int) -> None:
    """Go on by a character.

    contexts: (order,), the nodes that the last 0, 1, 2, … characters are, the root being 0 and the
    others one more than their place, -1 where there is none.
    """
    for length in range(len(contexts) - 1, 0, -1):
        node = contexts[length - 1]
        contexts[length] = -1
        if 0 <= node < len(trie.rest):
            high = trie.first[node + 1]
            child = child_of(trie.char, trie.first[node], high, char)
            if child < high and trie.char[child] == char:
                contexts[length] = child + 1


@compiled
def follow_all(trie: Trie, ids: NDArray[Any], contexts: Ints, out: Ints) -> None:
    """The contexts before each character of a text, (N, order); those given are the first's, and end as the last's."""
    for place in range(len(ids)):
        for length in range(len(contexts)):  # a loop, because numba takes seconds to compile an array's assignment
            out[place, length] = contexts[length]
        follow(trie, contexts, ids[place])


@compiled
def fill_distribution(trie: Trie, contexts: Ints, probabilities: Doubles) -> int:
    """How likely each character is (V,) after some contexts; return the length of the longest that is known."""
    longest = 0
    for char in range(len(probabilities)):
        probabilities[char] = 1.0 / len(probabilities)
    for length in range(len(contexts)):
        node = contexts[length]
        if 0 <= node < len(trie.rest) and trie.rest[node] < 1.0:
            longest, rest = length, trie.rest[node]
            for char in range(len(probabilities)):
                probabilities[char] *= rest
            for child in range(trie.first[node], trie.first[node + 1]):
                probabilities[trie.char[child]] += np.float64(trie.kept[child])
    return longest


@compiled
def fill_distributions(trie: Trie, contexts: Ints, probabilities: Doubles, longest: NDArray[np.int64]) -> None:
    """The same for many places. contexts: (N, order); probabilities: (N, V); longest: (N,)."""
    for place in range(len(contexts)):
        longest[place] = fill_distribution(trie, contexts[place], probabilities[place])


class Mixture(NamedTuple):
    """n-grams, and for each length of the longest known context the weights of the network and of them.

    weights: (order, 2); without any, the network is alone.
    """

    trie: Trie
    weights: Doubles


def nothing() -> Mixture:
    """The network alone."""
    none = np.zeros(0, np.int32)
    return Mixture(Trie(none, np.zeros(0, np.uint16), np.zeros(0, np.float32), np.zeros(0)), np.zeros((0, 2)))


@compiled
def mix(mixture: Mixture, contexts: Ints, logits: Floats, room: Doubles) -> None:
    """Turn the network's logits (V,) into the mixture's, in place.

    contexts: (order,); room: (V,), filled with the log probabilities that the n-grams give.
    """
    longest = fill_distribution(mixture.trie, contexts, room)
    network, counts = mixture.weights[longest]
    for char in range(len(logits)):
        room[char] = math.log(room[char])
    for char in range(len(logits)):
        logits[char] = np.float32(network * np.float64(logits[char]) + counts * room[char])


@compiled
def gram_hashes(ids: NDArray[Any], length: int) -> Hashes:
    """The hash of the stretch that begins at each place: (N - length + 1,), none of a shorter text."""
    hashes = np.empty(max(0, len(ids) - length + 1), np.uint64)
    last = _power(length)
    value = np.uint64(0)
    for place in range(len(ids)):
        value = value * _BASE + np.uint64(ids[place]) + _ONE
        if place >= length:
            value -= last * (np.uint64(ids[place - length]) + _ONE)
        if place >= length - 1:
            hashes[place - length + 1] = value
    return hashes


@compiled
def _power(length: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(length):
        value = value * _BASE
    return value


@compiled
def find_hashes(ids: NDArray[Any], length: int, wanted: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes (M,), sorted, some stretch of the text has: (M,)."""
    found = np.zeros(len(wanted), np.bool_)
    may_be = np.zeros(1 << 21, np.bool_)  # most stretches are not looked for, which one byte tells
    for value in wanted:
        may_be[(value * _BASE) >> _SHIFT] = True
    last = _power(length)
    value = np.uint64(0)
    for place in range(len(ids)):
        value = value * _BASE + np.uint64(ids[place]) + _ONE
        if place >= length:
            value -= last * (np.uint64(ids[place - length]) + _ONE)
        if place >= length - 1 and may_be[(value * _BASE) >> _SHIFT]:
            index = np.searchsorted(wanted, value)
            if index < len(wanted) and wanted[index] == value:
                found[index] = True
    return found
