"""The plan of a run that has a saved state: it resumes, is extended, is finished, or is refused."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from charrnn.config import CorpusConfig, ModelConfig, TrainConfig
from charrnn.data.batches import Cursor
from charrnn.data.vocab import Vocab
from charrnn.errors import ModelFileError, UsageError
from charrnn.runs.folder import Run
from charrnn.training.plan import Environment
from charrnn.training.planning import plan_new_run
from charrnn.training.resume import plan_resumed_run, resolve_corpus_config
from charrnn.training.state import ScalarState, array_shapes
from tests import conftest

LETTERS = "abcdefghijklmnop\n"


def make_corpus(size=1000, *, sha256="0" * 64, **config):
    """A corpus of so many characters, with these settings."""
    text = "".join(LETTERS[place * place % len(LETTERS)] for place in range(size))
    return conftest.make_corpus(text, sha256=sha256, **config)


@pytest.fixture
def run(tmp_path):
    """A run with an empty folder."""
    run = Run("made", root=tmp_path / "checkpoints")
    run.folder.mkdir(parents=True)
    return run


def make_plan(run, given=None, *, corpus=None, config=None, **environment):
    """Plan what the same command would do: a new run, or one that resumes."""
    corpus, config = corpus or make_corpus(), config or CorpusConfig()
    environment = Environment(**{"threads": 2, **environment})
    saved = run.newest_state()
    if saved is None:
        return plan_new_run(run, corpus, config, given or {}, environment)
    return plan_resumed_run(run, saved, corpus, given or {}, environment)


def save(run, plan, **changes):
    """Save a state of the run as training would, at step 40 unless the changes say otherwise."""
    corpus, batch_size = plan.task.corpus, plan.task.training.batch_size
    scalars = ScalarState(step=40, num_steps=plan.task.training.steps, best_nats=2.5)
    scalars.valid_chars = min(100, len(corpus.valid_ids))
    scalars.cursor = Cursor(1, min(64, corpus.num_train // batch_size - 1))
    meta = {**scalars.scalars(), **plan.state_facts, **changes}
    meta["best_step"] = meta["step"] // 2
    shapes = array_shapes(plan.task.model, batch_size=batch_size, has_moments=True)
    run.save_state(meta["step"], {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, meta)


def save_timed(run, given=None, *, minutes=5.0, **changes):
    """Save a state of a run with a time budget; its speed is known, so its steps are."""
    save(run, make_plan(run, {**(given or {}), "minutes": minutes}), **{"num_steps": 100, **changes})


def save_counted(run, given=None, *, steps=100, **changes):
    """Save a state of a run with a number of steps as its budget."""
    save(run, make_plan(run, {**(given or {}), "steps": steps}), **changes)


def save_finished(run, kind, **changes):
    """Save the last state of a run with either kind of budget."""
    save_it = {"timed": save_timed, "counted": save_counted}[kind]
    save_it(run, step=100, num_steps=100, finished=True, **changes)


# resuming


@pytest.mark.parametrize(
    "given",
    [
        {"minutes": 5.0},
        {"minutes": 5.0, "cell": "rnn", "hidden_size": 9, "seed": 5, "dropout": 0.1 + 0.2},
        {"steps": 100},
        {"steps": 100, "learning_rate": 1e-3, "seq_len": 7},
    ],
)
def test_the_same_command_resumes_an_unfinished_run(run, given):
    """Where it was, with all its settings, and says so."""
    first = make_plan(run, given)
    save(run, first, num_steps=100)
    plan = make_plan(run, given)
    assert plan.first_step == 40
    assert (plan.task.model, plan.task.training) == (first.task.model, first.task.training)
    assert (plan.budget.minutes, plan.budget.seconds) == (given.get("minutes"), None)
    assert (plan.extends, plan.is_finished) == (False, False)
    assert plan.notes == ("resuming from step 40",)
    assert plan.event().step == 40
    assert plan.event().steps == 100


def test_the_same_command_resumes_a_run_with_the_default_budget(run):
    """Without any option."""
    first = make_plan(run)
    save(run, first, num_steps=100)
    plan = make_plan(run)
    assert plan.budget.minutes == first.budget.minutes
    assert (plan.task.model, plan.task.training) == (first.task.model, first.task.training)
    assert plan.resume is not None


def test_the_same_command_resumes_a_run_whose_batch_size_was_lowered(run):
    """The same batch size is too large for the text again."""
    corpus, given = make_corpus(20), {"batch_size": 64, "steps": 100}
    save(run, make_plan(run, given, corpus=corpus))
    plan = make_plan(run, given, corpus=corpus)
    assert plan.resume is not None
    assert plan.task.training.batch_size == 18


@pytest.mark.parametrize("save_first", [save_timed, save_counted])
def test_a_resumed_run_has_its_own_settings(run, save_first):
    """Not those that would be recommended now."""
    given = {"cell": "lstm", "hidden_size": 33, "dropout": 0.125, "seed": 99}
    save_first(run, given)
    plan = make_plan(run)
    assert (plan.task.model.cell, plan.task.model.hidden_size) == ("lstm", 33)
    assert (plan.task.training.dropout, plan.task.training.seed) == (0.125, 99)
    assert isinstance(plan.task.model, ModelConfig)
    assert isinstance(plan.task.training, TrainConfig)


def test_a_resumed_run_has_its_own_split(run):
    """A fraction that isn't given again must not move characters across the split."""
    config = CorpusConfig(valid_fraction=0.25)
    corpus = make_corpus(valid_fraction=0.25)
    save(run, make_plan(run, {"valid_fraction": 0.25}, corpus=corpus, config=config), num_steps=100)
    saved = run.newest_state()
    assert resolve_corpus_config(run, saved, {}) == config
    with pytest.raises(UsageError, match=r"--valid-fraction 0.3 .* 0.25; .*--fresh"):
        resolve_corpus_config(run, saved, {"valid_fraction": 0.3})
    assert resolve_corpus_config(run, None, {"errors": "replace"}) == CorpusConfig(errors="replace")
    assert make_plan(run).task.corpus_config == config
    again = make_plan(run, {"valid_fraction": 0.25}, corpus=corpus, config=config)
    assert again.task.corpus_config == config
    assert again.task.corpus.num_train == 750


def test_a_damaged_newest_state_is_skipped(run):
    """The plan resumes from the one before it and says what was skipped."""
    save_counted(run, step=20)
    save_counted(run, step=40)
    run.state_path(40).write_bytes(b"damaged")
    plan = make_plan(run)
    assert plan.first_step == 20
    assert len(plan.resume.saved.damaged) == 1


# another environment


def test_the_environment_can_change(run):
    """Device and threads are today's, not the state's."""
    save_timed(run)
    plan = make_plan(run, device="cuda", threads=7)
    assert (plan.environment.device, plan.environment.threads) == ("cuda", 7)
    assert plan.resume is not None


@pytest.mark.parametrize(
    ("environment", "change"),
    [
        ({}, None),
        ({"threads": 3}, "threads was 2, is 3"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
        ({"device": "cuda"}, "device was cpu, is cuda"),
    ],
)
def test_a_changed_environment_is_reported(run, environment, change):
    """Sums round differently there, so the result will not be bit-identical."""
    save_timed(run)
    notes = make_plan(run, **environment).notes[1:]
    assert len(notes) == (0 if change is None else 1)
    assert change is None or change in notes[0]


# other settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cell", "lstm"),
        ("hidden_size", 17),
        ("num_layers", 5),
        ("embedding_dim", 3),
        ("batch_size", 2),
        ("seq_len", 5),
        ("dropout", 0.01),
        ("learning_rate", 0.5),
        ("weight_decay", 0.0),
        ("grad_clip", 0.25),
        ("seed", 0),
        ("valid_fraction", 0.3),
        ("encoding", "latin-1"),
        ("min_count", 2),
        ("documents", "lines"),
        ("valid", "/other.txt"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_other_settings_are_refused(run, name, value, is_finished):
    """The error names the option, both values, and both options that avoid it."""
    save_timed(run, finished=is_finished)
    meta = run.newest_state().meta
    before = {**meta["model"], **meta["training"], **meta["corpus"]}[name]
    with pytest.raises(UsageError) as caught:
        make_plan(run, {name: value})
    shown = "started without it" if before in ("", None) else str(before)
    for words in ("--" + name.replace("_", "-"), str(value), shown, "--run", "--fresh"):
        assert words in str(caught.value)


# another text


@pytest.mark.parametrize("is_finished", [False, True])
def test_another_text_is_refused(run, is_finished):
    """By its hash; the name of the file doesn't matter."""
    save_timed(run, finished=is_finished)
    with pytest.raises(UsageError, match=r"trained on another text.*--run .*--fresh"):
        make_plan(run, corpus=make_corpus(sha256="1" * 64))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"names": ("other.txt",)}, "a.txt, b.txt (other.txt is new);"),
        ({"names": ("a.txt", "b.txt", "c.txt")}, "a.txt, b.txt (c.txt is new);"),
        ({"names": ("a.txt",)}, "another text: a.txt, b.txt;"),
        ({"names": ("b.txt", "a.txt")}, "another text: a.txt, b.txt;"),
        ({"ids": np.zeros(1001, np.uint8)}, "it had 1,000 characters and has 1,001 now"),
        ({"ids": np.zeros(9, np.uint8)}, "it had 1,000 characters and has 9 now"),
        ({}, "it still has 1,000 characters, but not the same ones"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_the_error_says_how_the_text_differs(run, change, difference, is_finished):
    """In its files, its length or only its characters; in one line, with both options that avoid it."""
    corpus = replace(make_corpus(), names=("a.txt", "b.txt"))
    save(run, make_plan(run, {"steps": 100}, corpus=corpus), finished=is_finished)
    with pytest.raises(UsageError, match=r"trained on another text.*--run .*--fresh") as caught:
        make_plan(run, corpus=replace(corpus, sha256="1" * 64, **change))
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_that_has_grown_can_be_learned_by_the_same_model(run):
    """If there is a model: the error names the option that starts from it."""
    save(run, make_plan(run, {"steps": 100}))
    longer = make_corpus(1100, sha256="1" * 64)
    with pytest.raises(UsageError, match=r"; use --run NAME for another run, or --fresh"):
        make_plan(run, corpus=longer)
    run.model_path.touch()
    with pytest.raises(UsageError, match=r"1,100 now; use --run NAME --init-from made to train its model further"):
        make_plan(run, corpus=longer)


def test_the_same_text_under_another_name_resumes(run):
    """Moved, or split into several files: only its characters count."""
    corpus = make_corpus()
    save(run, make_plan(run, {"steps": 100}, corpus=corpus))
    assert make_plan(run, corpus=replace(corpus, names=("moved.txt", "in two.txt"))).resume is not None


def test_the_same_bytes_with_another_vocabulary_are_another_text(run):
    """The ids would have other meanings."""
    corpus = make_corpus()
    save(run, make_plan(run, {"steps": 100}, corpus=corpus))
    with pytest.raises(UsageError, match="but not the same"):
        make_plan(run, corpus=replace(corpus, vocab=Vocab(corpus.vocab.chars + "\u00e9")))


def test_of_many_files_the_first_are_named(run):
    """With the number of the others."""
    corpus = replace(make_corpus(), names=tuple(f"{number}.txt" for number in range(50)))
    save(run, make_plan(run, {"steps": 100}, corpus=corpus))
    with pytest.raises(UsageError, match=r"text: 0\.txt, 1\.txt, 2\.txt and 47 more \(new\.txt is new\);"):
        make_plan(run, corpus=replace(corpus, sha256="1" * 64, names=(*corpus.names, "new.txt")))


# budgets of an unfinished run


@pytest.mark.parametrize(
    ("save_first", "given"),
    [
        (save_timed, {"minutes": 6.0}),
        (save_timed, {"minutes": 4.0}),
        (save_timed, {"steps": 200}),
        (save_counted, {"steps": 200}),
        (save_counted, {"steps": 50}),
        (save_counted, {"minutes": 5.0}),
    ],
)
def test_an_unfinished_run_keeps_its_budget(run, save_first, given):
    """Its schedule was made for it; the error says what to do."""
    save_first(run)
    with pytest.raises(UsageError, match=r"finished.*--run .*--fresh"):
        make_plan(run, given)


@pytest.mark.parametrize("given", [{}, {"minutes": 5.0}])
def test_a_run_stopped_before_its_speed_was_known_measures_it_again(run, given):
    """All of its time is still to be turned into steps."""
    save_timed(run, num_steps=None, step=2)
    plan = make_plan(run, given)
    assert (plan.budget.minutes, plan.budget.seconds, plan.task.training.steps) == (5.0, 300.0, None)
    assert plan.first_step == 2
    assert plan.event().steps is None


def test_steps_are_refused_as_the_budget_of_a_run_with_a_time(run):
    """Even before its speed is known."""
    save_timed(run, num_steps=None, step=2)
    with pytest.raises(UsageError, match="finished"):
        make_plan(run, {"steps": 100})


# budgets of a finished run


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("timed", {}),
        ("timed", {"minutes": 5.0}),
        ("timed", {"minutes": 1.0}),
        ("counted", {}),
        ("counted", {"steps": 100}),
        ("counted", {"steps": 1}),
    ],
)
def test_a_finished_run_has_nothing_to_do(run, kind, given):
    """With the same command or a smaller budget; the note says how to extend it or start over."""
    save_finished(run, kind)
    plan = make_plan(run, given)
    assert plan.is_finished
    assert not plan.extends
    assert len(plan.notes) == 1
    for words in ("finished after 100 steps", "--steps", "--minutes", "--fresh"):
        assert words in plan.notes[0]


@pytest.mark.parametrize("kind", ["timed", "counted"])
def test_a_finished_run_is_extended_by_steps(run, kind):
    """With a new end and a new schedule, and it says so."""
    save_finished(run, kind)
    before = run.newest_state().meta
    plan = make_plan(run, {"steps": 250})
    assert (plan.extends, plan.is_finished) == (True, False)
    assert (plan.task.training.steps, plan.budget.seconds) == (250, None)
    assert {**asdict(plan.task.training), "steps": None} == {**before["training"], "steps": None}
    assert plan.first_step == 100
    assert plan.event().steps == 250
    assert "from step 100 to step 250" in plan.notes[0]
    assert "the learning rate rises to its peak again" in plan.notes[0]


def test_a_finished_run_is_extended_by_minutes(run):
    """Only the added time is turned into steps."""
    save_finished(run, "timed")
    plan = make_plan(run, {"minutes": 7.5})
    assert (plan.extends, plan.is_finished) == (True, False)
    assert (plan.budget.minutes, plan.budget.seconds) == (7.5, 150.0)
    assert plan.first_step == 100
    assert "from 5 to 7.5 minutes" in plan.notes[0]
    assert "the learning rate rises to its peak again" in plan.notes[0]


def test_a_finished_run_of_steps_is_extended_by_all_the_minutes(run):
    """It had no time budget before; the same command again has nothing to do."""
    save_finished(run, "counted")
    plan = make_plan(run, {"minutes": 5.0})
    assert plan.extends
    assert (plan.budget.minutes, plan.budget.seconds) == (5.0, 300.0)
    assert "by 5 minutes" in plan.notes[0]
    save(run, plan, step=180, num_steps=180, finished=True)
    assert make_plan(run, {"minutes": 5.0}).is_finished


def test_an_extended_run_resumes_like_any_run(run):
    """Stopped half-way, it has its new end and its new schedule."""
    save_finished(run, "counted")
    longer = make_plan(run, {"steps": 250})
    save(run, longer, step=120, num_steps=250, schedule_start=100)
    for given in ({}, {"steps": 250}):
        plan = make_plan(run, given)
        assert (plan.extends, plan.is_finished) == (False, False)
        assert plan.task.training.steps == 250
        assert plan.resume.scalars.schedule_start == 100


def test_a_run_extended_by_minutes_reports_them_as_its_budget(run):
    """Even if it was extended by steps before."""
    save_finished(run, "timed")
    longer = make_plan(run, {"steps": 250})
    save(run, longer, step=250, num_steps=250, finished=True)
    event = make_plan(run, {"minutes": 9.0}).event()
    assert event.minutes == 9.0
    assert event.steps is None


def test_an_extension_stopped_before_its_speed_was_known_gets_no_more_time(run):
    """Only the added minutes are still to be turned into steps, not those that were spent before."""
    save_finished(run, "timed")
    longer = make_plan(run, {"minutes": 6.0})
    assert longer.budget.seconds == 60.0
    save(run, longer, step=102, num_steps=None, schedule_start=100)
    for given in ({}, {"minutes": 6.0}):
        plan = make_plan(run, given)
        assert plan.budget.minutes == 6.0
        assert plan.budget.seconds <= 60.0


# invalid states


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"cell": "gru"}},
        {"model": {"surprise": 1}},
        {"training": None},
        {"training": {"batch_size": -1}},
        {"text": None},
        {"corpus": None},
    ],
)
def test_a_state_with_invalid_settings_is_refused(run, changes):
    """Its checksum is right, but its content isn't a run's: the error names the file."""
    save_counted(run, **changes)
    with pytest.raises(ModelFileError, match="state-40"):
        make_plan(run, {"valid_fraction": 0.1})


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": None},
        {"vocab": 5},
        {"num_chars": "many"},
        {"paths": 5},
        {"paths": [1]},
        {"paths": ["\0"]},
        {"paths": ["\ud800"]},
        {"paths": ["a"] * 15_000},
    ],
    ids=lambda changes: ascii(changes)[:30],
)
def test_a_state_with_invalid_facts_about_its_text_is_refused(run, changes):
    """As damaged, or as one of another text."""
    plan = make_plan(run, {"steps": 100})
    save(run, plan, text={**plan.state_facts["text"], **changes})
    corpus = replace(plan.task.corpus, sha256="1" * 64, names=("new.txt",))
    with pytest.raises((ModelFileError, UsageError), match=r"state-40|trained on another text") as caught:
        make_plan(run, corpus=corpus)
    assert "--fresh" in str(caught.value)


@pytest.mark.parametrize("name", ["sha256", "vocab", "num_chars", "paths"])
def test_a_state_that_lacks_a_fact_about_its_text_is_refused(run, name):
    """The error names the file."""
    plan = make_plan(run, {"steps": 100})
    text = {key: value for key, value in plan.state_facts["text"].items() if key != name}
    save(run, plan, text=text)
    with pytest.raises(ModelFileError, match="state-40"):
        make_plan(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": -1},
        {"minutes": "5"},
        {"minutes": True},
        {"seconds": -1.0},
        {"place": None},
        {"place": 5},
        {"step": -1},
        {"cursor": {}},
        {"rate_factor": 2.0},
        {"best_nats": "low"},
        {"num_steps": 0},
    ],
    ids=str,
)
def test_a_state_with_invalid_values_is_refused(run, changes):
    """Before the run resumes from it."""
    save(run, make_plan(run, {"steps": 100}))
    saved = run.newest_state()
    run.save_state(40, saved.tensors, {**saved.meta, **changes})
    with pytest.raises(ModelFileError, match=r"state-40.*not a state of a run"):
        make_plan(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {name: array for name, array in arrays.items() if name != "hidden.0"},
        lambda arrays: {name: array for name, array in arrays.items() if name != "exp_avg.head.bias"},
        lambda arrays: {**arrays, "more": np.zeros(1, np.float32)},
        lambda arrays: {**arrays, "average.head.bias": arrays["average.head.bias"][:-1]},
        lambda arrays: {**arrays, "hidden.0": arrays["hidden.0"][:, :-1]},
        lambda arrays: {**arrays, "weights.head.bias": arrays["weights.head.bias"].astype(np.float64)},
        lambda arrays: {**arrays, "weights.head.bias": np.full_like(arrays["weights.head.bias"], np.nan)},
        lambda arrays: {**arrays, "exp_avg_sq.head.bias": np.full_like(arrays["exp_avg_sq.head.bias"], np.inf)},
    ],
    ids=range(8),
)
def test_a_state_with_other_arrays_is_refused(run, change):
    """Missing, extra, of another shape or type, or not finite: before anything is allocated for them."""
    save_counted(run)
    saved = run.newest_state()
    run.save_state(40, change(saved.tensors), saved.meta)
    with pytest.raises(ModelFileError, match=r"state-40.*not a state of this run"):
        make_plan(run)


@pytest.mark.parametrize(
    "changes",
    [{"cursor": {"pass_index": 0, "time": 10**6}}, {"valid_chars": 101}, {"cursor": {"pass_index": 0, "time": 900}}],
    ids=str,
)
def test_a_position_outside_the_text_is_refused(run, changes):
    """There is nothing to read there."""
    save_counted(run, **changes)
    with pytest.raises(ModelFileError, match="outside the text"):
        make_plan(run)


def test_planning_writes_nothing(run):
    """A dry run leaves the folder as it was."""
    make_plan(run)
    assert list(run.folder.iterdir()) == []
    save_counted(run)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    make_plan(run)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
