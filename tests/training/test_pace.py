"""How a run's time is spent, on a clock that the tests wind."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import SECONDS_BETWEEN_STATES, TrainConfig
from charrnn.training.recipe import NUM_EVALUATIONS, Pace, evaluation_is_due, valid_part


class Clock:
    """Seconds from anywhere, which move only when told to."""

    def __init__(self):
        self.now = 1234.5

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The clock that a Pace reads."""
    return Clock()


def pace_of(clock, *, save_every=SECONDS_BETWEEN_STATES):
    """A pace that begins now."""
    return Pace(clock, save_every=save_every)


def take_steps(pace, clock, count, *, seconds, num_chars=100):
    """Do so many steps that take so long."""
    for _ in range(count):
        pace.begin_step()
        clock.now += seconds
        pace.end_step(num_chars)


def probe(pace, clock, budget, *, first, seconds, num_chars=100):
    """Do steps, the first a slow one, until the speed is known; return how many."""
    take_steps(pace, clock, 1, seconds=first, num_chars=num_chars)
    count = 1
    while not pace.is_known(budget):
        take_steps(pace, clock, 1, seconds=seconds, num_chars=num_chars)
        count += 1
        assert count < 10_000
    return count


@given(span=st.integers(1, 20_000), start=st.integers(0, 1000))
def test_evaluations_are_close_at_first_and_never_far(span, start):
    """No gap is longer than a twelfth of the span, nor much than a fifth of what is done; the last is at the end."""
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


def test_nothing_is_evaluated_before_the_end_is_known():
    """How much is scored depends on it."""
    assert not any(evaluation_is_due(done, 0, None) for done in range(1, 1000))


@given(
    num_valid=st.integers(1, 2_000_000),
    batch_size=st.integers(1, 500),
    seq_len=st.integers(1, 500),
    num_steps=st.integers(1, 10**6),
)
def test_evaluations_on_the_way_cost_a_twentieth(num_valid, batch_size, seq_len, num_steps):
    """They score no more than there is, a thousand at least, and beyond that 5 % of the run in time.

    Scoring a character costs a third of training on one, twice that with the warm-up.
    """
    config = TrainConfig(batch_size=batch_size, seq_len=seq_len, dropout=0.0, learning_rate=1e-3)
    part = valid_part(num_valid, config, num_steps)
    assert min(1000, num_valid) <= part <= num_valid
    if part > 1000:
        assert 2 * NUM_EVALUATIONS * part * 2 / 3 <= 0.05 * num_steps * batch_size * seq_len


def test_a_long_run_scores_more_on_the_way():
    """Up to all of it."""
    config = TrainConfig(batch_size=64, seq_len=64, dropout=0.0, learning_rate=1e-3)
    parts = [valid_part(111_540, config, num_steps) for num_steps in (10, 1000, 3000, 10**6)]
    assert parts == sorted(set(parts))
    assert (parts[0], parts[-1]) == (1000, 111_540)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("budget", [10.0, 60.0, 300.0])
def test_a_budget_becomes_the_steps_that_fit(clock, budget, seconds):
    """At the speed of the steps after the first, nine tenths of the rest or more are used and it is not overrun."""
    pace, start = pace_of(clock), clock.now
    probe(pace, clock, budget, first=5 * seconds, seconds=seconds)
    rest = budget - (clock.now - start)
    left = pace.steps_left(budget, num_valid=0)
    assert left == 1 or 0.9 * rest - seconds <= left * seconds <= 0.951 * rest


def test_steps_are_counted_as_worked_out_by_hand(clock):
    """A slow first step, then ten a second: 1.9 s are spent of 60, and 0.95 * 58.1 / 0.1 = 551.95 steps fit."""
    pace = pace_of(clock)
    assert probe(pace, clock, 60.0, first=1.0, seconds=0.1) == 10
    assert pace.steps_left(60.0, num_valid=0) == 551


def test_the_last_evaluation_is_planned_for(clock):
    """Each held-out character costs half of training on one: here 10 s, which are 0.95 * 100 steps less."""
    pace = pace_of(clock)
    probe(pace, clock, 60.0, first=0.1, seconds=0.1, num_chars=100)
    without = pace.steps_left(60.0, num_valid=0)
    assert without - pace.steps_left(60.0, num_valid=20_000) == pytest.approx(95, abs=1)


@pytest.mark.parametrize("num_valid", [0, 10**9])
def test_there_is_always_a_step_left(clock, num_valid):
    """Also where the time is over, or the last evaluation alone takes more than there is."""
    pace = pace_of(clock)
    take_steps(pace, clock, 6, seconds=100.0)
    assert pace.steps_left(60.0, num_valid=num_valid) == 1


def test_the_speed_is_known_after_a_part_of_the_budget(clock):
    """Three hundredths of it, and six steps: neither alone is enough."""
    pace = pace_of(clock)
    take_steps(pace, clock, 5, seconds=10.0)
    assert not pace.is_known(60.0)
    take_steps(pace, clock, 1, seconds=10.0)
    assert pace.is_known(60.0)
    assert not pace.is_known(60.0 / 0.03 + 1)


def test_what_happens_between_steps_counts_as_time_spent(clock):
    """Evaluations and saves belong to the budget, so fewer steps are left after them."""
    pace = pace_of(clock)
    probe(pace, clock, 60.0, first=0.1, seconds=0.1)
    before = pace.steps_left(60.0, num_valid=0)
    clock.now += 20.0
    assert pace.steps_left(60.0, num_valid=0) < before - 0.9 * 200


def test_the_speed_is_that_of_the_steps_since_last_asked(clock):
    """An evaluation in between doesn't make the network look slow, nor an earlier slow step."""
    pace = pace_of(clock)
    take_steps(pace, clock, 2, seconds=1.0)
    assert pace.chars_per_second() == pytest.approx(100.0)
    clock.now += 50.0
    take_steps(pace, clock, 4, seconds=0.25)
    assert pace.chars_per_second() == pytest.approx(400.0)


def test_a_speed_that_no_clock_can_measure_is_finite(clock):
    """A step between two ticks of the clock divides nothing by zero."""
    pace = pace_of(clock)
    take_steps(pace, clock, 1, seconds=0.0)
    assert 0 < pace.chars_per_second() < float("inf")


def test_the_time_left_is_at_the_pace_of_all_so_far(clock):
    """Evaluations and saves included: ten steps in 12 s so far make five more 6 s."""
    pace = pace_of(clock)
    take_steps(pace, clock, 10, seconds=1.0)
    clock.now += 2.0
    assert pace.seconds_left(5) == pytest.approx(6.0)
    assert pace.seconds_left(0) == 0.0


@pytest.mark.parametrize(("save_every", "expected"), [(60.0, [61, 122, 183, 244]), (100.0, [101, 202])])
def test_a_state_is_due_once_in_a_while(clock, save_every, expected):
    """Asked at any moment; the next minute, or whatever was asked for, begins when one was saved."""
    pace, due = pace_of(clock, save_every=save_every), []
    for second in range(1, 301):
        clock.now += 1.0
        if pace.state_is_due():
            due.append(second)
            pace.state_was_saved()
    assert SECONDS_BETWEEN_STATES == 60.0
    assert due == expected


def test_a_state_is_due_where_the_weights_were_kept(clock):
    """At once, and the next minute starts there."""
    pace, due = pace_of(clock), []
    for second in range(1, 201):
        clock.now += 1.0
        if pace.state_is_due() or second in (5, 6, 100):
            due.append(second)
            pace.state_was_saved()
    assert due == [5, 6, 67, 100, 161]


def test_no_time_between_two_states_is_a_state_a_step(clock):
    """As a test of a run that is killed often asks for; as often as the clock moves."""
    pace = pace_of(clock, save_every=0.0)
    for _ in range(5):
        clock.now += 1e-3
        assert pace.state_is_due()
        pace.state_was_saved()


def test_two_paces_share_nothing(clock):
    """Each counts from when it was made."""
    first = pace_of(clock)
    take_steps(first, clock, 10, seconds=1.0)
    second = pace_of(clock)
    take_steps(second, clock, 10, seconds=2.0)
    assert first.seconds_left(10) == pytest.approx(30.0)
    assert second.seconds_left(10) == pytest.approx(20.0)
