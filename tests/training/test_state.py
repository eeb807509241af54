"""The state of a run: its values are checked and come back unchanged; a step clips, updates or diverges."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.batches import Cursor
from charrnn.errors import DivergenceError, ModelFileError
from charrnn.runs.folder import Run
from charrnn.training.loop import starting_state
from charrnn.training.optimizer import apply_gradient
from charrnn.training.state import MAX_ROLLBACKS, ScalarState, read_scalars

PATH = Path("checkpoints/poems/state-40.safetensors")
SCALARS = ScalarState(
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
    recent_norms=1.7,
    recent_steps=3,
    recent_clipped=2,
    num_events=77,
    rate_factor=0.25,
    num_rollbacks=2,
    finished=False,
    cursor=Cursor(3, 64),
)
STEPS = ["step", "num_steps", "schedule_start", "evaluated_step", "best_step"]
COUNTS = [
    *STEPS,
    "valid_chars",
    "bad_evaluations",
    "recent_chars",
    "recent_steps",
    "recent_clipped",
    "num_events",
    "num_rollbacks",
]
NUMBERS = ["best_nats", "recent_nats", "recent_norms", "rate_factor"]
OPTIONAL = {"num_steps", "best_nats"}
FIELDS = [field.name for field in dataclasses.fields(ScalarState)]


def read_again(scalars):
    """Read values that were written to a file."""
    return read_scalars(PATH, json.loads(json.dumps(scalars.scalars())))


def assert_refused(**changes):
    """Check that these values are refused with an error that names the file; return its message."""
    with pytest.raises(ModelFileError) as caught:
        read_scalars(PATH, {**SCALARS.scalars(), **changes})
    assert str(caught.value).startswith(f"{PATH}: not a state of a run (")
    return str(caught.value)


# plain values


def test_every_field_is_tested():
    """A new field must be added to one of the lists above."""
    assert {*COUNTS, *NUMBERS, "finished", "cursor"} == set(FIELDS)
    assert len(COUNTS + NUMBERS) + 2 == len(FIELDS)


def test_values_come_back_unchanged():
    """Whatever else the file holds, and also before the first step."""
    assert read_again(SCALARS) == SCALARS
    assert read_again(ScalarState()) == ScalarState()
    assert read_scalars(PATH, {**SCALARS.scalars(), "training": {"seed": 1}, "file_sha256": "0"}) == SCALARS
    assert SCALARS.scalars().keys() == set(FIELDS)


def test_values_come_back_from_a_state_file(tmp_path):
    """Through the state file of a run."""
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    run.save_state(40, {}, SCALARS.scalars())
    state = run.newest_state()
    assert read_scalars(state.path, state.meta) == SCALARS


@given(
    steps=st.lists(st.integers(0, 10**15), min_size=5, max_size=5).map(sorted),
    known=st.booleans(),
    best_nats=st.none() | st.floats(0.0, 1e300),
    recent_nats=st.floats(0.0, 1e300),
    recent_norms=st.floats(0.0, 1e300),
    rate_factor=st.floats(0.0, 1.0),
    finished=st.booleans(),
    cursor=st.builds(Cursor, st.integers(0, 10**15), st.integers(0, 10**15)),
)
def test_any_values_in_range_come_back(steps, known, **values):
    """To the last digit."""
    start, best, evaluated, step, end = steps
    num_steps = end if known and end > start else None
    values |= {"schedule_start": start, "best_step": best, "evaluated_step": evaluated}
    scalars = dataclasses.replace(SCALARS, step=step, num_steps=num_steps, **values)
    assert read_again(scalars) == scalars


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 101},
        {"num_steps": 39},
        {"step": 9},
        {"schedule_start": 41},
        {"best_step": 41},
        {"evaluated_step": 41},
        {"step": 40, "num_steps": 40, "schedule_start": 40},
    ],
    ids=str,
)
def test_steps_that_contradict_each_other_are_refused(changes):
    """Nothing happened after the last step, which is not after the end; and a schedule has a length."""
    assert_refused(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 100, "best_step": 100, "evaluated_step": 100},
        {"step": 10, "best_step": 0, "evaluated_step": 10},
        {"num_steps": None},
    ],
    ids=str,
)
def test_the_ends_of_a_schedule_are_accepted(changes):
    """Its last step, its first step, and a schedule whose end is not known yet."""
    scalars = dataclasses.replace(SCALARS, **changes)
    assert read_again(scalars) == scalars


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 10**16, 2.0, 0.5, math.nan, math.inf, "1", True, [], {}], ids=repr)
def test_an_invalid_count_is_refused(name, value):
    """Negative, too large, not whole, or of another type."""
    assert name.replace("_", "-") in assert_refused(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, 1e301, "1.0", True, [0.5], {}], ids=repr)
def test_an_invalid_number_is_refused(name, value):
    """Negative, not finite, or of another type."""
    assert name.replace("_", "-") in assert_refused(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_only_optional_values_can_be_null(name):
    """The last step, before the speed is known, and the best score, before there is one."""
    if name in OPTIONAL:
        assert getattr(read_scalars(PATH, {**SCALARS.scalars(), name: None}), name) is None
    else:
        assert_refused(**{name: None})


@pytest.mark.parametrize("name", FIELDS)
def test_no_value_can_be_missing(name):
    """A missing value does not get its default."""
    values = SCALARS.scalars()
    del values[name]
    with pytest.raises(ModelFileError, match=name) as caught:
        read_scalars(PATH, values)
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize("value", [0, 1, None, "false", [], {}], ids=repr)
def test_finished_is_true_or_false(value):
    """No other type is converted."""
    assert "finished" in assert_refused(finished=value)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.125])
def test_a_rate_factor_is_at_most_one(value):
    """It is a share of the learning rate that was asked for."""
    assert read_scalars(PATH, {**SCALARS.scalars(), "rate_factor": value}).rate_factor == value
    assert_refused(rate_factor=1.0 + 1e-9)


def test_a_state_has_few_rollbacks():
    """A run that diverged more often has ended."""
    assert read_scalars(PATH, {**SCALARS.scalars(), "num_rollbacks": MAX_ROLLBACKS}).num_rollbacks == MAX_ROLLBACKS
    assert_refused(num_rollbacks=MAX_ROLLBACKS + 1)


@pytest.mark.parametrize(
    "cursor",
    [
        None,
        5,
        True,
        "pass_index",
        [1, 2],
        [],
        {},
        {"pass_index": 1},
        {"time": 1},
        {"pass_index": -1, "time": 0},
        {"pass_index": 0, "time": -1},
        {"pass_index": 1.5, "time": 0},
        {"pass_index": 0, "time": "0"},
        {"pass_index": None, "time": 0},
        {"pass_index": 0, "time": math.nan},
        {"pass_index": 10**16, "time": 0},
        {"pass_index": [0], "time": 0},
        {"pass_index": True, "time": 0},
    ],
    ids=str,
)
def test_an_invalid_cursor_is_refused(cursor):
    """A cursor is a pass and a time in it, both of them counts."""
    assert_refused(cursor=cursor)


def test_the_span_starts_with_the_schedule():
    """An extended run's schedule starts where it was extended; without an end there is no span."""
    assert SCALARS.span == 90
    assert SCALARS.since_start(40) == 30
    assert dataclasses.replace(SCALARS, num_steps=None).span is None


# a step


def test_clipping_bounds_the_norm_and_only_shrinks(plan):
    """A long gradient is scaled to grad_clip; a short one is left as it is."""
    state = starting_state(plan)
    size = plan.task.model.num_parameters
    for norm, expected in [(50.0, 1.0), (0.3, 0.3)]:
        gradient = torch.full((size,), 7 * norm / math.sqrt(size))  # of a sum over seven targets
        apply_gradient(state, gradient, 1.0, 7, rate=0.0, grad_clip=1.0)
        found = float(gradient.norm())
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_step_that_diverges_changes_nothing(plan, part, value):
    """Divergence is detected before the weights or AdamW's moments change."""
    state = starting_state(plan)
    gradient = torch.ones(plan.task.model.num_parameters)
    apply_gradient(state, gradient.clone(), 1.0, 7, rate=0.1, grad_clip=1.0)
    before = state.to_arrays()
    if part == "gradient":
        gradient[17] = value
    with pytest.raises(DivergenceError, match=f"step 0: the {part} is not finite"):
        apply_gradient(state, gradient, value if part == "loss" else 1.0, 7, rate=0.1, grad_clip=1.0)
    assert all((before[name] == array).all() for name, array in state.to_arrays().items())
