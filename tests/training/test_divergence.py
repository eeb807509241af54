"""Divergence: numbers that are not finite are never saved, and a run returns to its last state and continues."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from charrnn.data.vocab import Vocab
from charrnn.errors import DivergenceError
from charrnn.evaluation.scores import Evaluation
from charrnn.events import Evaluated, Finished, Progress, Stopped, Warned
from charrnn.model import file
from charrnn.model.file import load_model
from charrnn.model.gradients import Workers
from charrnn.runs import folder
from charrnn.training import loop, saving
from charrnn.training.state import MAX_ROLLBACKS
from tests import reference
from tests.conftest import SynchronousWriter, digests, plan_again, run_through, with_settings

UNUSED = "~"  # a character that no text here has


def slow(*values):
    """Parameters that only repeat a proof."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def plan(plan):
    """That plan for a vocabulary with a character that the text lacks."""
    vocab = Vocab(plan.task.corpus.vocab.chars + UNUSED)
    plan = with_settings(plan, model={"vocab_size": len(vocab)})
    return replace(plan, task=replace(plan.task, corpus=replace(plan.task.corpus, vocab=vocab)))


def train_through(plan, *, save_every=0.0, **options):
    """Train, saving a state after each step."""
    return run_through(plan, save_every=save_every, **options)


@pytest.fixture(autouse=True)
def written(monkeypatch):
    """The names of the files that were written; all their values must be finite."""
    names, write = [], file.write_tensors

    def watched(path, tensors, **rest):
        for name, tensor in tensors.items():
            assert np.isfinite(tensor).all(), f"{path}: {name}"
        names.append(path.name)
        write(path, tensors, **rest)

    monkeypatch.setattr(file, "write_tensors", watched)
    monkeypatch.setattr(folder, "write_tensors", watched)
    return names


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Each state is on the disk when the next step begins, so that the last one is known."""
    monkeypatch.setattr(loop, "Writer", SynchronousWriter)


def poison(tensor, place=(0, 0)):
    """Put a NaN into a tensor."""
    with torch.no_grad():
        tensor[place] = math.nan


def second_moment(state):
    """AdamW's second moment of the embedding."""
    return state.moments["exp_avg_sq"][0]


@dataclass
class StepResult:
    """What a step is about to apply."""

    nats: float
    gradient: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def set_nats(result, nats):
    """Replace the loss."""
    result.nats = nats


FAULTS = {  # by their place in the state or in the step's result
    "loss": lambda state, result: set_nats(result, math.nan),
    "infinite loss": lambda state, result: set_nats(result, math.inf),
    "gradient": lambda state, result: poison(result.gradient, 3),
    "weight": lambda state, result: poison(state.model.head.weight),
    "unused row": lambda state, result: poison(state.model.embedding.weight, (-1, 0)),
    "average": lambda state, result: poison(state.ema.embedding.weight, (-1, 0)),
    "hidden": lambda state, result: poison(result.hidden[0], (1, 2, 3)),
    "moment": lambda state, result: poison(second_moment(state), (-1, 0)),
}


@pytest.fixture
def diverge(monkeypatch):
    """A function that puts a fault into step `at`, as long as the rate factor is greater than `above`."""

    def arrange(fault, *, at, above=0.5):
        compute, apply, results = Workers.compute, loop.apply_gradient, []

        def watched_compute(*arguments):
            results[:] = [compute(*arguments)]
            return results[0]

        def apply_gradient(state, gradient, nats, num_targets, **rest):
            result = StepResult(nats, gradient, results[0].state)
            if state.step == at and state.rate_factor > above:
                FAULTS[fault](state, result)
            return apply(state, result.gradient, result.nats, num_targets, **rest)

        monkeypatch.setattr(Workers, "compute", watched_compute)
        monkeypatch.setattr(loop, "apply_gradient", apply_gradient)

    return arrange


@pytest.fixture
def diverge_in_evaluation(monkeypatch):
    """A function that makes the held-out loss of evaluation number `at` NaN."""

    def arrange(*, at):
        score, calls = saving.score_held_out, []

        def score_held_out(*arguments, **options):
            calls.append(1)
            found = score(*arguments, **options)
            return Evaluation(math.nan, found.num_chars, {}) if len(calls) == at else found

        monkeypatch.setattr(saving, "score_held_out", score_held_out)

    return arrange


def warnings(events):
    """The warnings of a run."""
    return [event.message for event in events if isinstance(event, Warned)]


def rates(events):
    """The learning rate by step, as last reported."""
    return {event.step: event.learning_rate for event in events if isinstance(event, Progress)}


def assert_came_back(plan, events, *, last_good):
    """Check that a run returned to its last good state once, and continued with half the learning rate."""
    (message,) = warnings(events)
    assert f"is not finite; resuming from step {last_good} with 0.5 times the learning rate" in message
    assert next(event.step for event in events if isinstance(event, Warned)) == last_good
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.step == 24
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"], meta["finished"]) == (0.5, 1, True)
    for step, rate in rates(events).items():
        factor = 0.5 if step > last_good else 1.0
        assert rate == pytest.approx(factor * reference.learning_rate(step - 1, 1e-2, 24), rel=1e-9)
    assert load_model(plan.run.model_path).scores["nats_per_char"] == finished.nats_per_char


ONCE_PER_FAULT = {
    ("loss", 1),
    ("infinite loss", 10),
    ("gradient", 23),
    ("weight", 23),
    ("unused row", 1),
    ("average", 10),
    ("hidden", 10),
    ("moment", 1),
}


@pytest.mark.parametrize(
    ("fault", "at"),
    [(fault, at) if (fault, at) in ONCE_PER_FAULT else slow(fault, at) for fault in FAULTS for at in (1, 10, 23)],
)
def test_a_run_comes_back_from_a_step_that_diverges(plan, diverge, written, fault, at):
    """From its last state; nothing that isn't finite is ever in a file."""
    diverge(fault, at=at)
    assert_came_back(plan, train_through(plan), last_good=at)
    assert {"model.safetensors", "state-24.safetensors"} <= set(written)


@pytest.mark.parametrize("at", [slow(1), 10, slow(12)])
def test_a_run_comes_back_from_an_evaluation_that_diverges(plan, diverge_in_evaluation, written, at):
    """There is one after each second step."""
    diverge_in_evaluation(at=at)
    assert_came_back(plan, train_through(plan), last_good=2 * at - 1)
    assert {"model.safetensors", "state-24.safetensors"} <= set(written)


@pytest.mark.parametrize("fault", ["gradient", slow("unused row")])
def test_lost_events_are_not_in_the_log(plan, diverge, fault):
    """It has each step once, as it was in the end; the warning stays where it was given."""
    diverge(fault, at=10)
    events = train_through(plan)
    _, log = digests(plan)
    assert [event["step"] for event in log if event["event"] == "progress"] == list(range(1, 25))
    logged = {event["step"]: event["learning_rate"] for event in log if event["event"] == "progress"}
    assert logged == rates(events)
    assert plan.run.newest_state().meta["num_events"] == len(log)
    assert b"resuming from step" in plan.run.log_path.read_bytes()


def collect(events, found):
    """Add events to a list, which keeps them if an error ends them."""
    for event in events:
        found.append(event)


@pytest.mark.parametrize("fault", ["loss", "weight", slow("unused row")])
def test_after_three_rollbacks_the_run_ends(plan, diverge, fault):
    """The error says what may help; the best model and the last good state stay as they were."""
    diverge(fault, at=10, above=0.0)
    events = []
    with pytest.raises(DivergenceError, match=r"diverged .*not finite.*--fresh.*--learning-rate") as caught:
        collect(loop.train(plan, save_every=0.0), events)
    assert caught.value.exit_code == 7
    assert MAX_ROLLBACKS == 3
    messages = warnings(events)
    assert len(messages) == 3
    factors = ("0.5", "0.25", "0.125")
    assert all(f"with {factor} times" in message for factor, message in zip(factors, messages, strict=True))
    best = [event for event in events if isinstance(event, Evaluated) and event.best][-1]
    saved = load_model(plan.run.model_path)
    assert saved.scores["step"] == best.step <= 11
    assert saved.scores["nats_per_char"] == best.nats_per_char
    state = plan.run.newest_state()
    assert (state.meta["num_rollbacks"], state.meta["rate_factor"]) == (3, 0.125)
    assert state.meta["step"] <= 11
    assert not list(plan.run.folder.glob("*.tmp"))


def test_the_rate_factor_survives_a_stop(plan, diverge):
    """A resumed run continues with its lower rate and the rollbacks it has left."""
    diverge("gradient", at=6, above=0.25)
    events = train_through(plan, stop_after=60)
    assert len(warnings(events)) == 2
    assert plan.run.newest_state().meta["num_rollbacks"] == 2
    again = train_through(plan_again(plan))
    for step, rate in rates(again).items():
        assert rate == pytest.approx(0.25 * reference.learning_rate(step - 1, 1e-2, 24), rel=1e-9)
    assert plan.run.newest_state().meta["rate_factor"] == 0.25


def test_used_rollbacks_survive_the_end_of_a_run(plan, diverge):
    """A run that has used all of them ends at the next divergence."""
    diverge("loss", at=6, above=0.0)
    with pytest.raises(DivergenceError):
        train_through(plan)
    with pytest.raises(DivergenceError, match="--learning-rate"):
        train_through(plan_again(plan))


@pytest.mark.parametrize("stop_after", [9, 28, slow(25), slow(31), slow(50)])
def test_a_run_that_came_back_resumes_exactly(plan, diverge, stop_after):
    """Killed before it diverged, right after it came back, or later: the same bytes, the same log."""
    diverge("weight", at=10)
    train_through(plan, save_every=1e6)
    expected = digests(plan)
    plan.run.clear()
    train_through(plan, save_every=1e6, stop_after=stop_after)
    train_through(plan_again(plan), save_every=1e6)
    assert digests(plan) == expected


def test_an_extended_run_has_three_new_rollbacks(plan, diverge):
    """The rate stays lower, but the rollbacks of an earlier schedule don't count in this one."""
    diverge("gradient", at=6, above=0.125)
    train_through(plan)
    assert plan.run.newest_state().meta["num_rollbacks"] == 3
    diverge("gradient", at=30, above=0.0625)
    events = train_through(plan_again(plan, steps=40))
    assert len(warnings(events)) == 1
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"], meta["step"]) == (0.0625, 1, 40)


def test_a_run_that_never_diverges_has_its_full_rate(plan):
    """Negative control."""
    events = train_through(plan)
    assert warnings(events) == []
    assert not any(isinstance(event, Stopped) for event in events)
    meta = plan.run.newest_state().meta
    assert (meta["rate_factor"], meta["num_rollbacks"]) == (1.0, 0)
    assert rates(events)[24] == pytest.approx(reference.learning_rate(23, 1e-2, 24), rel=1e-9)


def test_without_the_check_a_file_would_have_a_nan(plan, diverge, monkeypatch):
    """Negative control for the tests above."""
    monkeypatch.setattr("charrnn.training.state.TrainState._check_finite", lambda state, arrays: arrays)
    diverge("unused row", at=10)
    with pytest.raises(AssertionError, match=r"embedding\.weight"):
        train_through(plan)
