"""A run that was stopped, however often, ends as if nothing had happened: the same files, the same log."""

import json
from dataclasses import replace

import pytest

from charrnn.config import CELLS, CorpusConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.events import Progress, Resumed, Warned
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.training import loop as training
from charrnn.training.recipe import StopRequest
from tests.conftest import digests, make_text, plan_again, run_through, with_cell

PRECISIONS = ["float32", *["bfloat16"] * has_fast_bfloat16()]


@pytest.fixture
def documents(plan, tmp_path, cache):
    """A plan for a text of many documents, in which nothing is left out: dropout, dropped weights, three workers."""
    path = tmp_path / "lines.txt"
    path.write_text(make_text(6000, seed=5), encoding="utf-8")
    config = CorpusConfig(documents="lines")
    corpus = load_corpus([str(path)], config, SourceConfig(), cache)
    reset_id = corpus.vocab.id_of("\udc00")
    assert reset_id is not None
    model = replace(plan.model, vocab_size=len(corpus.vocab), reset_id=reset_id)
    settings = replace(plan.training, batch_size=25, steps=30, dropout=0.3, weight_drop=0.2)
    return replace(plan, corpus=corpus, corpus_config=config, model=model, training=settings, threads=3)


def sittings(plan, *lengths):
    """Train in sittings of so many events, the last to the end; return what each told."""
    told = []
    for length in (*lengths, None):
        again = plan_again(plan)
        if not again.done:
            told.append(run_through(again, stop_after=length))
    return told


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save_every", [0.0, 1e6])
def test_a_run_in_many_sittings_ends_as_one_in_one(documents, cell, precision, save_every):
    """With all that a step may depend on, and whether states are saved at each step or only with better models."""
    plan = replace(with_cell(documents, cell), precision=precision)
    assert plan.num_workers == 3
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    plan = replace(plan, save_every=save_every)
    told = sittings(plan, 1, 2, 5, 30, 4)
    assert [isinstance(events[0], Resumed) for events in told] == [False, False, True, True, True, True]
    assert digests(plan) == expected


@pytest.mark.parametrize("stop_after", [*range(1, 10), 30, 35, 40])
def test_it_may_be_killed_after_any_event(plan, stop_after):
    """Whatever was told last, and logged, is told again only where it belongs to what is lost."""
    plan = with_cell(plan, "gru", steps=16)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    sittings(plan, stop_after)
    assert digests(plan) == expected


def test_the_log_of_a_killed_run_tells_each_step_once(plan):
    """Each in its place, and where the sittings began."""
    sittings(plan, 20, 9)
    records = [json.loads(line) for line in plan.run.log_path.read_text().splitlines()]
    steps = [record["step"] for record in records if record["event"] == "progress"]
    assert steps == list(range(1, 25))
    kinds = [record["event"] for record in records]
    assert (kinds.count("plan"), kinds.count("resumed"), kinds.count("finished")) == (1, 2, 1)


def test_a_run_killed_before_its_first_state_begins_anew(plan):
    """There is nothing to go on from but the line that told the plan, which is told once."""
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    (only,) = run_through(plan, stop_after=1)
    assert only.event == "plan"
    assert plan.run.newest_state() is None
    told = run_through(plan_again(plan))
    assert told[0].event == "plan"
    assert digests(plan) == expected


def test_a_run_stopped_by_a_signal_ends_as_one_that_was_not(documents):
    """A state is saved then that no undisturbed run has; the files that remain are the same."""
    run_through(documents)
    expected = digests(documents)
    documents.run.clear()
    for number, step in ((2, 3), (15, 3), (1, 17)):
        plan, stop = plan_again(documents), StopRequest()
        with pytest.raises(training.Interrupted) as ended:
            stopped_at(plan, stop, step, number)
        assert ended.value.signal_number == number
        assert ended.value.exit_code == 128 + number
        assert f"step {documents.run.newest_state().meta['step']};" in str(ended.value)
    run_through(plan_again(documents))
    assert digests(documents) == expected


def stopped_at(plan, stop, step, number):
    """Train, and ask for the end when that step is told of, or at once where it is behind."""
    original = training.progress

    def noting(state, *rest):
        if state.step >= step:
            stop.signal_number = number
        return original(state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "progress", noting)
        run_through(plan, stop=stop)


def test_a_run_in_minutes_goes_on_exactly_once_its_steps_are_known(plan):
    """The time was turned into steps; from there on the clock decides nothing, and isn't in the files."""
    plan = replace(plan, training=replace(plan.training, steps=None), minutes=0.2, seconds=12.0, save_every=0.0)
    run_through(plan, stop=wound_clock())
    expected = digests(plan)
    for stop_after in (40, 60):
        plan.run.clear()
        told = run_through(plan, stop=wound_clock(), stop_after=stop_after)
        known = [event.num_steps for event in told if isinstance(event, Progress)]
        assert known[-1] is not None
        state = plan.run.newest_state()
        assert state.meta["num_steps"] == known[-1]
        again = plan_again(plan)
        assert not again.done
        assert not any(isinstance(event, Warned) for event in run_through(again))
        assert digests(plan) == expected


def wound_clock():
    """A request whose clock goes on by 50 ms each time it is looked at."""
    stop, looks = StopRequest(), []

    def clock():
        looks.append(0.05)
        return sum(looks)

    stop.clock = clock
    return stop


def test_an_extended_run_goes_on_exactly(plan):
    """Stopped on its way to the new end, it ends as one that was extended in one sitting; the log has both ends."""
    run_through(plan)
    run_through(plan_again(plan, steps=40))
    expected = digests(plan)
    assert [record["step"] for record in expected[1] if record["event"] == "finished"] == [24, 40]
    plan.run.clear()
    run_through(plan)
    run_through(plan_again(plan, steps=40), stop_after=12)
    run_through(plan_again(plan, steps=40))
    assert digests(plan) == expected


def test_another_place_is_told_and_the_run_goes_on(plan):
    """WeightGradients are rounded otherwise there, so it ends well, but not with the same bytes; back there, it isn't told."""
    run_through(plan, stop_after=10)
    elsewhere = plan_again(replace(plan, threads=3))
    messages = [event.message for event in run_through(elsewhere, stop_after=20) if isinstance(event, Warned)]
    assert len(messages) == 1
    assert "threads 2 before, 3 now" in messages[0]
    told = run_through(plan_again(replace(plan, threads=3)))
    assert not any(isinstance(event, Warned) for event in told)
    assert told[-1].event == "finished"
