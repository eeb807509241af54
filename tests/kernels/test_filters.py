"""Drawing a character: the filters and the draw."""

import math

import numpy as np
import pytest

from charrnn.constraints.guide import index_runs
from charrnn.data.vocab import Vocab
from charrnn.kernels.filters import (
    COMPLETE,
    draw,
    filter_logits,
    follow_automaton,
    forbid_copies,
    free_text,
    log_share,
)
from charrnn.kernels.head import surprisal
from charrnn.text.characters import END
from tests import reference

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-30])
def test_cold_draws_are_greedy_and_finite(temperature):
    """A tiny temperature never makes a NaN: the likeliest character is drawn."""
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert [draw(logits, u, temperature) for u in (0.0, 0.5, 1 - 2**-53)] == [1, 1, 1]


def test_hot_draws_reach_every_character():
    """At an enormous temperature all characters are equally likely."""
    logits = np.array([-1000.0, 0.0, 1000.0], np.float32)
    assert [draw(logits, u, 1e308) for u in (0.1, 0.5, 0.9, 1 - 2**-53)] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.0},
        {"top_p": 0.6},
        {"top_p": 1 - 1e-12},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
def test_filters_keep_what_the_definitions_keep(filters):
    """The distribution that is left equals the naive one, and is never empty."""
    for seed in range(4):
        logits = np.random.default_rng(seed).normal(0, 3, 40).astype(np.float32)
        filtered = logits.copy()
        filter_logits(filtered, *{**OFF, **filters}.values())
        weights = np.exp(filtered.astype(float) - filtered.max())
        expected = reference.filtered(logits.astype(float), **filters)
        np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-6)
        assert (filtered == logits).any()


def test_filters_that_are_off_change_nothing():
    """The logits stay the same to the last bit."""
    logits = np.array([1.0, -2.0, 0.5], np.float32)
    filtered = logits.copy()
    filter_logits(filtered, *OFF.values())
    assert (filtered == logits).all()


def test_equal_candidates_are_ordered_by_id():
    """top-k keeps exactly k, the first of those that are equal."""
    filtered = np.zeros(5, np.float32)
    filter_logits(filtered, 2, 1.0, 0.0)
    assert np.isfinite(filtered).tolist() == [True, True, False, False, False]


def test_a_filtered_character_is_never_drawn():
    """Not even by the largest number below one."""
    logits = np.array([0.0, 5.0, -np.inf, -np.inf], np.float32)
    assert draw(logits, 1 - 2**-53, 1.0) == 1
    assert draw(logits, 0.0, 1.0) == 0


def test_surprisal_is_the_negative_log_probability():
    """It is that of the softmax at temperature 1, whatever is filtered later."""
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    total = sum(math.exp(v) for v in logits.tolist())
    for char in range(3):
        assert surprisal(logits, char) == pytest.approx(-math.log(math.exp(float(logits[char])) / total), rel=1e-12)


# constraints


@pytest.mark.parametrize("temperature", [0.1, 0.8, 3.0])
def test_the_share_of_the_allowed_characters_is_the_naive_one(temperature):
    """Also where they are so unlikely that their probability is no float32; temperature 0 counts as 1."""
    for shift in (0.0, 20.0):
        logits = np.random.default_rng(1).normal(0, 3, 40).astype(np.float32)
        allowed = logits.copy()
        allowed[::3] = -np.inf
        logits[::3] += np.float32(shift)
        share, _ = reference.masked(logits.tolist(), set(np.flatnonzero(np.isfinite(allowed))), temperature)
        assert log_share(logits, allowed, temperature) == pytest.approx(math.log(share), abs=1e-5, rel=1e-5)
    share, _ = reference.masked(logits.tolist(), set(np.flatnonzero(np.isfinite(allowed))), 1.0)
    assert log_share(logits, allowed, 0.0) == pytest.approx(math.log(share), rel=1e-5)


def test_an_automaton_allows_what_can_end_in_time():
    """With fewer characters left, fewer; if none is, the text is complete and everything is allowed."""
    rules = free_text(4)._replace(
        classes=np.array([0, 0, 1, 2], np.int32),
        transitions=np.array([[0, 0, 0], [1, 2, -1], [0, 2, 1]], np.int32),
        distance=np.array([0, 2, 1]),
    )
    for state, left, allowed in [(1, 9, [0, 1, 2]), (1, 2, [2]), (2, 1, [0, 1]), (2, 2, [0, 1, 2])]:
        logits = np.zeros(4, np.float32)
        assert follow_automaton(rules, state, left, logits) == state
        assert np.flatnonzero(np.isfinite(logits)).tolist() == allowed
    logits = np.zeros(4, np.float32)
    assert follow_automaton(rules, 1, 1, logits) == COMPLETE
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("run", [2, 3, 5])
def test_copies_are_the_naive_ones(run):
    """Every character that completes a run of the text is forbidden, and no other, unless all would be."""
    vocab = Vocab("abc")
    text = np.random.default_rng(run).integers(0, 3, 4 * run)
    rules = index_runs(run, text, vocab)
    num_forbidden = 0
    for seed in range(60):
        history = np.random.default_rng(seed).integers(0, 3, run)
        naive = {c for c in range(3) if reference.completes_copy(text.tolist(), history.tolist(), c, run)}
        logits = np.zeros(3, np.float32)
        forbid_copies(rules, history, logits)
        found = set(np.flatnonzero(np.isinf(logits)).tolist())
        assert found == (naive if len(naive) < 3 else set())
        num_forbidden += len(found)
    assert num_forbidden > 0


def test_a_copy_is_verified_in_the_text():
    """A hash alone forbids nothing."""
    rules = index_runs(3, np.array([0, 1, 2, 0, 1, 2]), Vocab("abc"))
    logits = np.zeros(3, np.float32)
    forbid_copies(rules, np.array([0, 1]), logits)
    assert np.isinf(logits).tolist() == [False, False, True]
    other = index_runs(3, np.array([2, 2, 2, 2, 2, 2]), Vocab("abc"))
    logits = np.zeros(3, np.float32)
    forbid_copies(rules._replace(text=other.text), np.array([0, 1]), logits)
    assert np.isfinite(logits).all()


def test_runs_do_not_cross_the_end_of_a_document():
    """Neither in the text nor in what is drawn, so the end is never forbidden."""
    vocab = Vocab("ab" + END)
    rules = index_runs(2, np.array([0, 2, 1, 1, 2, 0]), vocab)  # a END b b END a
    assert [rules.text[p : p + 2].tolist() for p in rules.positions] == [[1, 1]]
    for history, forbidden in [([0], []), ([2], []), ([1], [1])]:
        logits = np.zeros(3, np.float32)
        forbid_copies(rules, np.array(history), logits)
        assert np.flatnonzero(np.isinf(logits)).tolist() == forbidden
