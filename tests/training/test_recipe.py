"""The pace of a run, on a clock that the tests advance."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import SECONDS_BETWEEN_STATES, TrainConfig
from charrnn.training.recipe import (
    NUM_EVALUATIONS,
    Pace,
    StopRequest,
    counted_part,
    evaluation_is_due,
    final_part,
    valid_part,
)


class Clock:
    """Seconds from an arbitrary start, which advance only when a test says so."""

    def __init__(self):
        self.now = 1234.5

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The clock that a Pace reads."""
    return Clock()


def make_pace(clock, *, save_every=SECONDS_BETWEEN_STATES):
    """A pace that starts now."""
    return Pace(clock, save_every=save_every)


def take_steps(pace, clock, count, *, seconds, num_chars=100):
    """Do steps that take so many seconds each."""
    for _ in range(count):
        pace.begin_step()
        clock.now += seconds
        pace.end_step(num_chars)


def measure_speed(pace, clock, budget, *, first, seconds, num_chars=100):
    """Do steps, the first a slow one, until the speed is known; return their number."""
    take_steps(pace, clock, 1, seconds=first, num_chars=num_chars)
    count = 1
    while not pace.is_known(budget):
        take_steps(pace, clock, 1, seconds=seconds, num_chars=num_chars)
        count += 1
        assert count < 10_000
    return count


def steps_left(pace, budget, *, num_scored=0, num_counted=0):
    """The steps that fit the rest of a budget."""
    return pace.steps_left(budget, num_scored=num_scored, num_counted=num_counted)


# evaluations


@given(span=st.integers(1, 20_000))
def test_evaluations_are_close_at_first_and_never_far_apart(span):
    """No gap is longer than a twelfth of the span, or much longer than a fifth of the steps done."""
    last, due = 0, []
    for done in range(1, span + 1):
        if evaluation_is_due(done, last, span):
            due.append(done)
            last = done
    assert due[-1] == span
    assert len(due) <= 45
    for before, after in itertools.pairwise([0, *due]):
        assert after - before <= max(1, span / 12 + 1)
        assert after - before <= max(51, 0.25 * after + 1)
        assert after == span or after - before >= min(span / 12, 50)


def test_no_evaluation_is_due_before_the_end_is_known():
    """The number of characters to score depends on it."""
    assert not any(evaluation_is_due(done, 0, None) for done in range(1, 1000))


@given(
    num_valid=st.integers(1, 2_000_000),
    batch_size=st.integers(1, 500),
    seq_len=st.integers(1, 500),
    num_steps=st.integers(1, 10**6),
)
def test_evaluations_during_training_take_5_percent(num_valid, batch_size, seq_len, num_steps):
    """They score no more than there is, at least a thousand characters, and beyond that 5 % of the run in time.

    Scoring a character takes a third of the time of training on one, and the warm-up doubles that.
    """
    config = TrainConfig(batch_size=batch_size, seq_len=seq_len, dropout=0.0, learning_rate=1e-3)
    part = valid_part(num_valid, config, num_steps)
    assert min(1000, num_valid) <= part <= num_valid
    if part > 1000:
        assert 2 * NUM_EVALUATIONS * part * 2 / 3 <= 0.05 * num_steps * batch_size * seq_len


def test_a_longer_run_scores_more_characters():
    """Up to all of them."""
    config = TrainConfig(batch_size=64, seq_len=64, dropout=0.0, learning_rate=1e-3)
    parts = [valid_part(111_540, config, num_steps) for num_steps in (10, 1000, 3000, 10**6)]
    assert parts == sorted(set(parts))
    assert (parts[0], parts[-1]) == (1000, 111_540)


# budgets


@pytest.mark.parametrize("seconds", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("budget", [10.0, 60.0, 300.0])
def test_a_budget_becomes_the_steps_that_fit(clock, budget, seconds):
    """At the speed of the steps after the first, at least nine tenths of the rest are used, and no more than that."""
    pace, start = make_pace(clock), clock.now
    measure_speed(pace, clock, budget, first=5 * seconds, seconds=seconds)
    rest = budget - (clock.now - start)
    left = steps_left(pace, budget)
    assert left == 1 or 0.9 * rest - seconds <= left * seconds <= 0.951 * rest


def test_the_steps_left_match_a_worked_example(clock):
    """A slow first step, then ten per second: 1.9 s of 60 are spent, and 0.95 * 58.1 / 0.1 = 551.95 steps fit."""
    pace = make_pace(clock)
    assert measure_speed(pace, clock, 60.0, first=1.0, seconds=0.1) == 10
    assert steps_left(pace, 60.0) == 551


def test_the_final_evaluation_is_planned_for(clock):
    """Each held-out character takes half the time of training on one: here 10 s, which are 0.95 * 100 steps."""
    pace = make_pace(clock)
    measure_speed(pace, clock, 60.0, first=0.1, seconds=0.1, num_chars=100)
    assert steps_left(pace, 60.0) - steps_left(pace, 60.0, num_scored=20_000) == pytest.approx(95, abs=1)


def test_counting_n_grams_is_planned_for(clock):
    """Each character takes 2.5 microseconds, fitting included: here 5 s, which are 0.95 * 50 steps."""
    pace = make_pace(clock)
    measure_speed(pace, clock, 60.0, first=0.1, seconds=0.1)
    assert steps_left(pace, 60.0) - steps_left(pace, 60.0, num_counted=2_000_000) == pytest.approx(47.5, abs=1)


def test_the_final_score_takes_at_most_a_fifth_of_the_time(clock):
    """However long the held-out text is: here 58.9 s fit 0.95 * 589 / 1.2 steps."""
    pace = make_pace(clock)
    measure_speed(pace, clock, 60.0, first=0.1, seconds=0.1, num_chars=2000)
    left = steps_left(pace, 60.0, num_scored=2_000_000)
    assert left == steps_left(pace, 60.0, num_scored=10**9)
    assert left == pytest.approx(steps_left(pace, 60.0) / 1.2, abs=1)
    config = TrainConfig(batch_size=40, seq_len=50, dropout=0.0, learning_rate=1e-3)
    part = final_part(2_000_000, config, left)
    assert part == int(0.4 * 2000 * left)


def test_a_short_text_is_scored_as_a_whole_at_the_end():
    """So is any text after enough steps."""
    config = TrainConfig(batch_size=32, seq_len=64, dropout=0.0, learning_rate=1e-3)
    assert final_part(50_000, config, 1) is None
    assert final_part(111_540, config, 1) == 50_000
    assert final_part(111_540, config, 200) is None
    assert final_part(111_540, config, 1, num_texts=2) == 25_000  # the other text gets as many


def test_a_longer_run_counts_n_grams_in_more_of_a_long_text():
    """In the last two million characters at least, and up to twenty million."""
    config = TrainConfig(batch_size=32, seq_len=64, dropout=0.0, learning_rate=1e-3)
    parts = [counted_part(60_000_000, config, num_steps) for num_steps in (0, 100, 1000, 10_000)]
    assert parts == [2_000_000, 2_000_000, 10_240_000, 20_000_000]
    assert counted_part(500_000, config, 10_000) == 500_000


@pytest.mark.parametrize("num_scored", [0, 10**9])
def test_at_least_one_step_is_left(clock, num_scored):
    """Even if the time is over, or the final evaluation alone takes longer than the budget."""
    pace = make_pace(clock)
    take_steps(pace, clock, 6, seconds=100.0)
    assert steps_left(pace, 60.0, num_scored=num_scored) == 1


def test_the_speed_is_known_after_a_part_of_the_budget(clock):
    """Three percent of it and six steps: neither alone is enough."""
    pace = make_pace(clock)
    take_steps(pace, clock, 5, seconds=10.0)
    assert not pace.is_known(60.0)
    take_steps(pace, clock, 1, seconds=10.0)
    assert pace.is_known(60.0)
    assert not pace.is_known(60.0 / 0.03 + 1)


def test_time_between_steps_counts_as_spent(clock):
    """Evaluations and saves are part of the budget, so they leave fewer steps."""
    pace = make_pace(clock)
    measure_speed(pace, clock, 60.0, first=0.1, seconds=0.1)
    before = steps_left(pace, 60.0)
    clock.now += 20.0
    assert steps_left(pace, 60.0) < before - 0.9 * 200


# speed


def test_the_speed_is_that_of_the_steps_since_the_last_call(clock):
    """An evaluation between steps doesn't lower it, and neither does an earlier slow step."""
    pace = make_pace(clock)
    take_steps(pace, clock, 2, seconds=1.0)
    assert pace.chars_per_second() == pytest.approx(100.0)
    clock.now += 50.0
    take_steps(pace, clock, 4, seconds=0.25)
    assert pace.chars_per_second() == pytest.approx(400.0)


def test_a_step_too_fast_to_measure_has_a_finite_speed(clock):
    """A step between two ticks of the clock doesn't divide by zero."""
    pace = make_pace(clock)
    take_steps(pace, clock, 1, seconds=0.0)
    assert 0 < pace.chars_per_second() < float("inf")


def test_the_time_left_follows_the_average_pace(clock):
    """Evaluations and saves included: after ten steps in 12 s, five more take 6 s."""
    pace = make_pace(clock)
    take_steps(pace, clock, 10, seconds=1.0)
    clock.now += 2.0
    assert pace.seconds_left(5) == pytest.approx(6.0)
    assert pace.seconds_left(0) == 0.0


# saving


@pytest.mark.parametrize(("save_every", "expected"), [(60.0, [61, 122, 183, 244]), (100.0, [101, 202])])
def test_a_state_is_due_at_intervals(clock, save_every, expected):
    """An interval starts when a state is saved."""
    pace, due = make_pace(clock, save_every=save_every), []
    for second in range(1, 301):
        clock.now += 1.0
        if pace.state_is_due():
            due.append(second)
            pace.state_was_saved()
    assert SECONDS_BETWEEN_STATES == 60.0
    assert due == expected


def test_a_state_saved_early_starts_a_new_interval(clock):
    """As after a better model is saved."""
    pace, due = make_pace(clock), []
    for second in range(1, 201):
        clock.now += 1.0
        if pace.state_is_due() or second in (5, 6, 100):
            due.append(second)
            pace.state_was_saved()
    assert due == [5, 6, 67, 100, 161]


def test_with_no_interval_a_state_is_due_at_each_step(clock):
    """As tests of killed runs need; as soon as the clock advances."""
    pace = make_pace(clock, save_every=0.0)
    for _ in range(5):
        clock.now += 1e-3
        assert pace.state_is_due()
        pace.state_was_saved()


def test_two_paces_are_independent(clock):
    """Each counts from its creation."""
    first = make_pace(clock)
    take_steps(first, clock, 10, seconds=1.0)
    second = make_pace(clock)
    take_steps(second, clock, 10, seconds=2.0)
    assert first.seconds_left(10) == pytest.approx(30.0)
    assert second.seconds_left(10) == pytest.approx(20.0)


def test_the_clock_leaves_out_suspended_time():
    """Otherwise it runs like the system's."""
    request = StopRequest()
    before, clock, after = time.perf_counter(), request.clock(), time.perf_counter()
    assert before <= clock <= after
    request.paused += 100.0
    assert before - 100.0 <= request.clock() <= time.perf_counter() - 100.0
