"""A network's logits and what n-grams say, put together.

Both are experts whose log probabilities are added, each with a weight that depends on how much
of what came before the n-grams know; softmax of the sum is the mixture.
Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence", for the product.

Letters: V vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np

from charrnn.kernels.ngrams import Ints, Trie, fill_distribution
from charrnn.kernels.vectors import Doubles, Floats, compiled


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
