"""The plan of a new run: given settings over recommended ones, and what the plan says about itself."""

import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest

from charrnn.config import CorpusConfig, overlay
from charrnn.data.vocab import Vocab
from charrnn.distributed import Ranks
from charrnn.errors import UsageError
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.runs.folder import Run
from charrnn.text.characters import UNKNOWN
from charrnn.training.plan import Environment
from charrnn.training.planning import plan_new_run
from charrnn.training.recipe import default_budget, estimate_memory, recommend
from tests import conftest

LETTERS = "abcdefghijklmnop\n"


def make_corpus(size=1000, **config):
    """A corpus of so many characters."""
    return conftest.make_corpus("".join(LETTERS[place * place % len(LETTERS)] for place in range(size)), **config)


@pytest.fixture
def run(tmp_path):
    """A run with an empty folder."""
    run = Run("made", root=tmp_path / "checkpoints")
    run.folder.mkdir(parents=True)
    return run


def make_plan(run, given=None, *, corpus=None, fresh=False, **environment):
    """Plan a new run."""
    environment = Environment(**{"threads": 2, **environment})
    return plan_new_run(run, corpus or make_corpus(), CorpusConfig(), given or {}, environment, fresh=fresh)


# settings


def test_a_new_run_follows_the_recommendation(run):
    """Sizes and schedule follow from the text, the budget and the machine; nothing is resumed."""
    corpus = make_corpus()
    plan = make_plan(run, {"minutes": 5.0}, corpus=corpus)
    expected = recommend(
        len(corpus.train_ids), len(corpus.vocab), {"minutes": 5.0}, device="cpu", threads=2, precision="float32"
    )
    assert (plan.task.model, plan.task.training, plan.reasons) == expected
    assert (plan.run, plan.task.corpus, plan.task.corpus_config) == (run, corpus, CorpusConfig())
    assert (plan.environment.device, plan.environment.threads) == ("cpu", 2)
    assert (plan.budget.minutes, plan.budget.seconds) == (5.0, 300.0)
    assert (plan.resume, plan.extends, plan.is_finished, plan.notes) == (None, False, False, ())


@pytest.mark.parametrize(
    "given",
    [
        {"cell": "lstm", "hidden_size": 7, "num_layers": 3, "embedding_dim": 5},
        {"batch_size": 3, "seq_len": 9, "dropout": 0.0, "learning_rate": 1e-3},
        {"weight_decay": 0.0, "grad_clip": 5.0, "seed": 0, "steps": 77},
        {"encoding": "latin-1", "valid_fraction": 0.2},
    ],
)
def test_given_settings_replace_recommended_ones(run, given):
    """Every setting that was named has its value, every other the recommended one."""
    corpus = make_corpus()
    if "steps" not in given:
        given = {**given, "minutes": 2.0}
    plan = make_plan(run, given, corpus=corpus)
    model, training, _ = recommend(
        len(corpus.train_ids), len(corpus.vocab), given, device="cpu", threads=2, precision="float32"
    )
    assert plan.task.model == overlay(model, given)
    assert plan.task.training == overlay(training, given)
    chosen = {**asdict(plan.task.model), **asdict(plan.task.training)}
    assert {name: chosen[name] for name in given if name in chosen} == {n: v for n, v in given.items() if n in chosen}
    assert not plan.reasons.keys() & given.keys()


def test_a_setting_out_of_range_is_a_usage_error(run):
    """The error names the option."""
    with pytest.raises(UsageError, match="--hidden-size"):
        make_plan(run, {"hidden_size": 0})


def test_steps_are_a_budget(run):
    """Without any minutes."""
    plan = make_plan(run, {"steps": 50})
    assert plan.task.training.steps == 50
    assert (plan.budget.minutes, plan.budget.seconds) == (None, None)


@pytest.mark.parametrize("size", [20, 1000, 50_000, 200_000, 400_000])
def test_a_run_without_a_budget_has_the_default_one(run, size):
    """It follows from the number of characters that are trained on."""
    plan = make_plan(run, corpus=make_corpus(size))
    minutes, steps = default_budget(
        len(plan.task.train_text), plan.task.training.batch_size * plan.task.training.seq_len
    )
    assert (plan.budget.minutes, plan.task.training.steps) == (minutes, steps)
    assert plan.budget.seconds == (None if minutes is None else pytest.approx(60 * minutes))


def test_n_grams_are_mixed_in_unless_unwanted_or_the_vocabulary_is_too_large(run, monkeypatch):
    """Only then are pieces of the text withheld to fit the weights."""
    corpus = make_corpus(60_000)
    size = len(corpus.vocab)
    for given, max_vocab, is_mixed in (({}, size, True), ({"mix": False}, size, False), ({}, size - 1, False)):
        monkeypatch.setattr("charrnn.training.plan.MAX_MIXED_VOCAB", max_vocab)
        task = make_plan(run, given, corpus=corpus).task
        assert task.mixes_ngrams == is_mixed
        assert len(task.train_text.withheld_starts) == (1 if is_mixed else 0)


@pytest.mark.parametrize("size", [20, 21, 40, 100, 300, 1000])
def test_tiny_texts_have_a_plan(run, size):
    """However short the text, there are no more lanes than characters."""
    plan = make_plan(run, corpus=make_corpus(size))
    assert 1 <= plan.task.training.batch_size <= plan.task.corpus.num_train
    assert 1 <= plan.task.training.seq_len <= plan.task.corpus.num_train
    assert plan.notes == ()


def test_a_batch_size_too_large_for_the_text_is_lowered(run):
    """With a note."""
    plan = make_plan(run, {"batch_size": 64, "steps": 5}, corpus=make_corpus(20))
    assert plan.task.training.batch_size == plan.task.corpus.num_train == 18
    assert len(plan.notes) == 1
    assert "18" in plan.notes[0]


def test_the_device_reaches_the_recommendation(run):
    """A GPU gets a deeper network."""
    given, corpus = {"minutes": 1.0}, make_corpus(30_000)
    small, large = (make_plan(run, given, corpus=corpus, device=device) for device in ("cpu", "cuda"))
    assert large.task.model.num_layers > small.task.model.num_layers
    assert large.environment.device == "cuda"


def test_more_processes_than_lanes_are_an_error(run):
    """It says what to change."""
    with pytest.raises(UsageError, match=r"3 processes for 2 lanes; .*--batch-size"):
        make_plan(run, {"batch_size": 2}, ranks=Ranks(rank=0, size=3))


# an existing folder


@pytest.mark.parametrize("has_valid_file", [False, True])
def test_a_held_out_text_unlike_the_rest_is_noted(run, has_valid_file):
    """With what helps; a held-out file was chosen by the user."""
    corpus = conftest.make_corpus(
        conftest.make_text(18_000) + "".join(LETTERS[place * place % 17] for place in range(2000))
    )
    (note,) = make_plan(run, corpus=replace(corpus, has_valid_file=has_valid_file)).notes
    assert "of its 3-grams never occur there (usual for this text: 0%)" in note
    assert ("hold out another text with --valid" in note) != has_valid_file
    assert make_plan(run, corpus=conftest.make_corpus(conftest.make_text(20_000))).notes == ()


@pytest.mark.parametrize(("rare", "name"), [(slice(800, 900), "held-out"), (slice(900, 1000), "test")])
def test_a_text_of_rare_characters_cannot_be_scored(run, rare, name):
    """That is known before anything is trained."""
    corpus = make_corpus(test_fraction=0.1)
    vocab = Vocab(corpus.vocab.chars + UNKNOWN)
    ids = corpus.ids.copy()
    ids[rare] = vocab.id_of(UNKNOWN)
    with pytest.raises(UsageError, match=f"every character of the {name} text is rarer; choose a lower count"):
        make_plan(run, corpus=replace(corpus, ids=ids, vocab=vocab))


def test_a_model_without_a_state_is_not_overwritten(run):
    """The error names both options that avoid it."""
    run.model_path.touch()
    with pytest.raises(UsageError, match=r"--run .*--fresh"):
        make_plan(run)
    run.clear()
    assert make_plan(run).resume is None


def test_a_fresh_run_says_what_it_discards(run):
    """The plan is a new run's; it deletes nothing yet."""
    run.save_state(1234, {}, {"step": 1234})
    run.model_path.touch()
    before = sorted(run.folder.iterdir())
    plan = make_plan(run, fresh=True)
    assert plan.notes == ("starting over: discarding the 1,234 steps of run 'made'",)
    assert plan.resume is None
    assert sorted(run.folder.iterdir()) == before


# what a plan says


@pytest.mark.parametrize("given", [{"minutes": 2.0}, {"steps": 9}])
def test_a_plan_is_an_event(run, given):
    """All of it is plain JSON."""
    plan = make_plan(run, given)
    record = json.loads(json.dumps(plan.event().record(), allow_nan=False))
    assert record["event"] == "plan"
    assert record["step"] == 0
    assert record["run"] == "made"
    assert record["texts"] == ["made.txt"]
    assert (record["num_chars"], record["num_train_chars"], record["num_valid_chars"]) == (1000, 900, 100)
    assert record["vocab_size"] == len(plan.task.corpus.vocab)
    assert record["model"] == asdict(plan.task.model)
    assert record["training"] == asdict(plan.task.training)
    assert record["num_parameters"] == plan.task.model.num_parameters
    assert record["memory_bytes"] == estimate_memory(plan.task.model, plan.task.training)
    assert (record["steps"], record["minutes"]) == (plan.task.training.steps, plan.budget.minutes)
    assert (record["device"], record["threads"], record["notes"]) == ("cpu", 2, [])


def test_the_facts_that_ranks_must_share_are_named_for_people(run):
    """They are compared before training; a difference is reported by these names."""
    facts = make_plan(run, {"minutes": 2.0, "seed": 7}).shared_facts
    assert facts["the text's SHA-256"] == "0" * 64
    assert facts["the step to resume from"] == "none"
    assert (facts["--seed"], facts["--minutes"], facts["--device"]) == (7, 2.0, "cpu")
    assert json.loads(json.dumps(facts)) == facts


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
def test_the_files_of_any_text_fit_a_model_file(run, name):
    """However many there are and whatever their names, the file lists as many as a reader accepts."""
    names = tuple(name.format(number) for number in range(30_000))
    given = {"steps": 100, "hidden_size": 2, "num_layers": 1, "embedding_dim": 1}
    plan = make_plan(run, given, corpus=replace(make_corpus(), names=names))
    model, corpus = plan.task.model, plan.task.corpus
    tensors = {name: np.zeros(shape, np.float32) for name, shape in model.tensor_shapes().items()}
    save_model(run.model_path, ModelFile(model, corpus.vocab, tensors, {}, plan.provenance(100)))
    saved = load_model(run.model_path).provenance["text"]["paths"]
    assert saved == [os.path.basename(name) for name in names[: len(saved)]]
    assert len(saved) >= 50
    run.save_state(0, {}, plan.state_facts)
    assert tuple(run.newest_state().meta["text"]["paths"]) == names[: len(saved)]
