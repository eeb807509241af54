"""n-grams: against dictionaries written from the equations, and worked examples."""

import math

import numpy as np
import pytest

from charrnn.kernels.ngrams import Mixture
from charrnn.model.ngrams import MAX_ORDER, count_ngrams, estimate_discounts, find_contexts, make_trie, nats_by_order
from tests import reference


def random_text(count, vocab_size=4, seed=1, dtype=np.uint8):
    """Make ids in which some n-grams are much more frequent than others."""
    generator = np.random.default_rng(seed)
    return np.minimum(generator.geometric(0.4, count) - 1, vocab_size - 1).astype(dtype)


@pytest.mark.parametrize(("num_train", "dtype"), [(300, np.uint8), (7, np.uint8), (1, np.uint8), (40, np.uint16)])
def test_every_order_agrees_with_dictionaries(num_train, dtype):
    """After the training text and after another text; some contexts and characters never occurred."""
    train, text = random_text(num_train, dtype=dtype), random_text(40, vocab_size=5, seed=2, dtype=dtype)
    for context in (train, random_text(5, seed=3, dtype=dtype)):
        full = [*context.tolist(), *text.tolist()]
        for order, nats in enumerate(nats_by_order(train, text, context=context, vocab_size=5), start=1):
            twin = reference.KneserNey(train.tolist(), order, 5)
            for place, found in enumerate(nats.tolist(), start=len(context)):
                expected = twin.probability(full[:place], full[place])
                assert math.exp(-found) == pytest.approx(expected, rel=1e-12), (order, place)
        assert order == min(MAX_ORDER, num_train)  # there are no longer ones


def test_a_distribution_sums_to_one():
    """It does after a known context and after an unknown one."""
    train = random_text(500)
    for ending in ([0, 1, 0], [3, 3, 3, 3, 3]):
        context = np.array([*train.tolist(), *ending], np.uint8)
        each = [
            [float(nats[0]) for nats in nats_by_order(train, np.array([c], np.uint8), context=context, vocab_size=6)]
            for c in range(6)
        ]
        for nats in zip(*each, strict=True):
            assert sum(math.exp(-cost) for cost in nats) == pytest.approx(1.0, abs=1e-9)


def test_an_example_worked_by_hand():
    """abac: a after b. There are too few n-grams for estimates, so all discounts are a half.

    Order 1: a occurs twice, b and c once. Their shares are (2 - 1/2) / 4 and (1 - 1/2) / 4, and
    3/2 / 4 is left for the uniform distribution over 3 characters. Order 2 uses continuation counts
    in its unigrams: the start and b precede a, a precedes b, a precedes c, so again 2, 1, 1. Only a
    followed b: its share is 1/2, plus half of its unigram probability.
    """
    a, b = 0, 1
    train = np.array([a, b, a, 2], np.uint8)
    orders = nats_by_order(train, np.array([a], np.uint8), context=np.array([b], np.uint8), vocab_size=3)
    first = 1.5 / 4 + 1.5 / 4 / 3
    assert math.exp(-next(orders)[0]) == pytest.approx(first)
    assert math.exp(-next(orders)[0]) == pytest.approx(0.5 + 0.5 * first)


def test_discounts_worked_by_hand():
    """n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 1/2; 1 - 2 Y 2/4, 2 - 3 Y 1/2, and 3 - 4 Y 1/1."""
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 9], np.int32)
    assert estimate_discounts(counts).tolist() == [0.0, 0.5, 1.25, 1.0]
    assert estimate_discounts(np.array([1, 1, 2], np.int32)).tolist() == [0.0, 0.5, 0.5, 0.5]


def test_contexts_do_not_reach_back_beyond_a_reset():
    """The contexts after a reset are those of a text that begins with its character."""
    train = np.random.default_rng(0).integers(0, 4, 500).astype(np.uint8)
    trie = make_trie(count_ngrams(train, 5, vocab_size=4), vocab_size=4)
    mixture, text = Mixture(trie, np.ones((5, 2))), np.array([1, 2, 0, 3, 1, 2, 0, 0, 1, 1, 2], np.uint8)
    found = find_contexts(mixture, text, context=np.array([2, 0, 1], np.uint8), boundary_ids=[0])
    expected = [
        find_contexts(mixture, np.array(part[1:], np.uint8), context=np.array(part[:1], np.uint8))
        for part in ([0, 1, 1, 2, 0], [0, 3, 1, 2, 0], [0, 0], [0, 1, 1, 2])
    ]
    assert found.tolist() == np.concatenate([expected[0][1:], *expected[1:]]).tolist()
