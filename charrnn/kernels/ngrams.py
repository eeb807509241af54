"""Counting n-grams: loops over a text's places.

A node is an n-gram that occurs. Those of one length are numbered in the order of their
characters, so the nodes that prolong a node by a character, its children, are contiguous.
That makes numbering them two counting sorts, by the last character and by the parent.

Letters: N characters, V vocabulary, K nodes of the length at hand, P of one less.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.vectors import Doubles, Floats, compiled

Ints = NDArray[np.int32]


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
