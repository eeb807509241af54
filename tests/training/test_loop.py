"""The loop: its rate, its clipping, what it keeps, and that a stopped run goes on exactly."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, CorpusConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.vocab import END
from charrnn.errors import DivergenceError, Interrupted, ModelFileError
from charrnn.evaluation.scoring import evaluate
from charrnn.evaluation.texts import held_out, trained_on
from charrnn.events import Evaluated, Finished, Progress, Sample, Saved, Stopped
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.model.file import load_model
from charrnn.model.gradients import WindowResult, window_gradient
from charrnn.model.network import CharRNN
from charrnn.sampling.sampler import Sampler
from charrnn.training import loop as training
from charrnn.training import saving as keeping
from charrnn.training.folder import Log
from charrnn.training.loop import apply_gradient, is_due, learning_rate, train
from charrnn.training.plan import make_plan
from charrnn.training.recipe import StopRequest
from charrnn.training.state import TrainState
from tests import reference
from tests.conftest import digests, make_corpus, make_text, plan_again, relative_error, run_through, with_cell


@pytest.mark.parametrize("num_steps", [7, 60, 500, 3000])
def test_the_rate_is_the_formula(num_steps):
    """Warm-up and cosine, a pure function of the step."""
    for step in range(num_steps):
        expected = reference.learning_rate(step, 0.004, num_steps)
        assert learning_rate(step, peak=0.004, num_steps=num_steps) == pytest.approx(expected, rel=1e-12)


def test_an_extended_schedule_starts_anew():
    """From where it was extended, the rate is that of a run of the added length."""
    for step in range(200):
        anew = learning_rate(step + 1000, peak=0.01, num_steps=1200, start=1000)
        assert anew == learning_rate(step, peak=0.01, num_steps=200)


def test_events_are_spread_evenly_and_end_at_the_end(plan):
    """A dozen times in a run means a dozen times, the last of them at its last step."""
    state = training.starting_state(plan, torch.device("cpu"))
    state.num_steps, state.schedule_start = 130, 30
    due = []
    for state.step in range(31, 131):
        if is_due(state, 12):
            due.append(state.step)
    assert len(due) == 12
    assert due[-1] == 130
    assert max(np.diff(due)) - min(np.diff(due)) <= 1


def test_clipping_bounds_the_norm_and_only_shrinks(plan):
    """A long gradient is scaled to grad_clip, a short one is left alone."""
    state = training.starting_state(plan, torch.device("cpu"))
    size = plan.model.num_parameters
    for norm, expected in [(50.0, 1.0), (0.3, 0.3)]:
        gradient = torch.full((size,), 7 * norm / math.sqrt(size))  # of a sum over seven targets
        apply_gradient(state, WindowResult(torch.tensor(1.0), gradient, ()), 7, rate=0.0, grad_clip=1.0)
        found = math.sqrt(sum(float(p.grad.square().sum()) for p in state.model.parameters()))
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(plan, what, value):
    """Divergence is caught in the step it happens, before the weights or AdamW's moments are touched."""
    state = training.starting_state(plan, torch.device("cpu"))
    gradient = torch.ones(plan.model.num_parameters)
    good = WindowResult(torch.tensor(1.0), gradient.clone(), ())
    apply_gradient(state, good, 7, rate=0.1, grad_clip=1.0)
    before = state.to_arrays()
    if what == "gradient":
        gradient[17] = value
    result = WindowResult(torch.tensor(value if what == "loss" else 1.0), gradient, ())
    with pytest.raises(DivergenceError, match=f"step 0: the {what} is not finite"):
        apply_gradient(state, result, 7, rate=0.1, grad_clip=1.0)
    assert all((before[name] == array).all() for name, array in state.to_arrays().items())


@pytest.mark.parametrize("cell", CELLS)
def test_a_run_learns_and_keeps_its_best_weights(plan, cell):
    """The loss falls, and the file's figure is that of the weights in it on the whole held-out text."""
    plan = with_cell(plan, cell, steps=180, learning_rate=2e-2)
    events = run_through(plan)
    scores = [event.nats_per_char for event in events if isinstance(event, Evaluated)]
    assert len(scores) == 12
    assert scores[-1] < 0.75 * math.log(plan.model.vocab_size)
    finished = events[-1]
    assert isinstance(finished, Finished)
    file = load_model(plan.run.model_path)
    model = CharRNN.from_arrays(file.config, file.tensors)
    score = evaluate(model, plan.corpus.valid_ids, context=plan.corpus.train_ids)
    assert finished.nats_per_char == score.nats_per_char == file.scores["nats_per_char"]
    assert finished.num_chars == len(plan.corpus.valid_ids)
    assert file.scores["step"] == finished.best_step == 15 * (1 + int(np.argmin(scores)))


def test_events_tell_the_whole_story(plan):
    """Progress covers every character; each evaluation comes with a sample, each best with a file."""
    events = run_through(plan)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(1, 25))
    assert all(0 < event.nats_per_char < 10 for event in progress)
    assert sum(isinstance(event, Evaluated) for event in events) == 12
    assert sum(isinstance(event, Sample) for event in events) == 12
    assert sum(isinstance(event, Saved) for event in events) == sum(e.best for e in events if isinstance(e, Evaluated))
    assert all(len(event.text) == keeping.SAMPLE_LENGTH for event in events if isinstance(event, Sample))


PLACES = [
    {"precision": precision, "threads": threads}
    for precision in ("float32", *["bfloat16"] * has_fast_bfloat16())
    for threads in (1, 3)
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_equal_runs_are_equal_bytes(plan, tmp_path, cell, place):
    """Nothing but the seed, the settings and the place decides what a run of 50 steps ends with."""
    plan = replace(with_cell(plan, cell, batch_size=25, steps=50), **place)
    assert plan.num_workers == place["threads"]
    other = replace(plan, run=replace(plan.run, root=tmp_path / "elsewhere"))
    other.run.folder.mkdir(parents=True)
    run_through(plan)
    run_through(other)
    (files, log), (other_files, other_log) = digests(plan), digests(other)
    assert files == other_files
    assert [e for e in log if e["event"] not in ("saved", "finished")] == [
        e for e in other_log if e["event"] not in ("saved", "finished")
    ]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("stop_after", "place"), list(zip([1, 7, 18, 11], PLACES * 2, strict=False)))
def test_a_stopped_run_goes_on_exactly(plan, cell, stop_after, place):
    """Abandoned after any event and started again: the same bytes, the same log."""
    plan = replace(with_cell(plan, cell, batch_size=25), **place)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()

    run_through(plan, stop_after=stop_after)
    run_through(plan_again(plan))
    assert digests(plan) == expected


def test_a_request_to_stop_saves_and_ends(plan):
    """The step at hand is finished, saved, and the run can go on from exactly there."""
    run_through(plan)
    expected = digests(plan)[0]
    plan.run.clear()
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
    assert digests(plan)[0] == expected


@pytest.mark.parametrize("left_out", ["hidden.0", "cursor", "step", "exp_avg.head.weight", "schedule_start"])
def test_what_a_state_holds_is_needed(plan, left_out):
    """Negative control: a state with one part reset does not end with the same bytes."""
    plan = with_cell(plan, "gru")
    run_through(plan)
    expected = digests(plan)[0]
    plan.run.clear()
    run_through(plan, stop_after=13)
    saved = plan.run.newest_state()
    if left_out in saved.tensors:
        saved.tensors[left_out][:] = 0
    elif left_out == "cursor":
        saved.meta["cursor"] = {"pass_index": 0, "time": 0}
    else:
        saved.meta[left_out] += 1
    resumed = replace(plan_again(plan), resume=saved)
    run_through(resumed)
    assert digests(plan)[0] != expected


def test_a_finished_run_can_be_extended(plan):
    """More steps start a new schedule from the last weights, not from the best ones."""
    run_through(plan)
    before = plan.run.newest_state()
    assert before.meta["finished"]
    again = plan_again(plan, steps=40)
    assert again.extends
    events = run_through(again)
    assert events[-1].step == 40
    after = plan.run.newest_state()
    assert after.meta["schedule_start"] == 24
    assert any((after.tensors[name] != array).any() for name, array in before.tensors.items())


def after(function, do):
    """That function, after which something is done."""

    def wrapped(*arguments, **options):
        result = function(*arguments, **options)
        do()
        return result

    return wrapped


def test_a_time_budget_becomes_a_number_of_steps(plan, monkeypatch):
    """On a clock on which a step takes 0.4 s and an evaluation 0.2 s, the budget is used up and kept."""
    stop, seconds = StopRequest(), []
    stop.clock = lambda: 1000.0 + sum(seconds)
    monkeypatch.setattr(training, "next_step", after(training.next_step, lambda: seconds.append(0.4)))
    monkeypatch.setattr(keeping, "score_held_out", after(keeping.score_held_out, lambda: seconds.append(0.2)))
    plan = replace(plan, training=replace(plan.training, steps=None), minutes=1.0, seconds=60.0)
    events = run_through(plan, stop=stop)
    state = plan.run.newest_state()
    assert state.meta["num_steps"] == events[-1].step
    assert 0.95 * 60 < sum(seconds) < 60
    first = next(event for event in events if isinstance(event, Progress) and event.num_steps)
    assert first.step < 0.1 * first.num_steps


def overfitting(plan, **training):
    """The plan with little text and a high rate, so that it soon learns it by heart."""
    corpus = replace(plan.corpus, ids=plan.corpus.ids[:600], num_train=400, num_valid=200)
    settings = {"dropout": 0.0, "learning_rate": 3e-2, "steps": 2000, **training}
    return replace(plan, corpus=corpus, training=replace(plan.training, **settings))


def test_a_run_that_gets_no_better_is_stopped(plan):
    """After as many worse evaluations as its patience; the kept weights are the best, and the line says since when."""
    plan = overfitting(plan)
    events = run_through(plan)
    stopped, finished = events[-2:]
    scores = {event.step: event.nats_per_char for event in events if isinstance(event, Evaluated)}
    assert isinstance(stopped, Stopped)
    assert stopped.step == finished.step == max(scores) < 2000
    assert stopped.best_step == finished.best_step == min(scores, key=scores.get)
    assert sum(step > stopped.best_step for step in scores) == plan.training.patience
    assert finished.nats_per_char == pytest.approx(scores[stopped.best_step])
    assert plan_again(plan, steps=2000).done


def test_patience_zero_never_stops(plan):
    """Then the budget alone ends a run."""
    events = run_through(overfitting(plan, patience=0, steps=800))
    assert not any(isinstance(event, Stopped) for event in events)
    assert events[-1].step == 800 > events[-1].best_step


def test_a_run_killed_after_its_last_evaluation_stops_there_too(plan):
    """The state that says that it is over was saved, the end was not reached."""
    plan = overfitting(plan)
    run_through(plan)
    expected = digests(plan)
    state = plan.run.newest_state()
    unfinished = {**state.meta, "finished": False, "num_events": state.meta["num_events"] - 2}
    lines = plan.run.log_path.read_bytes().splitlines(keepends=True)
    plan.run.log_path.write_bytes(b"".join(lines[:-2]))  # without stopped and finished
    plan.run.save_state(state.meta["step"], state.tensors, unfinished)
    run_through(plan_again(plan, steps=2000))
    assert digests(plan) == expected


def test_weights_are_averaged(plan):
    """The average is the one that its definition gives, and what the model file holds."""
    plan = with_cell(plan, "gru", steps=160)
    seen = []
    follow = TrainState.follow

    def watched(state, rate):
        seen.append(state.model.to_arrays())
        follow(state, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "follow", watched)
        events = run_through(plan)
    expected = {name: array.astype(np.float64) for name, array in CharRNN(plan.model, seed=1).to_arrays().items()}
    for done in range(8, 161, 8):
        rate = reference.learning_rate(done - 1, 1.0, 160)
        share = 8 / (0.1 * rate * done + 8)
        for name, array in seen[done - 1].items():
            expected[name] += share * (array - expected[name])
    assert events[-1].best_step == 160
    for name, array in load_model(plan.run.model_path).tensors.items():
        assert relative_error(array, expected[name]) < 1e-5
        assert relative_error(seen[-1][name], expected[name]) > 1e-5 or "bias_hh" in name


def test_the_test_text_is_scored_once_at_the_end(plan):
    """With the best weights, and after all that comes before it."""
    corpus = replace(plan.corpus, num_train=5000, num_valid=600)
    plan = replace(plan, corpus=corpus)
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    model = CharRNN.from_arrays(file.config, file.tensors)
    score = evaluate(model, corpus.ids[5600:], context=corpus.ids[:5600])
    assert finished.num_chars == 600
    assert finished.num_test_chars == score.num_chars == 400
    assert finished.test_nats_per_char == score.nats_per_char == file.scores["test"]["nats_per_char"]
    assert file.provenance["split"]["num_test"] == 400


def test_redundant_biases_stay_zero(plan):
    """After training, bias_hh is still zero wherever bias_ih says the same."""
    run_through(plan)
    tensors = load_model(plan.run.model_path).tensors
    hidden = plan.model.hidden_size
    for layer in range(plan.model.num_layers):
        bias = tensors[f"layers.{layer}.bias_hh_l0"]
        assert (bias[: 2 * hidden] == 0).all()
        assert (bias[2 * hidden :] != 0).any()


def test_a_model_that_was_moved_away_is_made_again(plan):
    """Whether before or after the last step, the run ends with a model and a score."""
    for stop_after in (40, 10**6):
        plan.run.clear()
        run_through(plan, stop_after=stop_after)
        plan.run.model_path.unlink()
        saved = plan.run.newest_state()
        saved.meta["finished"] = False
        events = run_through(replace(plan_again(plan), resume=saved, done=False))
        assert isinstance(events[-1], Finished)
        assert load_model(plan.run.model_path).scores["nats_per_char"] == events[-1].nats_per_char
    plan.run.model_path.unlink()
    with pytest.raises(ModelFileError, match="--fresh"):
        keeping.read_finished(plan, 24)


def test_an_extended_run_scores_as_much_as_one_of_its_length(plan, tmp_path):
    """Its first leg was short, so it scored little on its way; the kept weights are scored on the new part."""
    corpus = make_corpus(make_text(40_000), sha256="1" * 64)
    plan = replace(plan, corpus=corpus, training=replace(plan.training, steps=4))
    run_through(plan)
    assert plan.run.newest_state().meta["valid_chars"] == 1000
    again = replace(plan, training=replace(plan.training, steps=6000), resume=plan.run.newest_state(), extends=True)
    state = training.starting_state(again, torch.device("cpu"))
    assert state.valid_chars == 5996 * 8 * 16 // 480
    _, kept = keeping.load_best_model(again)
    score = evaluate(kept, corpus.valid_ids, context=corpus.train_ids, num_scored=state.valid_chars)
    assert state.best_nats == score.nats_per_char


# documents


WORDS = ["aim", "axle", "bolt", "brim", "cork", "cog"]


def test_a_run_on_documents_learns_where_they_end(plan, tmp_path, cache):
    """Trained through the whole path, sampled documents are whole ones; the split leaves none in two parts."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(WORDS * 70), encoding="utf-8")
    config = CorpusConfig(documents="lines")
    corpus = load_corpus([str(path)], config, SourceConfig(), cache)
    end = corpus.vocab.id_of(END)
    assert corpus.train_ids[-1] == corpus.valid_ids[-1] == end
    given = {"steps": 300, "hidden_size": 32, "batch_size": 8, "seq_len": 16, "dropout": 0.0, "weight_drop": 0.0}
    settled = make_plan(plan.run, corpus, config, given, minutes=None, device="cpu", threads=2)
    assert settled.model.reset_id == end
    run_through(settled)
    file = load_model(plan.run.model_path)
    sampler = Sampler(file, threads=1)
    drawn = {"".join(stream) for stream in sampler.streams(length=-1, num_samples=40, temperature=0.5, seed=1)}
    assert drawn == set(WORDS)


def test_no_gradient_crosses_the_border_of_a_document(plan):
    """The window's gradient is the sum of those of its documents, each alone from no state, whatever came before."""
    config = replace(plan.model, vocab_size=7, reset_id=0)
    model = CharRNN(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 7, (40, 1), generator=generator)
    x[0], targets = 0, torch.randint(0, 7, (40, 1), generator=generator)
    state = tuple(torch.randn(part.shape, generator=generator) for part in model.initial_state(1))
    whole = window_gradient(model, x, targets, state, None, model.pack())
    borders = [*torch.nonzero(x[:, 0] == 0)[:, 0].tolist(), 40]
    parts = [
        window_gradient(model, x[start:stop], targets[start:stop], model.initial_state(1), None, model.pack())
        for start, stop in pairwise(borders)
    ]
    assert len(parts) > 3
    assert float(whole.nats) == pytest.approx(sum(float(part.nats) for part in parts), rel=1e-6)
    assert relative_error(whole.gradient, sum(part.gradient for part in parts)) < 1e-5


def test_a_text_that_is_held_out_apart_chooses_the_weights(plan, tmp_path, cache):
    """All of the text is trained on; of the other all but the first character is scored, from no state."""
    texts = {"train.txt": make_text(3000), "held.txt": make_text(700, seed=9)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = CorpusConfig(valid=str(tmp_path / "held.txt"))
    corpus = load_corpus([str(tmp_path / "train.txt")], config, SourceConfig(), cache)
    plan = replace(plan, corpus=corpus, corpus_config=config, model=replace(plan.model, vocab_size=len(corpus.vocab)))
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    assert (corpus.num_train, finished.num_chars) == (3000, 699)
    ids = file.vocab.encode(texts["held.txt"])
    model = CharRNN.from_arrays(file.config, file.tensors)
    assert finished.nats_per_char == evaluate(model, ids[1:], context=ids[:1]).nats_per_char
    found = held_out(file, trained_on(file, None, SourceConfig(), cache))
    assert file.vocab.decode(found.ids) == texts["held.txt"][1:]
    assert file.vocab.decode(found.context) == texts["held.txt"][0]


@pytest.fixture
def mixing(plan):
    """A run of a text that is long enough to keep a piece of it back."""
    corpus = make_corpus(make_text(60_000))
    model = replace(plan.model, vocab_size=len(corpus.vocab))
    return replace(plan, corpus=corpus, model=model)


def test_a_run_mixes_n_grams_in(mixing):
    """The kept file has them, and its figures are the mixture's and those of both alone."""
    finished = run_through(mixing)[-1]
    file = load_model(mixing.run.model_path)
    model = CharRNN.from_arrays(file.config, file.tensors)
    corpus = mixing.corpus
    score = evaluate(model, corpus.valid_ids, context=corpus.valid_context, mixture=file.mixture)
    assert finished.nats_per_char == score.nats_per_char
    alone = [finished.network_nats_per_char, finished.ngram_nats_per_char]
    assert alone == [nats / score.num_chars for nats in score.experts]
    assert finished.nats_per_char < finished.network_nats_per_char
    assert len(mixing.learnt) == corpus.num_train - 1000


def test_a_run_may_do_without_n_grams(mixing):
    """Then all of the text is learnt."""
    plan = replace(mixing, training=replace(mixing.training, mix=False))
    finished = run_through(plan)[-1]
    assert load_model(plan.run.model_path).ngram == {}
    assert finished.network_nats_per_char is None
    assert len(plan.learnt) == plan.corpus.num_train


@pytest.mark.parametrize("stop_after", [9, 30, 50])
def test_a_run_that_was_stopped_mixes_the_same_in(mixing, tmp_path, stop_after):
    """The same bytes, wherever it was stopped."""
    other = tmp_path / "other"
    twin = replace(mixing, run=replace(mixing.run, root=other))
    twin.run.folder.mkdir(parents=True)
    run_through(twin)
    run_through(mixing, stop_after=stop_after)
    run_through(plan_again(mixing))
    assert digests(mixing)[0] == digests(twin)[0]
