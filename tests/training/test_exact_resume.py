"""Exact resume: a run that was stopped, however often, ends with the same files and the same log as one that wasn't."""

import json
from dataclasses import replace

import pytest

from charrnn.config import CELLS, CorpusConfig, SourceConfig
from charrnn.data.cache import Cache
from charrnn.data.corpus import load_corpus
from charrnn.errors import Interrupted
from charrnn.events import Progress, Resumed, Warned
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.runs.log import Log
from charrnn.training import loop
from charrnn.training.loop import train
from charrnn.training.plan import Budget, Resume
from charrnn.training.recipe import StopRequest
from charrnn.training.state import read_scalars
from tests.conftest import (
    digests,
    make_text,
    plan_again,
    run_through,
    with_cell,
    with_environment,
    with_settings,
)

PRECISIONS = ["float32", *(["bfloat16"] if has_fast_bfloat16() else [])]


def slow(*values):
    """Parameters that only repeat a proof."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A text of many documents."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "cache").mkdir()
    (folder / "lines.txt").write_text(make_text(6000, seed=5), encoding="utf-8")
    config = CorpusConfig(documents="lines")
    return load_corpus([str(folder / "lines.txt")], config, SourceConfig(), Cache(folder / "cache"))


@pytest.fixture
def documents(plan, lines):
    """A run with everything a step can depend on: documents, dropout, weight drop, three workers."""
    reset_id = lines.vocab.id_of("\udc00")
    assert reset_id is not None
    plan = replace(plan, task=replace(plan.task, corpus=lines, corpus_config=CorpusConfig(documents="lines")))
    model = {"vocab_size": len(lines.vocab), "reset_id": reset_id}
    plan = with_settings(plan, model=model, batch_size=25, steps=30, dropout=0.3, weight_drop=0.2)
    return with_environment(plan, threads=3)


def train_in_sessions(plan, *lengths, **options):
    """Train in sessions of so many events, the last to the end; return the events of each."""
    sessions = []
    for length in (*lengths, None):
        again = plan_again(plan)
        if not again.is_finished:
            sessions.append(run_through(again, stop_after=length, **options))
    return sessions


ONCE_PER_CELL = {("gru", 0.0), ("lstm", 1e6), ("rnn", 0.0)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("cell", "save_every"),
    [
        (cell, seconds) if (cell, seconds) in ONCE_PER_CELL else slow(cell, seconds)
        for cell in CELLS
        for seconds in (0.0, 1e6)
    ],
)
def test_a_run_in_many_sessions_ends_as_one_in_a_single_session(documents, uninterrupted, cell, precision, save_every):
    """With all that a step can depend on, whether states are saved at each step or only with better models."""
    plan = with_environment(with_cell(documents, cell), precision=precision)
    assert plan.num_workers == 3
    sessions = train_in_sessions(plan, 1, 2, 5, 30, 4, save_every=save_every)
    assert [isinstance(events[0], Resumed) for events in sessions] == [False, False, True, True, True, True]
    assert digests(plan) == uninterrupted(plan).digests


def test_a_run_can_be_killed_after_any_event(plan, uninterrupted):
    """Here after each event of a run of three steps; only lost events are logged again."""
    plan = with_settings(plan, steps=3)
    expected = uninterrupted(plan)
    for stop_after in range(1, len(expected.events)):
        plan.run.clear()
        train_in_sessions(plan, stop_after)
        assert digests(plan) == expected.digests


@pytest.mark.parametrize("stop_after", [30, *map(slow, (*range(1, 10), 35, 40))])
def test_a_longer_run_can_be_killed_after_any_event(plan, uninterrupted, stop_after):
    """Here evaluations are two steps apart."""
    plan = with_settings(plan, steps=16)
    train_in_sessions(plan, stop_after)
    assert digests(plan) == uninterrupted(plan).digests


@pytest.mark.parametrize("cell", [*map(slow, CELLS)])
@pytest.mark.parametrize("stop_after", [1, 7, 11, 18])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_each_cell_resumes_exactly_in_each_environment(plan, uninterrupted, cell, stop_after, precision, threads):
    """With one worker and with several."""
    plan = with_environment(with_cell(plan, cell, batch_size=25), precision=precision, threads=threads)
    train_in_sessions(plan, stop_after)
    assert digests(plan) == uninterrupted(plan).digests


@pytest.mark.parametrize("part", ["hidden.0", "cursor", "step", "exp_avg.head.weight", "schedule_start"])
def test_each_part_of_a_state_is_needed(plan, uninterrupted, part):
    """Negative control: a state with one part reset does not end with the same bytes."""
    plan = with_settings(plan, steps=8)
    run_through(plan, stop_after=13)
    saved = plan.run.newest_state()
    if part in saved.tensors:
        saved.tensors[part][:] = 0
    elif part == "cursor":
        saved.meta["cursor"] = {"pass_index": 0, "time": 0}
    else:
        saved.meta[part] += 1
    run_through(replace(plan_again(plan), resume=Resume(saved, read_scalars(saved.path, saved.meta))))
    assert digests(plan)[0] != uninterrupted(plan).digests[0]


def test_the_log_of_a_killed_run_has_each_step_once(plan):
    """In order, and it says where the sessions began."""
    train_in_sessions(plan, 20, 9)
    records = [json.loads(line) for line in plan.run.log_path.read_text().splitlines()]
    steps = [record["step"] for record in records if record["event"] == "progress"]
    assert steps == list(range(1, 25))
    kinds = [record["event"] for record in records]
    assert (kinds.count("plan"), kinds.count("resumed"), kinds.count("finished")) == (1, 2, 1)


def test_a_run_killed_before_its_first_state_starts_again(plan, uninterrupted):
    """There is nothing to resume from; the plan is logged once."""
    (only,) = run_through(plan, stop_after=1)
    assert only.event == "plan"
    assert plan.run.newest_state() is None
    events = run_through(plan_again(plan))
    assert events[0].event == "plan"
    assert digests(plan) == uninterrupted(plan).digests


# signals


def test_a_stop_request_saves_and_ends_the_run(plan, uninterrupted):
    """The current step is completed and saved, and the run resumes from exactly there."""
    stop = StopRequest()
    events, log = train(plan, stop=stop), Log(plan.run)
    for event in events:
        log.append(event.record())
        if event.step == 5:
            break
    stop.signal_number = 15
    with pytest.raises(Interrupted) as ended:
        list(events)
    assert ended.value.exit_code == 143
    assert plan.run.newest_state().meta["step"] in (5, 6)
    run_through(plan_again(plan))
    assert digests(plan)[0] == uninterrupted(plan).digests[0]


def train_until_signal(plan, number, *, step, monkeypatch):
    """Train until a signal arrives in that step, or at once if it has passed; return the error that ends the run."""
    stop, original = StopRequest(), loop.progress_event

    def progress_event(state, *rest):
        if state.step >= step:
            stop.signal_number = number
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "progress_event", progress_event)
        with pytest.raises(Interrupted) as ended:
            run_through(plan, stop=stop)
    return ended.value


def test_a_run_stopped_by_signals_ends_as_one_that_was_not(documents, uninterrupted, monkeypatch):
    """Each signal saves a state that an uninterrupted run lacks; the files in the end are the same."""
    for number, step in ((2, 3), (15, 3), (1, 17)):
        error = train_until_signal(plan_again(documents), number, step=step, monkeypatch=monkeypatch)
        assert error.signal_number == number
        assert error.exit_code == 128 + number
        assert f"step {documents.run.newest_state().meta['step']};" in str(error)
    run_through(plan_again(documents))
    assert digests(documents) == uninterrupted(documents).digests


# other budgets and environments


def ticking_clock():
    """A stop request whose clock advances by 50 ms each time it is read."""
    stop, ticks = StopRequest(), []

    def clock():
        ticks.append(0.05)
        return sum(ticks)

    stop.clock = clock
    return stop


def test_a_run_in_minutes_resumes_exactly_once_its_steps_are_known(plan):
    """The time was turned into steps; from there on the clock decides nothing and is in no file."""
    plan = replace(with_settings(plan, steps=None), budget=Budget(0.1, 6.0))
    run_through(plan, stop=ticking_clock(), save_every=0.0)
    expected = digests(plan)
    for stop_after in (20, 40):
        plan.run.clear()
        events = run_through(plan, stop=ticking_clock(), stop_after=stop_after, save_every=0.0)
        known = [event.num_steps for event in events if isinstance(event, Progress)]
        assert known[-1] is not None
        state = plan.run.newest_state()
        assert state.meta["num_steps"] == known[-1]
        again = plan_again(plan)
        assert not again.is_finished
        assert not any(isinstance(event, Warned) for event in run_through(again, save_every=0.0))
        assert digests(plan) == expected


def test_an_extended_run_resumes_exactly(plan, uninterrupted):
    """Stopped on its way to the new end, it ends as one extended in a single session; the log has both ends."""
    uninterrupted(plan).copy_to(plan)
    run_through(plan_again(plan, steps=40))
    expected = digests(plan)
    assert [record["step"] for record in expected[1] if record["event"] == "finished"] == [24, 40]
    plan.run.clear()
    uninterrupted(plan).copy_to(plan)
    run_through(plan_again(plan, steps=40), stop_after=12)
    run_through(plan_again(plan, steps=40))
    assert digests(plan) == expected


def test_another_environment_is_reported(plan):
    """Sums round differently there, so the run ends well, but with other bytes; the next session there says nothing."""
    run_through(plan, stop_after=10)
    elsewhere = with_environment(plan, threads=3)
    events = run_through(plan_again(elsewhere), stop_after=20)
    messages = [event.message for event in events if isinstance(event, Warned)]
    assert len(messages) == 1
    assert "threads was 2, is 3" in messages[0]
    events = run_through(plan_again(elsewhere))
    assert not any(isinstance(event, Warned) for event in events)
    assert events[-1].event == "finished"
