"""Drawing a character: the filters and the draw."""

import math

import numpy as np
import pytest

from charrnn.kernels.filters import draw, filter_logits
from charrnn.kernels.head import surprisal
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
