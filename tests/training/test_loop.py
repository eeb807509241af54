"""The loop: its learning rate, its events, the weights it saves, and when it ends."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, CorpusConfig, SampleConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.documents import hash_documents, short_hashes
from charrnn.errors import ModelFileError
from charrnn.evaluation.scoring import evaluate
from charrnn.evaluation.texts import held_out_text, read_training_text
from charrnn.events import Evaluated, Finished, Progress, Sample, Saved, Stopped
from charrnn.model.file import load_model
from charrnn.model.gradients import fused_window
from charrnn.model.network import CharRNN
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END
from charrnn.training import loop, saving
from charrnn.training import plan as plan_module
from charrnn.training.loop import NUM_PROGRESS, progress_is_due, rate_share, starting_state
from charrnn.training.plan import Budget
from charrnn.training.recipe import StopRequest
from charrnn.training.state import TrainState
from tests import reference
from tests.conftest import (
    digests,
    make_corpus,
    make_new_plan,
    make_reader,
    make_text,
    plan_again,
    relative_error,
    run_through,
    with_cell,
    with_environment,
    with_settings,
)

# the learning rate


@pytest.mark.parametrize("num_steps", [7, 60, 500, 3000])
def test_the_learning_rate_is_the_formula(num_steps):
    """Warm-up and cosine, a pure function of the step."""
    for step in range(num_steps):
        expected = reference.learning_rate(step, 1.0, num_steps)
        assert rate_share(step, num_steps=num_steps) == pytest.approx(expected, rel=1e-12)


def test_an_extended_run_has_a_new_schedule():
    """From the step where it was extended, the rate is that of a run of the added length."""
    for step in range(200):
        assert rate_share(step + 1000, num_steps=1200, start=1000) == rate_share(step, num_steps=200)


# events


@pytest.mark.parametrize(("num_steps", "start"), [(1300, 0), (1330, 30), (120, 20)])
def test_progress_is_reported_at_even_intervals(plan, num_steps, start):
    """500 times in a run, or after each step of a shorter one; the last time at its last step."""
    state = starting_state(plan)
    state.num_steps, state.schedule_start = num_steps, start
    due = []
    for state.step in range(start + 1, num_steps + 1):
        if progress_is_due(state):
            due.append(state.step)
    assert len(due) == min(NUM_PROGRESS, num_steps - start)
    assert due[-1] == num_steps
    assert max(np.diff(due)) - min(np.diff(due)) <= 1


def test_progress_has_the_gradients_since_the_event_before(plan, monkeypatch):
    """The mean of their norms before clipping, and the share of those that were clipped."""
    apply, norms = loop.apply_gradient, []

    def watched(*arguments, **settings):
        norms.append(apply(*arguments, **settings))
        return norms[-1]

    monkeypatch.setattr(loop, "apply_gradient", watched)
    monkeypatch.setattr(loop, "NUM_PROGRESS", 3)
    plan = with_settings(plan, steps=12, grad_clip=0.24)
    found = [event for event in run_through(plan) if isinstance(event, Progress)]
    assert [event.step for event in found] == [4, 8, 12]
    groups = np.reshape(norms, (3, 4))
    assert [event.grad_norm for event in found] == pytest.approx(groups.mean(1).tolist(), rel=1e-12)
    assert [event.clipped for event in found] == (groups > 0.24).mean(1).tolist()
    assert 0 < (groups > 0.24).mean() < 1


def test_progress_covers_each_step_and_each_evaluation_has_a_sample(plan, uninterrupted):
    """Each best evaluation comes with a saved model."""
    events = uninterrupted(plan).events
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(1, 25))
    assert all(0 < event.nats_per_char < 10 for event in progress)
    assert sum(isinstance(event, Evaluated) for event in events) == 12
    assert sum(isinstance(event, Sample) for event in events) == 12
    assert sum(isinstance(event, Saved) for event in events) == sum(e.best for e in events if isinstance(e, Evaluated))
    assert all(len(event.text) == saving.SAMPLE_LENGTH for event in events if isinstance(event, Sample))


# what a run ends with


@pytest.mark.parametrize("cell", CELLS)
def test_a_run_learns_and_saves_its_best_weights(plan, cell, uninterrupted):
    """The loss falls, and the file's score is that of its weights on the whole held-out text."""
    finished_run = uninterrupted(with_cell(plan, cell, steps=180, learning_rate=2e-2))
    plan, events = finished_run.plan, finished_run.events
    scores = [event.nats_per_char for event in events if isinstance(event, Evaluated)]
    assert len(scores) == 12
    assert scores[-1] < 0.75 * math.log(plan.task.model.vocab_size)
    finished = events[-1]
    assert isinstance(finished, Finished)
    file = load_model(plan.run.model_path)
    model, corpus = make_reader(file.config, file.tensors), plan.task.corpus
    score = evaluate(model, corpus.valid_ids, context=corpus.train_ids, mixture=file.mixture)
    assert finished.nats_per_char == score.nats_per_char == file.scores["nats_per_char"]
    assert finished.num_chars == len(corpus.valid_ids)
    assert file.scores["step"] == finished.best_step == 15 * (1 + int(np.argmin(scores)))


ENVIRONMENTS = [
    {"precision": precision, "threads": threads}
    for precision in ("float32", *(["bfloat16"] if has_fast_bfloat16() else []))
    for threads in (1, 3)
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
@pytest.mark.parametrize("cell", ["gru", *(pytest.param(cell, marks=pytest.mark.slow) for cell in ("rnn", "lstm"))])
def test_equal_runs_end_with_equal_bytes(plan, uninterrupted, cell, environment):
    """Only the seed, the settings and the environment decide what a run of 50 steps ends with."""
    plan = with_environment(with_cell(plan, cell, batch_size=25, steps=50), **environment)
    assert plan.num_workers == environment["threads"]
    run_through(plan)
    assert digests(plan) == uninterrupted(plan).digests


def test_weights_are_averaged(plan, monkeypatch):
    """The average follows its definition, and is what the model file holds."""
    plan = with_cell(plan, "gru", steps=160)
    seen = []
    update_ema = TrainState.update_ema

    def watched(state, share):
        seen.append(state.model.to_arrays())
        update_ema(state, share)

    monkeypatch.setattr(TrainState, "update_ema", watched)
    events = run_through(plan)
    expected = {name: array.astype(np.float64) for name, array in CharRNN(plan.task.model, seed=1).to_arrays().items()}
    for done in range(8, 161, 8):
        rate = reference.learning_rate(done - 1, 1.0, 160)
        share = 8 / (0.1 * rate * done + 8)
        for name, array in seen[done - 1].items():
            expected[name] += share * (array - expected[name])
    assert events[-1].best_step == 160
    for name, array in load_model(plan.run.model_path).tensors.items():
        assert relative_error(array, expected[name]) < 1e-5
        assert relative_error(seen[-1][name], expected[name]) > 1e-5 or "bias_hh" in name


@pytest.mark.parametrize(("steps", "num_scores"), [(7, 7), (45, 12), (100, 11)])
def test_no_average_is_scored_twice(plan, steps, num_scores):
    """Evaluations of a short run are close to each other, but the averaged weights change before each of them."""
    events = run_through(with_settings(plan, steps=steps))
    scores = [event.nats_per_char for event in events if isinstance(event, Evaluated)]
    assert len(scores) == len(set(scores)) == num_scores


def test_redundant_biases_stay_zero(plan, uninterrupted):
    """After training, bias_hh is zero wherever bias_ih does the same."""
    tensors = load_model(uninterrupted(plan).plan.run.model_path).tensors
    hidden = plan.task.model.hidden_size
    for layer in range(plan.task.model.num_layers):
        bias = tensors[f"layers.{layer}.bias_hh_l0"]
        assert (bias[: 2 * hidden] == 0).all()
        assert (bias[2 * hidden :] != 0).any()


def test_the_test_text_is_scored_once_at_the_end(plan):
    """With the best weights, and with all characters before it as context."""
    corpus = replace(plan.task.corpus, num_train=5000, num_valid=600)
    plan = replace(plan, task=replace(plan.task, corpus=corpus))
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    model = make_reader(file.config, file.tensors)
    score = evaluate(model, corpus.ids[5600:], context=corpus.ids[:5600], mixture=file.mixture)
    assert finished.num_chars == 600
    assert finished.num_test_chars == score.num_chars == 400
    assert finished.test_nats_per_char == score.nats_per_char == file.scores["test"]["nats_per_char"]
    assert file.provenance["split"]["num_test"] == 400


def test_a_separate_held_out_text_chooses_the_weights(plan, tmp_path, cache):
    """The whole text is trained on; all but the first character of the other is scored, from the zero state."""
    texts = {"train.txt": make_text(3000), "held.txt": make_text(700, seed=9)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = CorpusConfig(valid=str(tmp_path / "held.txt"))
    corpus = load_corpus([str(tmp_path / "train.txt")], config, SourceConfig(), cache)
    plan = with_settings(plan, model={"vocab_size": len(corpus.vocab)})
    plan = replace(plan, task=replace(plan.task, corpus=corpus, corpus_config=config))
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    assert (corpus.num_train, finished.num_chars) == (3000, 699)
    ids = file.vocab.encode(texts["held.txt"])
    model = make_reader(file.config, file.tensors)
    score = evaluate(model, ids[1:], context=ids[:1], mixture=file.mixture)
    assert finished.nats_per_char == score.nats_per_char
    found = held_out_text(file, read_training_text(file, [str(tmp_path / name) for name in texts], cache))
    assert file.vocab.decode(found.ids) == texts["held.txt"][1:]
    assert file.vocab.decode(found.context) == texts["held.txt"][0]


@pytest.mark.parametrize("stop_after", [40, None], ids=["before the end", "after the end"])
def test_a_deleted_model_is_saved_again(plan, uninterrupted, stop_after):
    """Whether it was deleted before or after the last step, the run ends with a model and a score."""
    if stop_after:
        run_through(plan, stop_after=stop_after)
    else:
        uninterrupted(plan).copy_to(plan)
    plan.run.model_path.unlink()
    saved = plan.run.newest_state()
    plan.run.save_state(saved.meta["step"], saved.tensors, {**saved.meta, "finished": False})
    events = run_through(plan_again(plan))
    assert isinstance(events[-1], Finished)
    assert load_model(plan.run.model_path).scores["nats_per_char"] == events[-1].nats_per_char


def test_the_last_event_of_a_finished_run_is_read_from_its_model(plan, uninterrupted):
    """It is the same event; without the model there is an error that says what to do."""
    finished_run = uninterrupted(plan)
    assert saving.read_finished_event(finished_run.plan.run, 24) == finished_run.events[-1]
    with pytest.raises(ModelFileError, match="--fresh"):
        saving.read_finished_event(plan.run, 24)


# time budgets


def after(function, action):
    """Wrap a function so that an action follows each call."""

    def wrapped(*arguments, **options):
        result = function(*arguments, **options)
        action()
        return result

    return wrapped


def test_a_time_budget_becomes_a_number_of_steps(plan, monkeypatch):
    """With a clock on which a step takes 0.4 s and an evaluation 0.2 s, the run fills its budget and keeps to it."""
    stop, seconds = StopRequest(), []
    stop.clock = lambda: 1000.0 + sum(seconds)
    monkeypatch.setattr(loop, "next_step", after(loop.next_step, lambda: seconds.append(0.4)))
    monkeypatch.setattr(saving, "score_held_out", after(saving.score_held_out, lambda: seconds.append(0.2)))
    plan = replace(with_settings(plan, steps=None), budget=Budget(1.0, 60.0))
    events = run_through(plan, stop=stop)
    state = plan.run.newest_state()
    assert state.meta["num_steps"] == events[-1].step
    assert 0.95 * 60 < sum(seconds) < 60
    first = next(event for event in events if isinstance(event, Progress) and event.num_steps)
    assert first.step < 0.1 * first.num_steps


# extending


def test_a_finished_run_can_be_extended(plan, uninterrupted):
    """More steps start a new schedule from the last weights, not from the best ones."""
    uninterrupted(plan).copy_to(plan)
    before = plan.run.newest_state()
    assert before.meta["finished"]
    again = plan_again(plan, steps=40)
    assert again.extends
    events = run_through(again)
    assert events[-1].step == 40
    after = plan.run.newest_state()
    assert after.meta["schedule_start"] == 24
    assert any((after.tensors[name] != array).any() for name, array in before.tensors.items())


def test_an_extended_run_scores_as_much_as_a_run_of_its_length(plan):
    """The short run scored few characters; its best weights are scored again on the larger part."""
    corpus = make_corpus(make_text(40_000), sha256="1" * 64)
    plan = with_settings(replace(plan, task=replace(plan.task, corpus=corpus)), steps=4)
    run_through(plan)
    assert plan.run.newest_state().meta["valid_chars"] == 1000
    again = plan_again(plan, steps=6000)
    state = starting_state(again)
    assert state.valid_chars == 5996 * 8 * 16 // 480
    _, best = saving.load_best_model(again)
    score = evaluate(best, corpus.valid_ids, context=corpus.train_ids, num_scored=state.valid_chars)
    assert state.best_nats == score.nats_per_char


def test_a_short_extension_scores_no_fewer_characters(plan, uninterrupted):
    """On fewer characters, worse weights could look better than those of the long run."""
    uninterrupted(plan).copy_to(plan)
    state = plan.run.newest_state()
    long = replace(plan, task=replace(plan.task, corpus=make_corpus(make_text(40_000), sha256="0" * 64)))
    long.run.save_state(24, state.tensors, {**state.meta, "valid_chars": 1700, "text": long.state_facts["text"]})
    assert starting_state(plan_again(long, steps=30)).valid_chars == 1700


def test_an_extension_runs_to_its_end_and_keeps_the_best_model(plan, uninterrupted):
    """None of its evaluations is better than the best before it, which is neither replaced nor a reason to stop."""
    before = uninterrupted(overfitting(plan, steps=200))
    plan = before.copy_to(overfitting(plan, steps=200))
    events = run_through(plan_again(plan, steps=240))
    scores = [event for event in events if isinstance(event, Evaluated)]
    assert len(scores) > plan.task.training.patience
    assert not any(event.best for event in scores)
    assert events[-1] == replace(before.events[-1], step=240, model=str(plan.run.model_path))


# early stopping


def overfitting(plan, **training):
    """The plan with little text and a high learning rate, so that it overfits soon."""
    corpus = replace(plan.task.corpus, ids=plan.task.corpus.ids[:600], num_train=400, num_valid=200)
    plan = replace(plan, task=replace(plan.task, corpus=corpus))
    return with_settings(plan, **{"dropout": 0.0, "learning_rate": 3e-2, "steps": 2000, "mix": False, **training})


def test_a_run_without_improvement_stops(plan, uninterrupted):
    """After as many worse evaluations as its patience. The saved weights are the best; the event names their step."""
    plan = overfitting(plan)
    finished_run = uninterrupted(plan)
    stopped, finished = finished_run.events[-2:]
    scores = {event.step: event.nats_per_char for event in finished_run.events if isinstance(event, Evaluated)}
    assert isinstance(stopped, Stopped)
    assert stopped.step == finished.step == max(scores) < 2000
    assert stopped.best_step == finished.best_step == min(scores, key=scores.get)
    assert sum(step > stopped.best_step for step in scores) == plan.task.training.patience
    assert finished.nats_per_char == pytest.approx(scores[stopped.best_step])
    assert plan_again(finished_run.plan, steps=2000).is_finished


def test_patience_zero_never_stops(plan):
    """Only the budget ends such a run."""
    events = run_through(overfitting(plan, patience=0, steps=400))
    assert not any(isinstance(event, Stopped) for event in events)
    assert events[-1].step == 400 > events[-1].best_step
    worse = [event for event in events if isinstance(event, Evaluated) and event.step > events[-1].best_step]
    assert len(worse) > plan.task.training.patience


def test_a_run_killed_after_its_last_evaluation_stops_there_too(plan, uninterrupted):
    """The state from the last evaluation was saved, but the run was killed before it ended."""
    finished_run = uninterrupted(overfitting(plan))
    plan = finished_run.copy_to(overfitting(plan))
    state = plan.run.newest_state()
    unfinished = {**state.meta, "finished": False, "num_events": state.meta["num_events"] - 2}
    lines = plan.run.log_path.read_bytes().splitlines(keepends=True)
    plan.run.log_path.write_bytes(b"".join(lines[:-2]))  # without stopped and finished
    plan.run.save_state(state.meta["step"], state.tensors, unfinished)
    run_through(plan_again(plan, steps=2000))
    assert digests(plan) == finished_run.digests


# documents

WORDS = ["aim", "axle", "bolt", "brim", "cork", "cog"]


def test_a_run_on_documents_learns_where_they_end(plan, tmp_path, cache):
    """Sampled documents are whole ones, and the split cuts none."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(WORDS * 70), encoding="utf-8")
    config = CorpusConfig(documents="lines")
    corpus = load_corpus([str(path)], config, SourceConfig(), cache)
    end = corpus.vocab.id_of(END)
    assert corpus.train_ids[-1] == corpus.valid_ids[-1] == end
    given = {"steps": 300, "hidden_size": 32, "batch_size": 8, "seq_len": 16, "dropout": 0.0, "weight_drop": 0.0}
    plan = make_new_plan(plan.run, corpus, **given)
    assert plan.task.model.reset_id == end
    run_through(plan)
    sampler = Sampler(load_model(plan.run.model_path), threads=1)
    settings = SampleConfig(length=-1, num_samples=40, temperature=0.5, seed=1)
    assert {"".join(stream) for stream in sampler.streams(settings)} == set(WORDS)


def test_a_model_of_documents_knows_them_by_their_hashes(plan, tmp_path, cache, monkeypatch):
    """The held-out ones too, unless there are too many; a model of another text has none."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(WORDS * 3), encoding="utf-8")
    corpus = load_corpus([str(path)], CorpusConfig(documents="lines"), SourceConfig(), cache)
    task = make_new_plan(plan.run, corpus, steps=1).task
    ids = corpus.vocab.encode("".join(word + END for word in sorted(WORDS)))
    assert task.known_documents.tolist() == sorted(short_hashes(hash_documents(ids, corpus.vocab.id_of(END))).tolist())
    monkeypatch.setattr(plan_module, "MAX_KNOWN", len(WORDS) * 3 - 1)
    assert make_new_plan(plan.run, corpus, steps=1).task.known_documents is None
    assert plan.task.known_documents is None


def test_no_gradient_crosses_the_border_of_a_document(plan):
    """The window's gradient is the sum over its documents, each alone from the zero state."""
    config = replace(plan.task.model, vocab_size=7, reset_id=0)
    model = CharRNN(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 7, (40, 1), generator=generator)
    x[0], targets = 0, torch.randint(0, 7, (40, 1), generator=generator)
    state = tuple(torch.randn(part.shape, generator=generator) for part in model.initial_state(1))
    whole = fused_window(model, model.pack(), x, targets, state)
    borders = [*torch.nonzero(x[:, 0] == 0)[:, 0].tolist(), 40]
    parts = [
        fused_window(model, model.pack(), x[start:stop], targets[start:stop], model.initial_state(1))
        for start, stop in pairwise(borders)
    ]
    assert len(parts) > 3
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-6)
    assert relative_error(whole.gradient, sum(part.gradient for part in parts)) < 1e-5


# n-grams


@pytest.fixture
def mixed(plan):
    """A run of a text that is long enough to withhold a piece of it."""
    corpus = make_corpus(make_text(60_000))
    plan = with_settings(plan, model={"vocab_size": len(corpus.vocab)})
    return replace(plan, task=replace(plan.task, corpus=corpus))


def test_a_run_mixes_n_grams_in(mixed, uninterrupted):
    """The model file has them; its scores are those of the mixture and of both parts alone."""
    finished_run = uninterrupted(mixed)
    finished = finished_run.events[-1]
    file = load_model(finished_run.plan.run.model_path)
    model = make_reader(file.config, file.tensors)
    corpus = mixed.task.corpus
    score = evaluate(model, corpus.valid_ids, context=corpus.valid_context, mixture=file.mixture)
    assert finished.nats_per_char == score.nats_per_char
    alone = [finished.network_nats_per_char, finished.ngram_nats_per_char]
    assert alone == [nats / score.num_chars for nats in score.experts]
    assert finished.nats_per_char < finished.network_nats_per_char
    assert len(mixed.task.train_text) == corpus.num_train - 1000


def test_n_grams_of_a_short_text_are_mixed_in_too(plan, uninterrupted):
    """With fixed weights."""
    finished_run = uninterrupted(plan)
    finished, file = finished_run.events[-1], load_model(finished_run.plan.run.model_path)
    assert file.ngram["ngram.weights"].tolist() == [[0.5, 0.5]] * 7
    assert finished.nats_per_char < finished.network_nats_per_char


def test_n_grams_that_make_the_held_out_score_worse_are_left_out(mixed):
    """Here the characters of the held-out text have no order; a warning names both scores."""
    corpus = mixed.task.corpus
    disordered = np.random.default_rng(0).permutation(corpus.valid_ids)
    corpus = replace(corpus, ids=np.concatenate([corpus.train_ids, disordered]))
    plan = replace(mixed, task=replace(mixed.task, corpus=corpus))
    *_, warned, finished = run_through(plan)
    file = load_model(plan.run.model_path)
    model = make_reader(file.config, file.tensors)
    assert file.ngram == {}
    alone = evaluate(model, corpus.valid_ids, context=corpus.valid_context).nats_per_char
    assert finished.nats_per_char == file.scores["nats_per_char"] == alone
    assert finished.network_nats_per_char is None
    assert warned.message.startswith(f"n-grams left out: they raise the held-out loss from {alone:.4f} to ")


def test_a_run_can_do_without_n_grams(mixed):
    """The whole text is trained on then."""
    plan = with_settings(mixed, mix=False)
    finished = run_through(plan)[-1]
    assert load_model(plan.run.model_path).ngram == {}
    assert finished.network_nats_per_char is None
    assert len(plan.task.train_text) == plan.task.corpus.num_train


@pytest.mark.parametrize("stop_after", [30, *(pytest.param(number, marks=pytest.mark.slow) for number in (9, 50))])
def test_a_resumed_run_mixes_the_same_n_grams_in(mixed, uninterrupted, stop_after):
    """The same bytes, wherever it was stopped."""
    run_through(mixed, stop_after=stop_after)
    run_through(plan_again(mixed))
    assert digests(mixed) == uninterrupted(mixed).digests
