"""n-grams: counting, lookup, the mixture with a network, and hashes of stretches of text.

A node is an n-gram that occurs. Nodes of one length are numbered in the order of their
characters, so a node's children, the n-grams that extend it by one character, are adjacent.
Numbering them therefore takes two counting sorts, by the last character and by the parent.

The mixture is a product of experts: the log probabilities of both are added, each with a weight
that depends on how long a context the n-grams know. The softmax of the sum is the mixture.
Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence".

A hash is a polynomial in the ids modulo 2^64, which rolls: the hash of the next stretch takes
one product and two sums.

Letters: N characters, V vocabulary, K nodes of one length, P of one less, M hashes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.numerics.compilation import compiled
from charrnn.numerics.vectors import Doubles, Floats

Ints = NDArray[np.int32]
Hashes = NDArray[np.uint64]
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no character is multiplied away
_ONE = np.uint64(1)
_SHIFT = np.uint64(43)  # leaves 21 bits: a table of 2 MB, which stays in the cache


class Level(NamedTuple):
    """All n-grams of one length.

    first_child: (P + 1,), where the children of each node that is one shorter begin;
    char: (K,), the last character; counts: (K,), how often the n-gram occurs;
    position: (K,), where it ends for the last time in the text.
    """

    first_child: Ints
    char: Ints
    counts: Ints
    position: Ints


@compiled
def build_level(ids: NDArray[Any], parents: Ints, num_parents: int, vocab_size: int) -> tuple[Ints, Level]:
    """Number the n-grams of a text, given those that are one character shorter.

    ids: (N,) below V; parents: (N,), the node that ends before each character, -1 if none does.
    Returns the node that ends with each character, (N,), -1 if it has no parent; and the level.
    """
    char_starts = np.zeros(vocab_size + 1, np.int64)
    child_starts = np.zeros(num_parents + 1, np.int64)
    for position in range(len(ids)):
        if parents[position] >= 0:
            char_starts[ids[position] + 1] += 1
            child_starts[parents[position] + 1] += 1
    _accumulate(char_starts)
    _accumulate(child_starts)
    by_char, positions = np.empty(char_starts[-1], np.int32), np.empty(char_starts[-1], np.int32)
    for position in range(len(ids)):
        if parents[position] >= 0:
            by_char[char_starts[ids[position]]] = position
            char_starts[ids[position]] += 1
    for position in by_char:
        positions[child_starts[parents[position]]] = position
        child_starts[parents[position]] += 1
    return _number_nodes(ids, parents, positions, num_parents)


@compiled
def _accumulate(counts: NDArray[np.int64]) -> None:
    """Replace numbers (n,) by their running sums: numba takes half a second to compile cumsum."""
    for index in range(1, len(counts)):
        counts[index] += counts[index - 1]


@compiled
def _number_nodes(ids: NDArray[Any], parents: Ints, positions: Ints, num_parents: int) -> tuple[Ints, Level]:
    """Give equal n-grams one number. positions: where each ends, sorted so that equal ones are adjacent."""
    nodes = np.full(len(ids), -1, np.int32)
    first_child = np.zeros(num_parents + 1, np.int32)
    char, count, last = np.empty_like(positions), np.empty_like(positions), np.empty_like(positions)
    num_nodes = 0
    for index in range(len(positions)):
        position, previous = positions[index], positions[max(index - 1, 0)]
        if index == 0 or ids[position] != ids[previous] or parents[position] != parents[previous]:
            char[num_nodes], count[num_nodes] = ids[position], 0
            num_nodes += 1
            first_child[parents[position] + 1] = num_nodes
        count[num_nodes - 1] += 1
        last[num_nodes - 1] = position
        nodes[position] = num_nodes - 1
    for parent in range(num_parents):  # nodes without children
        first_child[parent + 1] = max(first_child[parent], first_child[parent + 1])
    return nodes, Level(first_child, char[:num_nodes].copy(), count[:num_nodes].copy(), last[:num_nodes].copy())


@compiled
def look_up(ids: NDArray[Any], parents: Ints, first_child: Ints, char: Ints) -> Ints:
    """Find the nodes that end with each character of another text: (N,), -1 where the n-gram never occurred.

    parents: as for build_level; first_child, char: as in Level.
    """
    nodes = np.full(len(ids), -1, np.int32)
    for position in range(len(ids)):
        if parents[position] >= 0:
            high = first_child[parents[position] + 1]
            index = find_child(char, first_child[parents[position]], high, ids[position])
            if index < high and char[index] == ids[position]:
                nodes[position] = index
    return nodes


@compiled
def find_child(chars: NDArray[Any], low: int, high: int, char: int) -> int:
    """Find where among the children low…high, sorted by character, a character stands or would be inserted."""
    while low < high:
        middle = (low + high) // 2
        if chars[middle] < char:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def count_continuations(nodes: Ints, positions: Ints, num_nodes: int) -> Ints:
    """Count how many different characters precede each n-gram: (K,), Kneser and Ney's continuation counts.

    nodes: (N,), the n-gram that ends with each character; positions: where each n-gram that is one
    longer ends, once. The start of the text counts as a character, since no other precedes it.
    """
    counts = np.zeros(num_nodes, np.int32)
    for position in positions:
        counts[nodes[position]] += 1
    for node in nodes:  # the text's first n-gram follows its start
        if node >= 0:
            counts[node] += 1
            break
    return counts


@compiled
def discount_mass(first_child: Ints, counts: Ints, discounts: Doubles) -> tuple[Doubles, Doubles]:
    """Sum the counts of each node's children, and return the share of the sum that is discounted: (P,) each.

    counts: (K,) of the children; discounts: for a count of 0, 1, 2, and of 3 or more.
    """
    total, share = np.zeros(len(first_child) - 1), np.ones(len(first_child) - 1)
    for parent in range(len(first_child) - 1):
        mass = 0.0
        for child in range(first_child[parent], first_child[parent + 1]):
            total[parent] += counts[child]
            mass += discounts[min(counts[child], 3)]
        if total[parent] > 0:
            share[parent] = mass / total[parent]
    return total, share


class Trie(NamedTuple):
    """n-grams with their smoothed probabilities: the root, then the nodes of each length.

    first_child: (I + 1,), where the children of each of the I inner nodes begin, the root's at 0;
    char: (K,), the last character of each node but the root, which has none;
    discounted: (K,), each node's discounted share of what follows its parent;
    backoff: (I,), the weight of the shorter context: 1 minus the children's shares, so 1 without children.
    """

    first_child: Ints
    char: NDArray[np.uint16]
    discounted: Floats
    backoff: Doubles


@compiled
def extend_contexts(trie: Trie, contexts: Ints, char: int) -> None:
    """Append a character to the contexts, in place.

    contexts: (order,), the nodes of the last 0, 1, 2, … characters: 0 for the root, the index in
    trie.char plus 1 for the others, -1 where there is none.
    """
    for length in range(len(contexts) - 1, 0, -1):
        node = contexts[length - 1]
        contexts[length] = -1
        if 0 <= node < len(trie.backoff):
            high = trie.first_child[node + 1]
            child = find_child(trie.char, trie.first_child[node], high, char)
            if child < high and trie.char[child] == char:
                contexts[length] = child + 1


@compiled
def fill_contexts(trie: Trie, ids: NDArray[Any], contexts: Ints, out: Ints) -> None:
    """Compute the contexts before each character of a text: (N, order).

    contexts: (order,), those before the first character; they become those after the last.
    """
    for position in range(len(ids)):
        for length in range(len(contexts)):  # a loop, because numba takes seconds to compile an array's assignment
            out[position, length] = contexts[length]
        extend_contexts(trie, contexts, ids[position])


@compiled
def fill_distribution(trie: Trie, contexts: Ints, probabilities: Doubles) -> int:
    """Compute the probability of each character (V,) after some contexts; return the longest known context's length."""
    longest = 0
    for char in range(len(probabilities)):
        probabilities[char] = 1.0 / len(probabilities)
    for length in range(len(contexts)):
        node = contexts[length]
        if 0 <= node < len(trie.backoff) and trie.backoff[node] < 1.0:
            longest, backoff = length, trie.backoff[node]
            for char in range(len(probabilities)):
                probabilities[char] *= backoff
            for child in range(trie.first_child[node], trie.first_child[node + 1]):
                probabilities[trie.char[child]] += np.float64(trie.discounted[child])
    return longest


@compiled
def fill_distributions(trie: Trie, contexts: Ints, probabilities: Doubles, longest: NDArray[np.int64]) -> None:
    """Call fill_distribution for many contexts. contexts: (N, order); probabilities: (N, V); longest: (N,)."""
    for position in range(len(contexts)):
        longest[position] = fill_distribution(trie, contexts[position], probabilities[position])


class Mixture(NamedTuple):
    """n-grams, and the mixture weights of the network and of the n-grams.

    weights: (order, 2), by the length of the longest known context; (0, 2) for the network alone.
    """

    trie: Trie
    weights: Doubles


def no_mixture() -> Mixture:
    """Make the mixture that is the network alone."""
    none = np.zeros(0, np.int32)
    return Mixture(Trie(none, np.zeros(0, np.uint16), np.zeros(0, np.float32), np.zeros(0)), np.zeros((0, 2)))


@compiled
def mix(mixture: Mixture, contexts: Ints, logits: Floats, log_probabilities: Doubles) -> None:
    """Replace the network's logits (V,) by the mixture's.

    contexts: (order,); log_probabilities: (V,), filled with those of the n-grams.
    """
    longest = fill_distribution(mixture.trie, contexts, log_probabilities)
    network, ngrams = mixture.weights[longest]
    for char in range(len(logits)):
        log_probabilities[char] = math.log(log_probabilities[char])
    for char in range(len(logits)):
        logits[char] = np.float32(network * np.float64(logits[char]) + ngrams * log_probabilities[char])


@compiled
def hash_ngrams(ids: NDArray[Any], length: int) -> Hashes:
    """Hash the `length` characters from each position on: (N - length + 1,), empty for a shorter text."""
    hashes = np.empty(max(0, len(ids) - length + 1), np.uint64)
    last = _power(length)
    value = np.uint64(0)
    for position in range(len(ids)):
        value = value * HASH_BASE + np.uint64(ids[position]) + _ONE
        if position >= length:
            value -= last * (np.uint64(ids[position - length]) + _ONE)
        if position >= length - 1:
            hashes[position - length + 1] = value
    return hashes


@compiled
def _power(length: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(length):
        value = value * HASH_BASE
    return value


@compiled
def find_hashes(ids: NDArray[Any], length: int, wanted: Hashes) -> NDArray[np.bool_]:
    """Tell which of the hashes (M,), sorted, `length` characters of the text have: (M,)."""
    found = np.zeros(len(wanted), np.bool_)
    may_be = np.zeros(1 << 21, np.bool_)  # rules out most positions by one byte
    for value in wanted:
        may_be[(value * HASH_BASE) >> _SHIFT] = True
    last = _power(length)
    value = np.uint64(0)
    for position in range(len(ids)):
        value = value * HASH_BASE + np.uint64(ids[position]) + _ONE
        if position >= length:
            value -= last * (np.uint64(ids[position - length]) + _ONE)
        if position >= length - 1 and may_be[(value * HASH_BASE) >> _SHIFT]:
            index = np.searchsorted(wanted, value)
            if index < len(wanted) and wanted[index] == value:
                found[index] = True
    return found
