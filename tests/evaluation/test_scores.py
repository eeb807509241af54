"""Scores: every figure is computed from the total nats and the number of characters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.evaluation.scores import Evaluation


@given(nats=st.floats(0, 1e9), num_chars=st.integers(1, 10**9))
def test_a_score_is_nats_over_characters(nats, num_chars):
    """Perplexity is at least 1 and finite, however large the nats are."""
    score = Evaluation(nats, num_chars, {})
    assert score.nats_per_char == nats / num_chars
    assert score.bits_per_char == pytest.approx(nats / num_chars / math.log(2))
    assert score.perplexity >= 1
    assert math.isfinite(score.perplexity)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    """Guessing among 65 characters is as uncertain as a die with 65 faces."""
    score = Evaluation(1000 * math.log(65), 1000, {})
    assert score.perplexity == pytest.approx(65)
    assert score.bits_per_char == pytest.approx(math.log2(65))


def test_unknown_characters_are_counted_separately():
    """They change no other figure."""
    with_unknown, without = Evaluation(10.0, 5, {"é": 3, "x": 1}), Evaluation(10.0, 5, {})
    assert (with_unknown.num_unknown, without.num_unknown) == (4, 0)
    assert with_unknown.nats_per_char == without.nats_per_char
