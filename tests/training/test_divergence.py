"""Numbers that are not finite: never in a file, and a run that comes back from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from charrnn.data.vocab import Vocab
from charrnn.errors import DivergenceError
from charrnn.evaluation.scores import Evaluation
from charrnn.events import Evaluated, Finished, Progress, Stopped, Warned
from charrnn.model.file import load_model
from charrnn.training import loop as training
from charrnn.training import saving as keeping
from charrnn.training.state import MAX_ROLLBACKS
from tests import reference
from tests.conftest import SynchronousWriter, digests, plan_again, run_through

UNUSED = "~"  # a character that no text here has


@pytest.fixture
def plan(plan):
    """That plan for a vocabulary with a character that is never read, saving a state after each step."""
    vocab = Vocab(plan.corpus.vocab.chars + UNUSED)
    corpus = replace(plan.corpus, vocab=vocab)
    return replace(plan, corpus=corpus, model=replace(plan.model, vocab_size=len(vocab)), save_every=0.0)


@pytest.fixture(autouse=True)
def only_finite(monkeypatch):
    """Whatever is written in these tests is finite; the names of the files that were."""
    from charrnn.model import file as checkpoint
    from charrnn.training import folder as runs

    written, write = [], checkpoint.write_tensors

    def watched(path, tensors, **rest):
        for name, tensor in tensors.items():
            assert np.isfinite(tensor).all(), f"{path}: {name}"
        written.append(path.name)
        write(path, tensors, **rest)

    monkeypatch.setattr(checkpoint, "write_tensors", watched)
    monkeypatch.setattr(runs, "write_tensors", watched)
    return written


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Each state is on the disk when the next step begins, so that it is known which one is the last."""
    monkeypatch.setattr(training, "Writer", SynchronousWriter)


def poison(tensor, place=(0, 0)):
    """Put what is no number into a tensor."""
    with torch.no_grad():
        tensor[place] = math.nan


SICK = {  # by what falls ill: what to do to the state and to the window's result
    "loss": lambda state, result: replace(result, nats=math.nan),
    "infinite loss": lambda state, result: replace(result, nats=math.inf),
    "gradient": lambda state, result: poison(result.gradient, 3),
    "weight": lambda state, result: poison(state.model.head.weight),
    "row": lambda state, result: poison(state.model.embedding.weight, (-1, 0)),
    "average": lambda state, result: poison(state.average.embedding.weight, (-1, 0)),
    "hidden": lambda state, result: poison(result.state[0], (1, 2, 3)),
    "moment": lambda state, result: poison(moments(state)["exp_avg_sq"], (-1, 0)),
}


def moments(state):
    """AdamW's, of the embedding."""
    return state.optimizer.state[state.model.embedding.weight]


@pytest.fixture
def fall_ill(monkeypatch):
    """Have something become no number in the step with that number, as long as the rate is above the one given."""

    def arrange(what, *, at, above=0.5):
        if what == "held-out loss":
            original = keeping.score_held_out
            times = []

            def score(model, corpus, **rest):
                times.append(1)
                found = original(model, corpus, **rest)
                return Evaluation(math.nan, found.num_chars, {}) if len(times) == at else found

            monkeypatch.setattr(keeping, "score_held_out", score)
            return
        apply = training.apply_gradient

        def apply_gradient(state, result, num_targets, **rest):
            ill = state.step == at and state.rate_factor > above
            result = (ill and SICK[what](state, result)) or result
            apply(state, result, num_targets, **rest)

        monkeypatch.setattr(training, "apply_gradient", apply_gradient)

    return arrange


def warnings(events):
    """What the run warned of."""
    return [event.message for event in events if isinstance(event, Warned)]


def rates(events):
    """The learning rate of each step, by the last time that it was told."""
    return {event.step: event.learning_rate for event in events if isinstance(event, Progress)}


@pytest.mark.parametrize("at", [1, 10, 23])
@pytest.mark.parametrize("what", [*SICK, "held-out loss"])
def test_a_run_comes_back_from_what_is_not_finite(plan, fall_ill, only_finite, what, at):
    """From its last state, with half the rate from there on; nothing that isn't finite is ever in a file."""
    evaluation = min(at, 12)  # of those after each second step
    fall_ill(what, at=evaluation if what == "held-out loss" else at)
    events = run_through(plan)
    (warning,) = warnings(events)
    assert "is not finite; going on from step" in warning
    assert "0.5 of the learning rate" in warning
    back = next(event.step for event in events if isinstance(event, Warned))
    assert back == (2 * evaluation - 1 if what == "held-out loss" else at)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.step == 24
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"], meta["finished"]) == (0.5, 1, True)
    for step, rate in rates(events).items():
        factor = 0.5 if step > back else 1.0
        assert rate == pytest.approx(factor * reference.learning_rate(step - 1, 1e-2, 24), rel=1e-9)
    assert load_model(plan.run.model_path).scores["nats_per_char"] == finished.nats_per_char
    assert {"model.safetensors", "state-24.safetensors"} <= set(only_finite)


@pytest.mark.parametrize("what", ["gradient", "row"])
def test_what_is_lost_is_not_in_the_log(plan, fall_ill, what):
    """It tells each step once, as it was in the end; the warning stays where it was given."""
    fall_ill(what, at=10)
    events = run_through(plan)
    _, log = digests(plan)
    assert [event["step"] for event in log if event["event"] == "progress"] == list(range(1, 25))
    told = {event["step"]: event["learning_rate"] for event in log if event["event"] == "progress"}
    assert told == rates(events)
    assert plan.run.newest_state().meta["num_events"] == len(log)
    assert b"going on from step" in plan.run.log_path.read_bytes()


def note_all(plan, events):
    """Train, noting what is told also where that ends in an error."""
    for event in training.train(plan):
        events.append(event)


@pytest.mark.parametrize("what", ["loss", "weight", "row"])
def test_after_three_times_the_run_ends(plan, fall_ill, what):
    """With an error that says what may help; the best model and the last good state stay as they were."""
    fall_ill(what, at=10, above=0.0)
    events = []
    with pytest.raises(DivergenceError, match=r"diverged .*not finite.*--fresh.*--learning-rate") as caught:
        note_all(plan, events)
    assert caught.value.exit_code == 7
    assert MAX_ROLLBACKS == 3
    told = warnings(events)
    assert len(told) == 3
    assert all(f"with {factor} of" in text for factor, text in zip(("0.5", "0.25", "0.125"), told, strict=True))
    best = [event for event in events if isinstance(event, Evaluated) and event.best][-1]
    kept = load_model(plan.run.model_path)
    assert kept.scores["step"] == best.step <= 11
    assert kept.scores["nats_per_char"] == best.nats_per_char
    state = plan.run.newest_state()
    assert (state.meta["num_rollbacks"], state.meta["rate_factor"]) == (3, 0.125)
    assert state.meta["step"] <= 11
    assert not list(plan.run.folder.glob("*.tmp"))


def test_the_factor_survives_a_stop(plan, fall_ill):
    """A run that is resumed goes on with its lower rate, and with what is left of its three times."""
    fall_ill("gradient", at=6, above=0.25)
    events = run_through(plan, stop_after=60)
    assert len(warnings(events)) == 2
    assert plan.run.newest_state().meta["num_rollbacks"] == 2
    again = run_through(plan_again(plan))
    for step, rate in rates(again).items():
        assert rate == pytest.approx(0.25 * reference.learning_rate(step - 1, 1e-2, 24), rel=1e-9)
    assert plan.run.newest_state().meta["rate_factor"] == 0.25


def test_what_is_left_of_three_times_survives_a_stop(plan, fall_ill):
    """Stopped after the second, the third is the last."""
    fall_ill("loss", at=6, above=0.0)
    with pytest.raises(DivergenceError):
        run_through(plan)
    with pytest.raises(DivergenceError, match="--learning-rate"):
        run_through(plan_again(plan))


@pytest.mark.parametrize("stop_after", [9, 25, 28, 31, 50])
def test_a_run_that_came_back_goes_on_exactly(plan, fall_ill, stop_after):
    """Killed before it diverged, right after it came back, or later: the same bytes, the same log."""
    plan = replace(plan, save_every=1e6)
    fall_ill("weight", at=10)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    run_through(plan, stop_after=stop_after)
    run_through(plan_again(plan))
    assert digests(plan) == expected


def test_an_extended_run_may_come_back_three_times_more(plan, fall_ill):
    """The rate stays lower, but what has happened to an earlier schedule doesn't end this one."""
    fall_ill("gradient", at=6, above=0.125)
    run_through(plan)
    assert plan.run.newest_state().meta["num_rollbacks"] == 3
    fall_ill("gradient", at=30, above=0.0625)
    events = run_through(plan_again(plan, steps=40))
    assert len(warnings(events)) == 1
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"], meta["step"]) == (0.0625, 1, 40)


def test_a_run_that_never_diverges_has_no_factor(plan):
    """Negative control: nothing of this shows in it."""
    events = run_through(plan)
    assert warnings(events) == []
    assert not any(isinstance(event, Stopped) for event in events)
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"]) == (1.0, 0)
    assert rates(events)[24] == pytest.approx(reference.learning_rate(23, 1e-2, 24), rel=1e-9)


def test_the_files_are_looked_at(plan, fall_ill, monkeypatch):
    """Negative control: without the look at what is saved, one of these tests would find it in a file."""
    monkeypatch.setattr("charrnn.training.state.TrainState._finite", lambda state, arrays: arrays)
    fall_ill("row", at=10)
    with pytest.raises(AssertionError, match=r"embedding\.weight"):
        run_through(plan)
