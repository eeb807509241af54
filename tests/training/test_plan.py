"""What a run is going to do: settled anew, or taken over from the state that is there."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from charrnn.config import CorpusConfig, ModelConfig, TrainConfig, overlay
from charrnn.data.batches import Cursor
from charrnn.data.vocab import Vocab
from charrnn.errors import ModelFileError, UsageError
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.training.folder import Run
from charrnn.training.plan import make_plan, settle_corpus
from charrnn.training.recipe import default_budget, estimate_memory, recommend
from charrnn.training.state import ScalarState, array_shapes
from tests import conftest

LETTERS = "abcdefghijklmnop\n"


def make_corpus(size=1000, *, sha256="0" * 64, **config):
    """A corpus of so many characters, with these settings."""
    text = "".join(LETTERS[place * place % len(LETTERS)] for place in range(size))
    return conftest.make_corpus(text, sha256=sha256, **config)


@pytest.fixture
def run(tmp_path):
    """An empty run's folder."""
    run = Run("made", root=tmp_path / "checkpoints")
    run.folder.mkdir(parents=True)
    return run


def plan_for(
    run,
    given=None,
    *,
    corpus=None,
    minutes=None,
    config=None,
    device="cpu",
    threads=2,
    fresh=False,
    precision="float32",
):
    """The plan for what a command line asks of the run."""
    return make_plan(
        run,
        corpus or make_corpus(),
        config or CorpusConfig(),
        given or {},
        minutes=minutes,
        device=device,
        threads=threads,
        precision=precision,
        fresh=fresh,
    )


def save(run, plan, **changes):
    """Save a state of the run as its training would, at step 40 unless the changes say otherwise."""
    corpus, batch_size = plan.corpus, plan.training.batch_size
    stood = ScalarState(step=40, num_steps=plan.training.steps, best_nats=2.5)
    stood.valid_chars = min(100, len(corpus.valid_ids))
    stood.cursor = Cursor(1, min(64, corpus.num_train // batch_size - 1))
    meta = {**stood.scalars(), **plan.settled, **changes}
    meta["best_step"] = meta["step"] // 2
    shapes = array_shapes(plan.model, batch_size=batch_size, stepped=True)
    run.save_state(meta["step"], {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, meta)


def save_timed(run, given=None, *, minutes=5.0, **changes):
    """Save a state of a run whose budget is a time; its speed is known, so its steps are."""
    save(run, plan_for(run, given, minutes=minutes), **{"num_steps": 100, **changes})


def save_counted(run, given=None, *, steps=100, **changes):
    """Save a state of a run whose budget is a number of steps."""
    save(run, plan_for(run, {**(given or {}), "steps": steps}), **changes)


def finished(run, kind, **changes):
    """Save the last state of a run with a budget of either kind."""
    {"timed": save_timed, "counted": save_counted}[kind](run, step=100, num_steps=100, finished=True, **changes)


# a new run


def test_a_new_run_does_what_is_recommended(run):
    """Sizes and schedule follow from the text, the budget and the machine; nothing is resumed."""
    corpus = make_corpus()
    plan = plan_for(run, corpus=corpus, minutes=5.0)
    expected = recommend(len(corpus.train_ids), len(corpus.vocab), seconds=300.0, device="cpu", threads=2)
    assert (plan.model, plan.training, plan.reasons) == expected
    assert (plan.run, plan.corpus, plan.corpus_config) == (run, corpus, CorpusConfig())
    assert (plan.device, plan.threads) == ("cpu", 2)
    assert (plan.minutes, plan.seconds) == (5.0, 300.0)
    assert (plan.resume, plan.extends, plan.done, plan.notes) == (None, False, False, ())


@pytest.mark.parametrize(
    "given",
    [
        {"cell": "lstm", "hidden_size": 7, "num_layers": 3, "embedding_dim": 5},
        {"batch_size": 3, "seq_len": 9, "dropout": 0.0, "learning_rate": 1e-3},
        {"weight_decay": 0.0, "grad_clip": 5.0, "seed": 0, "steps": 77},
        {"encoding": "latin-1", "valid_fraction": 0.2},
    ],
)
def test_what_the_user_gave_lies_over_it(run, given):
    """Every setting that was named has its value, every other the recommended one."""
    corpus = make_corpus()
    budget = {"seconds": None, "steps": given["steps"]} if "steps" in given else {"seconds": 120.0}
    plan = plan_for(run, given, corpus=corpus, minutes=budget["seconds"] and 2.0)
    model, training, _ = recommend(len(corpus.train_ids), len(corpus.vocab), **budget, device="cpu", threads=2)
    assert plan.model == overlay(model, given)
    assert plan.training == overlay(training, given)
    chosen = {**asdict(plan.model), **asdict(plan.training)}
    assert {name: chosen[name] for name in given if name in chosen} == {n: v for n, v in given.items() if n in chosen}


def test_a_setting_out_of_range_is_a_usage_error(run):
    """The error names the flag."""
    with pytest.raises(UsageError, match="--hidden-size"):
        plan_for(run, {"hidden_size": 0})


def test_steps_are_a_budget_of_their_own(run):
    """There is no time then, and no default one."""
    plan = plan_for(run, {"steps": 50})
    assert plan.training.steps == 50
    assert (plan.minutes, plan.seconds) == (None, None)


@pytest.mark.parametrize("size", [20, 1000, 50_000, 200_000, 400_000])
def test_a_run_without_a_budget_has_the_default_one(run, size):
    """It follows from the characters that are trained on."""
    plan = plan_for(run, corpus=make_corpus(size))
    assert (plan.minutes, plan.training.steps) == default_budget(len(plan.learnt), plan.training)
    assert plan.seconds == (plan.minutes and pytest.approx(60 * plan.minutes))


@pytest.mark.parametrize("size", [20, 21, 40, 100, 300, 1000])
def test_tiny_texts_have_a_plan(run, size):
    """However short the text, there are no more lanes than characters."""
    plan = plan_for(run, corpus=make_corpus(size))
    assert 1 <= plan.training.batch_size <= plan.corpus.num_train
    assert 1 <= plan.training.seq_len <= plan.corpus.num_train
    assert plan.notes == ()


def test_more_lanes_than_characters_become_as_many(run):
    """What was asked for can't be done, so what is done instead is said."""
    plan = plan_for(run, {"batch_size": 64, "steps": 5}, corpus=make_corpus(20))
    assert plan.training.batch_size == plan.corpus.num_train == 18
    assert len(plan.notes) == 1
    assert "18" in plan.notes[0]


def test_a_patient_plan_is_larger(run):
    """The device and the time reach the recommendation."""
    corpus = make_corpus(30_000)
    small, large = (plan_for(run, corpus=corpus, minutes=1.0, device=device) for device in ("cpu", "cuda"))
    assert large.model.num_layers > small.model.num_layers
    assert large.device == "cuda"


@pytest.mark.parametrize("budget", [{"minutes": 2.0}, {"given": {"steps": 9}}])
def test_a_plan_is_told_as_an_event(run, budget):
    """All of it is plain JSON, and counts what it says it counts."""
    plan = plan_for(run, **budget)
    record = json.loads(json.dumps(plan.fact().record(), allow_nan=False))
    assert record["event"] == "plan"
    assert record["step"] == 0
    assert record["run"] == "made"
    assert record["texts"] == ["made.txt"]
    assert (record["num_chars"], record["num_train_chars"], record["num_valid_chars"]) == (1000, 900, 100)
    assert record["vocab_size"] == len(plan.corpus.vocab)
    assert record["model"] == asdict(plan.model)
    assert record["training"] == asdict(plan.training)
    assert record["num_parameters"] == plan.model.num_parameters
    assert record["memory_bytes"] == estimate_memory(plan.model, plan.training)
    assert (record["steps"], record["minutes"]) == (plan.training.steps, plan.minutes)
    assert (record["device"], record["threads"], record["notes"]) == ("cpu", 2, [])


def test_a_model_without_a_state_is_not_overwritten(run):
    """Nobody's model is lost to a run of the same name; both ways out are named."""
    run.model_path.touch()
    with pytest.raises(UsageError, match=r"--run .*--fresh"):
        plan_for(run)
    run.clear()
    assert plan_for(run).resume is None


@pytest.mark.parametrize("state", ["model", "unfinished", "finished", "damaged", "other text"])
def test_a_fresh_run_is_planned_as_if_nothing_were_there(run, state):
    """Whatever the folder holds, the plan is a new run's; planning it removes nothing."""
    new = plan_for(run, {"seed": 7})
    if state != "model":
        save_counted(run, {"cell": "lstm"}, finished=state == "finished")
    run.model_path.touch()
    if state == "damaged":
        (run.folder / "state-40.safetensors").write_bytes(b"damaged")
    before = sorted(run.folder.iterdir())
    corpus = make_corpus(sha256="1" * 64) if state == "other text" else None
    plan = plan_for(run, {"seed": 7}, corpus=corpus, fresh=True)
    assert (plan.model, plan.training, plan.minutes, plan.seconds) == (
        new.model,
        new.training,
        new.minutes,
        new.seconds,
    )
    assert (plan.resume, plan.extends, plan.done) == (None, False, False)
    assert sorted(run.folder.iterdir()) == before


# a run that is there


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ({}, 5.0),
        ({"cell": "rnn", "hidden_size": 9, "seed": 5, "dropout": 0.1 + 0.2}, 5.0),
        ({"steps": 100}, None),
        ({"steps": 100, "learning_rate": 1e-3, "seq_len": 7}, None),
    ],
)
def test_the_same_command_again_goes_on(run, given, minutes):
    """An unfinished run resumes where it stood, with all its settings, and says so."""
    first = plan_for(run, given, minutes=minutes)
    save(run, first, num_steps=100)
    plan = plan_for(run, given, minutes=minutes)
    assert plan.resume.meta["step"] == 40
    assert (plan.model, plan.training, plan.minutes) == (first.model, first.training, minutes)
    assert (plan.extends, plan.done, plan.seconds) == (False, False, None)
    assert plan.notes == ("going on from step 40",)
    assert plan.fact().step == 40


def test_the_same_command_again_goes_on_without_any_option(run):
    """Also where the budget was the default one."""
    first = plan_for(run)
    save(run, first, num_steps=100)
    plan = plan_for(run)
    assert (plan.minutes, plan.model, plan.training) == (first.minutes, first.model, first.training)
    assert plan.resume is not None


def test_the_same_command_again_goes_on_though_lanes_were_too_many(run):
    """The lanes asked for are the lanes asked for, whatever the text made of them."""
    corpus, given = make_corpus(20), {"batch_size": 64, "steps": 100}
    save(run, plan_for(run, given, corpus=corpus))
    plan = plan_for(run, given, corpus=corpus)
    assert plan.resume is not None
    assert plan.training.batch_size == 18


def test_the_machine_may_change(run):
    """Device and threads are those of today, not of the state."""
    save_timed(run)
    plan = plan_for(run, device="cuda", threads=7)
    assert (plan.device, plan.threads) == ("cuda", 7)
    assert plan.resume is not None


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({}, None),
        ({"threads": 3}, "threads 2 before, 3 now"),
        ({"precision": "bfloat16"}, "precision float32 before, bfloat16 now"),
        ({"device": "cuda"}, "device cpu before, cuda now"),
    ],
)
def test_another_machine_is_told_of(run, place, told):
    """WeightGradients are rounded otherwise there, so the run won't end bit for bit as it would have."""
    save_timed(run)
    notes = plan_for(run, **place).notes[1:]
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


@pytest.mark.parametrize("save_first", [save_timed, save_counted])
def test_what_the_user_leaves_open_stays_as_it_was(run, save_first):
    """A run goes on with its own settings, not with those that would be recommended now."""
    given = {"cell": "lstm", "hidden_size": 33, "dropout": 0.125, "seed": 99}
    save_first(run, given)
    plan = plan_for(run)
    assert (plan.model.cell, plan.model.hidden_size) == ("lstm", 33)
    assert (plan.training.dropout, plan.training.seed) == (0.125, 99)


def test_the_split_stays_as_it_was(run):
    """A share that isn't named again must not move characters from one side of the split to the other."""
    config = CorpusConfig(valid_fraction=0.25)
    first = plan_for(run, {"valid_fraction": 0.25}, corpus=make_corpus(valid_fraction=0.25), config=config)
    save(run, first, num_steps=100)
    assert settle_corpus(run, {}, fresh=False) == config
    with pytest.raises(UsageError, match=r"--valid-fraction 0.3 .* 0.25; .*--fresh"):
        settle_corpus(run, {"valid_fraction": 0.3}, fresh=False)
    assert settle_corpus(run, {"errors": "replace"}, fresh=True) == CorpusConfig(errors="replace")
    plan = plan_for(run)
    assert plan.corpus_config == config
    again = plan_for(run, {"valid_fraction": 0.25}, corpus=make_corpus(valid_fraction=0.25), config=config)
    assert again.corpus_config == config
    assert again.corpus.num_train == 750


@pytest.mark.parametrize("state", ["unfinished", "finished"])
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
def test_other_settings_are_refused(run, name, value, state):
    """The error names the flag, both values, and both ways out."""
    save_timed(run, finished=state == "finished")
    meta = run.newest_state().meta
    before = {**meta["model"], **meta["training"], **meta["corpus"]}[name]
    with pytest.raises(UsageError) as caught:
        plan_for(run, {name: value})
    for words in ("--" + name.replace("_", "-"), str(value), str(before), "--run", "--fresh"):
        assert words in str(caught.value)


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_text_is_refused(run, state):
    """By its hash; the name of the file says nothing."""
    save_timed(run, finished=state == "finished")
    with pytest.raises(UsageError, match=r"text is not the one.*--run .*--fresh"):
        plan_for(run, corpus=make_corpus(sha256="1" * 64))


@pytest.mark.parametrize("state", ["unfinished", "finished"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ("other.txt",)}, "it was trained on a.txt, b.txt, other.txt is new"),
        ({"names": ("a.txt", "b.txt", "c.txt")}, "it was trained on a.txt, b.txt, c.txt is new"),
        ({"names": ("a.txt",)}, "it was trained on a.txt, b.txt;"),
        ({"names": ("b.txt", "a.txt")}, "it was trained on a.txt, b.txt;"),
        ({"ids": np.zeros(1001, np.uint8)}, "it had 1,000 characters then and has 1,001 now"),
        ({"ids": np.zeros(9, np.uint8)}, "it had 1,000 characters then and has 9 now"),
        ({}, "its 1,000 characters are as many as then, but not the same"),
    ],
    ids=str,
)
def test_what_has_changed_in_a_text_is_told(run, change, told, state):
    """Its files, its length, or its characters alone; in one line, with both ways out."""
    corpus = replace(make_corpus(), names=("a.txt", "b.txt"))
    save(run, plan_for(run, {"steps": 100}, corpus=corpus), finished=state == "finished")
    with pytest.raises(UsageError, match=r"text is not the one.*--run .*--fresh") as caught:
        plan_for(run, corpus=replace(corpus, sha256="1" * 64, **change))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_text_under_another_name_goes_on(run):
    """Moved, or as many files that were one: what was read is what counts."""
    corpus = make_corpus()
    save(run, plan_for(run, {"steps": 100}, corpus=corpus))
    assert plan_for(run, corpus=replace(corpus, names=("moved.txt", "in two.txt"))).resume is not None


def test_the_same_bytes_with_other_characters_are_another_text(run):
    """As where another version reads them otherwise: the ids would mean something else."""
    corpus = make_corpus()
    save(run, plan_for(run, {"steps": 100}, corpus=corpus))
    with pytest.raises(UsageError, match="but not the same"):
        plan_for(run, corpus=replace(corpus, vocab=Vocab(corpus.vocab.chars + "\u00e9")))


def test_of_many_files_the_first_are_told(run):
    """And how many more there were."""
    corpus = replace(make_corpus(), names=tuple(f"{number}.txt" for number in range(50)))
    save(run, plan_for(run, {"steps": 100}, corpus=corpus))
    with pytest.raises(UsageError, match=r"trained on 0\.txt, 1\.txt, 2\.txt and 47 more, new\.txt is new;"):
        plan_for(run, corpus=replace(corpus, sha256="1" * 64, names=(*corpus.names, "new.txt")))


@pytest.mark.parametrize(
    "name",
    [
        "/{}",
        "/home/me/Maildir/cur/{}.M1P2.host:2,S",
        "/文" + "文" * 80 + "{}",
        "/" + "[{{:," * 40 + "{}",
        '/"\\\n{}',
        "/\udcff{}",
    ],
    ids=lambda name: ascii(name)[:12],
)
def test_a_run_on_any_number_of_files_can_be_read_again(run, name):
    """However they are called, a state and a model name as many of them as a reader takes."""
    names = tuple(name.format(number) for number in range(30_000))
    corpus = replace(make_corpus(), names=names)
    plan = plan_for(run, {"steps": 100, "hidden_size": 2, "num_layers": 1, "embedding_dim": 1}, corpus=corpus)
    save(run, plan)
    assert plan_for(run, corpus=corpus).resume is not None
    provenance = plan.provenance(100)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in plan.model.tensor_shapes().items()}
    save_model(run.model_path, ModelFile(plan.model, corpus.vocab, tensors, {}, provenance))
    kept = load_model(run.model_path).provenance["text"]["paths"]
    assert tuple(kept) == names[: len(kept)]
    assert len(kept) >= 50
    assert run.newest_state().meta["text"]["paths"] == kept


@pytest.mark.parametrize(
    "changes", [{"sha256": None}, {"vocab": 5}, {"num_chars": "many"}, {"paths": 5}, {"paths": [1]}]
)
def test_a_state_that_says_nonsense_about_its_text_is_refused(run, changes):
    """Its checksum is right; the file is named, or the text isn't the one."""
    plan = plan_for(run, {"steps": 100})
    save(run, plan, text={**plan.settled["text"], **changes})
    corpus = replace(plan.corpus, sha256="1" * 64, names=("new.txt",))
    with pytest.raises((ModelFileError, UsageError), match=r"state-40|text is not the one") as caught:
        plan_for(run, corpus=corpus)
    assert "--fresh" in str(caught.value)


@pytest.mark.parametrize("name", ["sha256", "vocab", "num_chars", "paths"])
def test_a_state_that_lacks_something_about_its_text_is_refused(run, name):
    """It is no state of a run."""
    plan = plan_for(run, {"steps": 100})
    text = {key: value for key, value in plan.settled["text"].items() if key != name}
    save(run, plan, text=text)
    with pytest.raises(ModelFileError, match="state-40"):
        plan_for(run)


def save_at_40(run, **changes):
    """Save a state in the file of step 40, whatever it says."""
    save(run, plan_for(run, {"steps": 100}))
    saved = run.newest_state()
    run.save_state(40, saved.tensors, {**saved.meta, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"minutes": -1},
            {"minutes": "5"},
            {"seconds": float("nan")},
            {"place": None},
            {"place": 5},
            {"minutes": True},
        ),
        *({"step": -1}, {"cursor": {}}, {"rate_factor": 2.0}, {"best_nats": "low"}, {"num_steps": 0}),
    ],
    ids=str,
)
def test_a_state_whose_values_are_nonsense_is_refused(run, changes):
    """Each is checked before the run goes on from it."""
    save_at_40(run, **changes)
    with pytest.raises(ModelFileError, match=r"state-40.*not a state of a run"):
        plan_for(run)


@pytest.mark.parametrize(
    ("save_first", "asked"),
    [
        (save_timed, {"minutes": 6.0}),
        (save_timed, {"minutes": 4.0}),
        (save_timed, {"given": {"steps": 200}}),
        (save_counted, {"given": {"steps": 200}}),
        (save_counted, {"given": {"steps": 50}}),
        (save_counted, {"minutes": 5.0}),
    ],
)
def test_an_unfinished_run_keeps_its_budget(run, save_first, asked):
    """The schedule was made for it; another one is refused with what can be done."""
    save_first(run)
    with pytest.raises(UsageError, match=r"finished.*--run .*--fresh"):
        plan_for(run, **asked)


@pytest.mark.parametrize("asked", [{}, {"minutes": 5.0}])
def test_a_run_stopped_before_its_speed_was_known_measures_again(run, asked):
    """It has no number of steps yet, so the time is still to be turned into one."""
    save_timed(run, num_steps=None, step=2)
    plan = plan_for(run, **asked)
    assert (plan.minutes, plan.seconds, plan.training.steps) == (5.0, 300.0, None)
    assert plan.resume.meta["step"] == 2


def test_steps_are_no_budget_for_a_run_that_had_a_time(run):
    """Not even before its speed is known."""
    save_timed(run, num_steps=None, step=2)
    with pytest.raises(UsageError, match="finished"):
        plan_for(run, {"steps": 100})


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("timed", {}),
        ("timed", {"minutes": 5.0}),
        ("timed", {"minutes": 1.0}),
        ("counted", {}),
        ("counted", {"given": {"steps": 100}}),
        ("counted", {"given": {"steps": 1}}),
    ],
)
def test_a_finished_run_is_done(run, kind, asked):
    """The same command, or a smaller budget, has nothing to do, and says what there is to do instead."""
    finished(run, kind)
    plan = plan_for(run, **asked)
    assert plan.done
    assert not plan.extends
    assert len(plan.notes) == 1
    for words in ("finished after 100 steps", "--steps", "--minutes", "--fresh"):
        assert words in plan.notes[0]


@pytest.mark.parametrize("kind", ["timed", "counted"])
def test_a_finished_run_is_extended_by_steps(run, kind):
    """More of them than it has done are a new end; the schedule starts anew, and it says so."""
    finished(run, kind)
    before = run.newest_state().meta
    plan = plan_for(run, {"steps": 250})
    assert (plan.extends, plan.done) == (True, False)
    assert (plan.training.steps, plan.seconds) == (250, None)
    assert {**asdict(plan.training), "steps": None} == {**before["training"], "steps": None}
    assert plan.resume.meta["step"] == 100
    assert "from step 100 to step 250" in plan.notes[0]
    assert "anew" in plan.notes[0]


def test_a_finished_run_is_extended_by_minutes(run):
    """What is turned into steps is the time beyond the one spent."""
    finished(run, "timed")
    plan = plan_for(run, minutes=7.5)
    assert (plan.extends, plan.done) == (True, False)
    assert (plan.minutes, plan.seconds) == (7.5, 150.0)
    assert plan.resume.meta["step"] == 100
    assert "from 5 to 7.5 minutes" in plan.notes[0]
    assert "anew" in plan.notes[0]


def test_a_finished_run_of_steps_is_extended_by_all_the_minutes(run):
    """It has no time of its own that they would have to exceed; given again, they are done."""
    finished(run, "counted")
    plan = plan_for(run, minutes=5.0)
    assert plan.extends
    assert (plan.minutes, plan.seconds) == (5.0, 300.0)
    assert "by 5 minutes" in plan.notes[0]
    save(run, plan, step=180, num_steps=180, finished=True)
    assert plan_for(run, minutes=5.0).done


def test_an_extension_goes_on_like_any_run(run):
    """Stopped half-way, it has its new end and the schedule it had begun."""
    finished(run, "counted")
    longer = plan_for(run, {"steps": 250})
    save(run, longer, step=120, num_steps=250, schedule_start=100)
    for given in ({}, {"steps": 250}):
        plan = plan_for(run, given)
        assert (plan.extends, plan.done) == (False, False)
        assert plan.training.steps == 250
        assert plan.resume.meta["schedule_start"] == 100


def test_an_extension_by_minutes_is_known_by_its_time(run):
    """The plan of a run that was once given steps and now a time tells the time as its budget."""
    finished(run, "timed")
    longer = plan_for(run, {"steps": 250})
    save(run, longer, step=250, num_steps=250, finished=True)
    fact = plan_for(run, minutes=9.0).fact()
    assert fact.minutes == 9.0
    assert fact.steps is None


def test_an_extension_stopped_before_its_speed_was_known_is_no_longer_than_asked(run):
    """Only the added minutes are still to be turned into steps, not those that were spent before."""
    finished(run, "timed")
    longer = plan_for(run, minutes=6.0)
    assert longer.seconds == 60.0
    save(run, longer, step=102, num_steps=None, schedule_start=100)
    for minutes in (None, 6.0):
        plan = plan_for(run, minutes=minutes)
        assert plan.minutes == 6.0
        assert plan.seconds <= 60.0


def test_a_damaged_newest_state_is_passed_over(run):
    """The plan goes on from the one before it and the run remembers what was skipped."""
    save_counted(run, step=20)
    save_counted(run, step=40)
    (run.folder / "state-40.safetensors").write_bytes(b"damaged")
    plan = plan_for(run)
    assert plan.resume.meta["step"] == 20
    assert len(plan.resume.damaged) == 1


def test_nothing_but_damaged_states_is_an_error(run):
    """It is never taken for a new run."""
    save_counted(run)
    (run.folder / "state-40.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="--fresh"):
        plan_for(run)


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
def test_a_state_that_describes_no_run_is_a_foreign_file(run, changes):
    """Its checksum is right and its content is not a plan's: the file is named."""
    save_counted(run, **changes)
    with pytest.raises(ModelFileError, match="state-40"):
        plan_for(run, {"valid_fraction": 0.1})


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
        plan_for(run)


@pytest.mark.parametrize(
    "changes",
    [{"cursor": {"pass_index": 0, "time": 10**6}}, {"valid_chars": 101}, {"cursor": {"pass_index": 0, "time": 900}}],
    ids=str,
)
def test_a_state_that_stands_outside_its_text_is_refused(run, changes):
    """There is nothing to read there."""
    save_counted(run, **changes)
    with pytest.raises(ModelFileError, match="outside its text"):
        plan_for(run)


def test_planning_writes_nothing(run):
    """A dry run leaves the folder as it found it."""
    plan_for(run)
    assert list(run.folder.iterdir()) == []
    save_counted(run)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    plan_for(run)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_the_settings_of_a_plan_are_settings(run):
    """A plan taken over from a file holds checked settings, like one made anew."""
    save_timed(run)
    plan = plan_for(run)
    assert isinstance(plan.model, ModelConfig)
    assert isinstance(plan.training, TrainConfig)
