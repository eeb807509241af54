"""Where a run stands: every value of a state is checked, and comes back as it was."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.batches import Cursor
from charrnn.errors import ModelFileError
from charrnn.training.folder import Run
from charrnn.training.state import MAX_ROLLBACKS, ScalarState, read_scalars

PATH = Path("checkpoints/poems/state-40.safetensors")
STANDING = ScalarState(
    step=40,
    num_steps=100,
    schedule_start=10,
    valid_chars=1000,
    evaluated_step=36,
    bad_evaluations=2,
    best_nats=1 / 3,
    best_step=30,
    recent_nats=0.1 + 0.2,
    recent_chars=512,
    num_events=77,
    rate_factor=0.25,
    num_rollbacks=2,
    finished=False,
    cursor=Cursor(3, 64),
)
COUNTS = [
    *("step", "num_steps", "schedule_start", "valid_chars", "evaluated_step", "bad_evaluations", "best_step"),
    *("recent_chars", "num_events", "num_rollbacks"),
]
NUMBERS = ["best_nats", "recent_nats", "rate_factor"]
OPTIONAL = {"num_steps", "best_nats"}
FIELDS = [field.name for field in dataclasses.fields(ScalarState)]


def read_again(standing):
    """What is read from a file that the values were written to."""
    return read_scalars(PATH, json.loads(json.dumps(standing.scalars())))


def refused(**changes):
    """Check that these values are refused with an error that names the file; return what it says of them."""
    with pytest.raises(ModelFileError) as caught:
        read_scalars(PATH, {**STANDING.scalars(), **changes})
    assert str(caught.value).startswith(f"{PATH}: not a state of a run (")
    return str(caught.value)


def test_every_field_is_in_a_table():
    """A new one is tried as the others are."""
    assert {*COUNTS, *NUMBERS, "finished", "cursor"} == set(FIELDS)
    assert len(COUNTS + NUMBERS) + 2 == len(FIELDS)


def test_where_a_run_stands_comes_back():
    """All of it, as plain values, whatever else the file holds; before the first step, too."""
    assert read_again(STANDING) == STANDING
    assert read_again(ScalarState()) == ScalarState()
    assert read_scalars(PATH, {**STANDING.scalars(), "training": {"seed": 1}, "file_sha256": "0"}) == STANDING
    assert STANDING.scalars().keys() == set(FIELDS)


def test_it_comes_back_from_a_real_file(tmp_path):
    """Through the state file of a run."""
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    run.save_state(40, {}, STANDING.scalars())
    state = run.newest_state()
    assert read_scalars(state.path, state.meta) == STANDING


@given(
    steps=st.lists(st.integers(0, 10**15), min_size=5, max_size=5).map(sorted),
    known=st.booleans(),
    best_nats=st.none() | st.floats(0.0, 1e300),
    recent_nats=st.floats(0.0, 1e300),
    rate_factor=st.floats(0.0, 1.0),
    finished=st.booleans(),
    cursor=st.builds(Cursor, st.integers(0, 10**15), st.integers(0, 10**15)),
)
def test_any_values_in_range_come_back(steps, known, **values):
    """To the last digit."""
    start, best, evaluated, step, end = steps
    num_steps = end if known and end > start else None
    values |= {"schedule_start": start, "best_step": best, "evaluated_step": evaluated}
    standing = dataclasses.replace(STANDING, step=step, num_steps=num_steps, **values)
    assert read_again(standing) == standing


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"step": 101},
            {"num_steps": 39},
            {"step": 9},
            {"schedule_start": 41},
            {"best_step": 41},
            {"evaluated_step": 41},
        ),
        {"step": 40, "num_steps": 40, "schedule_start": 40},
    ],
    ids=str,
)
def test_steps_that_contradict_one_another_are_refused(changes):
    """Nothing happened after the last step, which isn't after the end; and a schedule has a length."""
    refused(**changes)


def test_at_its_ends_a_run_stands_well():
    """Before its first step, at its last, and at the end of an extended one."""
    for changes in (
        {"step": 100, "best_step": 100, "evaluated_step": 100},
        {"step": 10, "best_step": 0, "evaluated_step": 10},
        {"num_steps": None},
    ):
        standing = dataclasses.replace(STANDING, **changes)
        assert read_again(standing) == standing


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 10**16, 2.0, 0.5, math.nan, math.inf, "1", True, [], {}], ids=repr)
def test_a_count_that_is_none_is_refused(name, value):
    """Negative, without end, no whole number, or of another type."""
    assert name.replace("_", "-") in refused(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, 1e301, "1.0", True, [0.5], {}], ids=repr)
def test_a_number_that_is_none_is_refused(name, value):
    """Negative, not finite, or of another type."""
    assert name.replace("_", "-") in refused(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_only_what_may_be_unknown_is_null(name):
    """The end, before the speed is known, and the best score, before there is one."""
    if name in OPTIONAL:
        assert getattr(read_scalars(PATH, {**STANDING.scalars(), name: None}), name) is None
    else:
        refused(**{name: None})


@pytest.mark.parametrize("name", FIELDS)
def test_nothing_may_be_missing(name):
    """No value is taken for its default: a file that lacks one is from elsewhere."""
    values = STANDING.scalars()
    del values[name]
    with pytest.raises(ModelFileError, match=name) as caught:
        read_scalars(PATH, values)
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize("value", [0, 1, None, "false", [], {}], ids=repr)
def test_finished_is_yes_or_no(value):
    """Nothing else is taken for one of them."""
    assert "finished" in refused(finished=value)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.125])
def test_a_rate_factor_is_a_share(value):
    """Of the learning rate that was asked for; more than all of it is refused."""
    assert read_scalars(PATH, {**STANDING.scalars(), "rate_factor": value}).rate_factor == value
    refused(rate_factor=1.0 + 1e-9)


def test_rollbacks_are_few():
    """A run that diverged more often has ended."""
    assert read_scalars(PATH, {**STANDING.scalars(), "num_rollbacks": MAX_ROLLBACKS}).num_rollbacks == MAX_ROLLBACKS
    refused(num_rollbacks=MAX_ROLLBACKS + 1)


@pytest.mark.parametrize(
    "cursor",
    [
        *(None, 5, "pass_index", [1, 2], [], {}, True),
        *({"pass_index": 1}, {"time": 1}, {"pass_index": -1, "time": 0}, {"pass_index": 0, "time": -1}),
        *({"pass_index": 1.5, "time": 0}, {"pass_index": 0, "time": "0"}, {"pass_index": None, "time": 0}),
        *({"pass_index": 0, "time": math.nan}, {"pass_index": 10**16, "time": 0}, {"pass_index": [0], "time": 0}),
        {"pass_index": True, "time": 0},
    ],
    ids=str,
)
def test_a_cursor_that_points_nowhere_is_refused(cursor):
    """It is a pass and a place in it, both of them counts."""
    refused(cursor=cursor)


def test_a_span_is_counted_from_where_the_schedule_began():
    """For an extended run that is where its extension did; without an end there is none."""
    assert STANDING.span == 90
    assert STANDING.since_start(40) == 30
    assert dataclasses.replace(STANDING, num_steps=None).span is None
