"""Runs that start from a model: its sizes, characters and weights, and what the text adds to them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, CorpusConfig, ModelConfig, SourceConfig
from charrnn.data.cache import Cache
from charrnn.data.corpus import load_corpus
from charrnn.data.vocab import Vocab
from charrnn.errors import UsageError
from charrnn.evaluation.texts import held_out_text, read_training_text
from charrnn.events import Evaluated
from charrnn.model.file import load_model, save_model
from charrnn.model.network import CharRNN
from charrnn.runs.folder import Run
from charrnn.text.characters import END, LABEL_END, UNKNOWN
from charrnn.training.loop import starting_state
from charrnn.training.plan import Environment
from charrnn.training.resume import plan_resumed_run, resolve_corpus_config
from charrnn.training.run import make_plan
from tests.conftest import digests, make_model_file, make_text, run_through, with_cell

QUICK = {"steps": 20, "batch_size": 8, "seq_len": 16, "dropout": 0.25, "weight_drop": 0.1, "learning_rate": 1e-2}
TEXT = make_text(3000, seed=8).replace("dor", "dör").replace("kest", "Kest")  # with two new characters
NEW = "Kö"


def make_base(chars, cell="gru"):
    """A model of these characters with random weights."""
    vocab = Vocab("".join(sorted(set(chars))))
    config = ModelConfig(cell=cell, vocab_size=len(vocab), embedding_dim=8, hidden_size=16, num_layers=2)
    return make_model_file(config, chars=vocab.chars, seed=9, scale=2.0)


class Desk:
    """A folder with a model, a text, and a run on the text that starts from the model."""

    def __init__(self, folder):
        self.run = Run("second", root=folder / "runs")
        self.path, self.text = folder / "base.safetensors", folder / "text.txt"
        self.run.folder.mkdir(parents=True)

    def plan(self, base, text=TEXT, **given):
        """Plan the run; base: the model, None if its file stays as it is."""
        if base is not None:
            save_model(self.path, base)
        self.text.write_text(text, encoding="utf-8")
        given = {**QUICK, "init_from": str(self.path), **given}
        return make_plan(self.run, [str(self.text)], given, Environment(threads=2))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """That folder, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def base():
    """A model of the characters of the tests' texts, and of some that they lack."""
    return make_base(make_text(6000) + "\u03b1\u03b2#")


def new_notes(plan):
    """The notes about characters that are new to the model."""
    return [note for note in plan.notes if "new to the model" in note]


# sizes and characters


@pytest.mark.parametrize("cell", CELLS)
def test_the_sizes_are_the_models(desk, cell):
    """Not those recommended for the text; the plan names the model."""
    base = make_base(make_text(6000), cell)
    plan = desk.plan(base)
    assert replace(plan.task.model, vocab_size=1) == replace(base.config, vocab_size=1)
    assert plan.task.model.vocab_size == len(plan.task.corpus.vocab) == len(base.vocab) + len(NEW)
    assert plan.task.training.init_from == str(desk.path)
    assert plan.event().training["init_from"] == str(desk.path)
    assert not {"cell", "hidden_size", "num_layers", "embedding_dim"} & plan.reasons.keys()


@pytest.mark.parametrize(
    ("name", "value"), [("cell", "lstm"), ("num_layers", 1), ("hidden_size", 32), ("embedding_dim", 9)]
)
def test_other_sizes_are_refused(desk, base, name, value):
    """The error names the option, both values and the model; the model's own sizes may be given."""
    own = getattr(base.config, name)
    with pytest.raises(UsageError) as caught:
        desk.plan(base, **{name: value})
    for words in ("--" + name.replace("_", "-"), str(value), str(own), str(desk.path)):
        assert words in str(caught.value)
    assert getattr(desk.plan(base, **{name: own}).task.model, name) == own


def test_the_vocabulary_is_the_models_and_the_texts(desk, base):
    """No character of the model is lost, though the text lacks it; new ones are named."""
    plan = desk.plan(base)
    assert set(base.vocab.chars) - set(TEXT)
    assert plan.task.corpus.vocab.chars == "".join(sorted({*base.vocab.chars, *NEW}))
    assert plan.task.corpus_config.known == base.vocab.chars
    assert new_notes(plan) == ["2 characters are new to the model: U+004B 'K', U+00F6 'ö'"]
    assert plan.task.corpus.vocab.decode(plan.task.corpus.ids) == TEXT


def test_a_text_without_new_characters_adds_none(desk, base):
    """The vocabulary is the model's, and there is no note."""
    plan = desk.plan(base, make_text(3000, seed=8))
    assert plan.task.corpus.vocab == base.vocab
    assert new_notes(plan) == []


def test_one_new_character_is_named(desk, base):
    """In the singular."""
    assert new_notes(desk.plan(base, make_text(3000, seed=8) + "K")) == ["1 character is new to the model: U+004B 'K'"]


def test_only_the_first_of_many_new_characters_are_named(desk, base):
    """With the number of the others."""
    text = TEXT + "".join(map(chr, range(0x4E00, 0x4E00 + 40)))
    (note,) = new_notes(desk.plan(base, text))
    assert note.startswith("42 characters are new to the model: U+004B 'K', U+00F6 'ö', U+4E00")
    assert note.endswith("and 22 more")
    assert note.count("U+") == 20


def test_a_known_character_is_never_too_rare(desk, base):
    """A new one can be: it becomes the symbol for rare characters, which is then new to the model itself."""
    plan = desk.plan(base, make_text(3000, seed=8) + "#q", min_count=3)
    chars = plan.task.corpus.vocab.chars
    assert "#" in chars
    assert "q" not in chars
    assert set(chars) - set(base.vocab.chars) == {UNKNOWN}
    (note,) = new_notes(plan)
    assert "U+DC01" in note


@pytest.mark.parametrize(
    ("chars", "given", "advice"),
    [
        ("ab\udc80\udcff", {}, "add --bytes"),
        ("abé", {"bytes": True}, "leave --bytes out"),
        ("ab" + END, {}, "add --documents or --column"),
        ("ab" + END + LABEL_END, {"column": "text"}, "add --column and --label, or --label-from"),
    ],
)
def test_a_model_of_another_kind_of_text_is_refused(desk, chars, given, advice):
    """Bytes are not characters, and one text is not many documents; the error names the model and the option."""
    with pytest.raises(UsageError, match=advice) as caught:
        desk.plan(make_base(chars), **given)
    assert str(desk.path) in str(caught.value)


@pytest.mark.parametrize(
    ("chars", "given", "num_new"),
    [
        ("ab\n\udc80\udcff", {"bytes": True}, 0),
        ("ab\n", {"bytes": True}, 0),
        ("ab\n" + END, {"bytes": True, "documents": "lines"}, 0),
        ("ab\n", {"documents": "lines"}, 1),
        ("ab" + END + UNKNOWN, {"documents": "lines"}, 0),
        ("ab\n" + UNKNOWN, {}, 0),
        ("ab\n" + UNKNOWN, {"min_count": 2}, 0),
    ],
    ids=ascii,
)
def test_a_model_of_the_same_kind_of_text_is_accepted(desk, chars, given, num_new):
    """Its symbols for ends and rare characters stay, and the end of a document can be new; one step is done."""
    plan = desk.plan(make_base(chars), "abba\nbaab\n" * 30, steps=1, **given)
    vocab = plan.task.corpus.vocab
    assert set(chars) <= set(vocab.chars)
    assert len(vocab) == len(set(chars)) + num_new
    assert plan.task.model.reset_id == vocab.id_of(END)
    run_through(plan)
    assert load_model(plan.run.model_path).vocab == vocab


# the first step


def rows_of(arrays, chars, vocab):
    """The rows of these characters, in the arrays that have a row per character."""
    ids = [vocab.chars.index(char) for char in chars]
    return {name: arrays[name][ids] for name in ("embedding.weight", "head.weight", "head.bias")}


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_step_starts_from_the_models_weights(desk, cell):
    """Each known character has its own row; a new one a random embedding and the least probability of the model."""
    base = make_base(make_text(6000) + "\u03b1#", cell)
    plan = desk.plan(base)
    state = starting_state(plan)
    vocab, weights, ema = plan.task.corpus.vocab, state.model.to_arrays(), state.ema.to_arrays()
    random = CharRNN(plan.task.model, seed=plan.task.training.seed).to_arrays()
    for name, array in rows_of(weights, base.vocab.chars, vocab).items():
        assert (array == base.tensors[name]).all()
    for name in base.tensors:
        assert (weights[name] == ema[name]).all()
        assert name in rows_of(weights, "", vocab) or (weights[name] == base.tensors[name]).all()
    new = rows_of(weights, NEW, vocab)
    assert (new["embedding.weight"] == rows_of(random, NEW, vocab)["embedding.weight"]).all()
    assert (new["head.weight"] == 0).all()
    assert (new["head.bias"] == base.tensors["head.bias"].min()).all()


def test_at_first_the_predictions_are_the_models(desk, base):
    """But for the little probability that new characters get."""
    plan = desk.plan(base)
    state = starting_state(plan)
    before = CharRNN.from_arrays(base.config, base.tensors)
    chars = make_text(40, seed=2)
    logits = [
        model(torch.from_numpy(vocab.encode(chars).astype(np.int64))[:, None], model.initial_state(1))[0][:, 0]
        for model, vocab in ((before, base.vocab), (state.model, plan.task.corpus.vocab))
    ]
    places = [plan.task.corpus.vocab.chars.index(char) for char in base.vocab.chars]
    assert torch.allclose(logits[0], logits[1][:, places], atol=1e-5)


def test_the_first_state_holds_the_models_weights(desk, base):
    """On the disk, before any step."""
    plan = desk.plan(base)
    run_through(plan, stop_after=2)
    state = plan.run.newest_state()
    assert state.meta["step"] == 0
    arrays = {name.removeprefix("weights."): array for name, array in state.tensors.items()}
    for name, array in rows_of(arrays, base.vocab.chars, plan.task.corpus.vocab).items():
        assert (array == base.tensors[name]).all()


def test_new_characters_are_learned(desk, base):
    """Their weights change, and the text is predicted better than at first."""
    plan = desk.plan(base, steps=120, dropout=0.0, weight_drop=0.0)
    first = starting_state(plan).ema.to_arrays()
    scores = [event.nats_per_char for event in run_through(plan) if isinstance(event, Evaluated)]
    file = load_model(plan.run.model_path)
    before, after = (rows_of(arrays, NEW, plan.task.corpus.vocab) for arrays in (first, file.tensors))
    for name, array in after.items():
        assert (array != before[name]).any(axis=-1).all()
    assert scores[-1] < scores[0] - 0.2


def test_a_model_trained_on_the_text_gives_a_head_start(desk, plan, uninterrupted):
    """A run that starts from it has a better first score than one from random weights."""
    trained = uninterrupted(with_cell(plan, "gru", steps=180, learning_rate=2e-2)).plan
    base = load_model(trained.run.model_path)
    with_model = desk.plan(base, plan.task.corpus.vocab.decode(plan.task.corpus.ids))
    without = replace(with_model, base=None, run=plan.run)
    first, worse = (
        next(event for event in loop_events if isinstance(event, Evaluated))
        for loop_events in (run_through(with_model), run_through(without))
    )
    assert first.nats_per_char < 0.75 * np.log(len(base.vocab))
    assert worse.nats_per_char > first.nats_per_char + 0.5


# resuming


def test_a_run_resumes_without_the_model_it_started_from(desk, base):
    """All is in the state: the same bytes, the same log."""
    run_through(desk.plan(base))
    expected = digests(desk.plan(None))
    desk.run.clear()
    run_through(desk.plan(base), stop_after=20)
    desk.path.unlink()
    again = desk.plan(None)
    assert again.base is None
    assert again.task.training.init_from == str(desk.path)
    run_through(again)
    assert digests(again) == expected


def test_a_run_resumes_with_the_models_characters(desk, base):
    """Though nobody gives them again; another model or size is refused."""
    run_through(desk.plan(base), stop_after=2)
    saved = desk.run.newest_state()
    config = resolve_corpus_config(desk.run, saved, {})
    assert config.known == base.vocab.chars
    assert resolve_corpus_config(desk.run, saved, {"known": "x"}) == config
    again = desk.plan(None)
    for given in ({"init_from": "/other.safetensors"}, {"hidden_size": 17}):
        with pytest.raises(UsageError, match="--fresh"):
            plan_resumed_run(desk.run, saved, again.task.corpus, given, again.environment)
    plan = plan_resumed_run(desk.run, saved, again.task.corpus, {}, again.environment)
    assert plan.task.training == again.task.training


def test_a_run_that_started_from_random_weights_refuses_a_model(plan):
    """The error names both options that avoid it."""
    run_through(plan, stop_after=2)
    saved, given = plan.run.newest_state(), {"init_from": "/base.safetensors"}
    with pytest.raises(UsageError, match=r"--init-from .*--run NAME.*--fresh"):
        plan_resumed_run(plan.run, saved, plan.task.corpus, given, plan.environment)


# what the files say


def test_a_model_names_the_model_it_started_from(desk, base):
    """And its characters; with those the held-out text is found again, also without the cache."""
    plan = desk.plan(base)
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    assert file.provenance["training"]["init_from"] == desk.path.name
    assert file.provenance["split"]["known"] == base.vocab.chars
    meta = plan.run.newest_state().meta
    assert meta["text"]["vocab"] == plan.task.corpus.vocab.fingerprint != base.vocab.fingerprint
    assert meta["corpus"] == asdict(plan.task.corpus_config)
    json.dumps(plan.event().record(), allow_nan=False)
    cache = Cache.for_user()
    for entry in cache.folder.iterdir():
        entry.unlink()
    found = held_out_text(file, read_training_text(file, plan.task.corpus.names, cache))
    assert len(found.ids) == finished.num_chars
    assert file.vocab.decode(found.ids) == TEXT[-len(found.ids) :]


def test_a_model_of_a_run_from_random_weights_names_none(plan, uninterrupted):
    """Negative control."""
    provenance = load_model(uninterrupted(plan).plan.run.model_path).provenance
    assert provenance["training"]["init_from"] is None
    assert provenance["split"]["known"] == ""


def test_the_cache_keeps_a_text_apart_for_other_known_characters(desk, base, cache):
    """Its ids differ; each entry is found again."""
    plain, known = CorpusConfig(), CorpusConfig(known=base.vocab.chars)
    desk.text.write_text(TEXT, encoding="utf-8")
    read = [load_corpus([str(desk.text)], config, SourceConfig(), cache) for config in (plain, known, plain, known)]
    assert [corpus.vocab.chars for corpus in read[:2]] == [
        "".join(sorted(set(TEXT))),
        "".join(sorted({*TEXT, *base.vocab.chars})),
    ]
    assert [corpus.key for corpus in read[2:]] == [corpus.key for corpus in read[:2]]
    assert read[0].key != read[1].key
    assert read[0].sha256 == read[1].sha256
    for first, again in zip(read[:2], read[2:], strict=True):
        assert first.vocab == again.vocab
        assert (first.ids == again.ids).all()


def test_a_model_that_started_from_a_model_can_be_started_from(desk, base, tmp_path):
    """No character that the first knew is lost."""
    run_through(desk.plan(base, steps=5))
    second = load_model(desk.run.model_path)
    plan = Desk(tmp_path / "other").plan(second, "zu zu za\n" * 60, steps=5)
    run_through(plan)
    third = load_model(plan.run.model_path)
    assert set(base.vocab.chars) < set(second.vocab.chars) < set(third.vocab.chars)
