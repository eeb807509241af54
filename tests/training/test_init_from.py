"""A run that begins with a model: its sizes, its characters and their weights; and what the text adds to them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, CorpusConfig, ModelConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.vocab import END, UNKNOWN, Vocab
from charrnn.errors import UsageError
from charrnn.evaluation.texts import held_out, trained_on
from charrnn.events import Evaluated
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.model.network import CharRNN
from charrnn.training import loop as training
from charrnn.training.folder import Run
from charrnn.training.plan import begin_with, make_plan, settle_corpus
from tests.conftest import digests, make_model_file, make_text, run_through

PLACE = {"minutes": None, "device": "cpu", "threads": 2}
QUICK = {"steps": 20, "batch_size": 8, "seq_len": 16, "dropout": 0.25, "weight_drop": 0.1, "learning_rate": 1e-2}
TEXT = make_text(3000, seed=8).replace("dor", "dör").replace("kest", "Kest")  # lacks nothing, adds two
NEW = "Kö"


def make_base(chars, cell="gru"):
    """A model of these characters with weights of no meaning."""
    vocab = Vocab("".join(sorted(set(chars))))
    config = ModelConfig(cell=cell, vocab_size=len(vocab), embedding_dim=8, hidden_size=16, num_layers=2)
    return make_model_file(config, chars=vocab.chars, seed=9, scale=2.0)


class Desk:
    """A folder with a model, a text, and the run that is to go on from the one with the other."""

    def __init__(self, folder, cache):
        self.cache, self.run = cache, Run("second", root=folder / "runs")
        self.path, self.text = folder / "base.safetensors", folder / "text.txt"
        self.run.folder.mkdir(parents=True)

    def plan(self, base, text=TEXT, given=None, *, config=None):
        """What is planned for a new run on this text."""
        if base is not None:
            save_model(self.path, base)
        self.text.write_text(text, encoding="utf-8")
        given = {**QUICK, "init_from": str(self.path), **(config or {}), **(given or {})}
        new = self.run.newest_state() is None
        given = begin_with(load_model(self.path), given) if new else given
        settled = settle_corpus(self.run, given, fresh=False)
        corpus = load_corpus([str(self.text)], settled, SourceConfig(), self.cache)
        return make_plan(self.run, corpus, settled, given, base=load_model(self.path) if new else None, **PLACE)


@pytest.fixture
def desk(tmp_path, cache):
    """That folder."""
    return Desk(tmp_path, cache)


@pytest.fixture
def base():
    """A model of the characters of the tests' texts, and of some that they lack."""
    return make_base(make_text(6000) + "\u03b1\u03b2#")


# what is settled


@pytest.mark.parametrize("cell", CELLS)
def test_the_sizes_are_the_models(desk, cell):
    """Not those recommended for the text; all else is settled as ever, and says where the run begins."""
    base = make_base(make_text(6000), cell)
    plan = desk.plan(base)
    assert replace(plan.model, vocab_size=1) == replace(base.config, vocab_size=1)
    assert plan.model.vocab_size == len(plan.corpus.vocab) == len(base.vocab) + len(NEW)
    assert plan.training.init_from == str(desk.path)
    assert plan.fact().training["init_from"] == str(desk.path)
    assert not {"cell", "hidden_size", "num_layers", "embedding_dim"} & plan.reasons.keys()


@pytest.mark.parametrize(
    ("name", "value"), [("cell", "lstm"), ("num_layers", 1), ("hidden_size", 32), ("embedding_dim", 9)]
)
def test_other_sizes_are_refused(desk, base, name, value):
    """The error names the option, both values and the model; the model's own sizes may be named."""
    own = getattr(base.config, name)
    with pytest.raises(UsageError) as caught:
        desk.plan(base, given={name: value})
    for words in ("--" + name.replace("_", "-"), str(value), str(own), str(desk.path)):
        assert words in str(caught.value)
    assert getattr(desk.plan(base, given={name: own}).model, name) == own


def test_the_vocabulary_is_the_models_and_what_the_text_adds(desk, base):
    """Nothing that the model knows is lost, though the text lacks it; what is new is named."""
    plan = desk.plan(base)
    assert set(base.vocab.chars) - set(TEXT)
    assert plan.corpus.vocab.chars == "".join(sorted({*base.vocab.chars, *NEW}))
    assert plan.corpus_config.known == base.vocab.chars
    (note,) = [note for note in plan.notes if "new to the model" in note]
    assert note == "2 characters are new to the model: U+004B 'K', U+00F6 'ö'"
    decoded = plan.corpus.vocab.decode(plan.corpus.ids)
    assert decoded == TEXT


def test_a_text_without_new_characters_adds_nothing(desk, base):
    """Then the vocabulary is the model's, and there is nothing to say."""
    plan = desk.plan(base, make_text(3000, seed=8))
    assert plan.corpus.vocab == base.vocab
    assert not any("new to the model" in note for note in plan.notes)


def test_only_the_first_of_many_new_characters_are_named(desk, base):
    """And how many more there are."""
    text = TEXT + "".join(map(chr, range(0x4E00, 0x4E00 + 40)))
    (note,) = [note for note in desk.plan(base, text).notes if "new to the model" in note]
    assert note.startswith("42 characters are new to the model: U+004B 'K', U+00F6 'ö', U+4E00")
    assert note.endswith("and 22 more")
    assert note.count("U+") == 20


def test_a_known_character_is_never_too_rare(desk, base):
    """A new one may be: it becomes the symbol for those, which is then new to the model itself."""
    text = make_text(3000, seed=8) + "#q"
    plan = desk.plan(base, text, config={"min_count": 3})
    chars = plan.corpus.vocab.chars
    assert "#" in chars
    assert "q" not in chars
    assert set(chars) - set(base.vocab.chars) == {UNKNOWN}
    (note,) = [note for note in plan.notes if "new to the model" in note]
    assert "U+DC01" in note


@pytest.mark.parametrize(
    ("chars", "config", "advice"),
    [
        ("ab\udc80\udcff", {}, "add --bytes"),
        ("abé", {"bytes": True}, "leave --bytes out"),
        ("ab" + END, {}, "add --documents"),
    ],
)
def test_a_model_of_another_kind_of_text_is_refused(desk, chars, config, advice):
    """Bytes are no characters, and one text is not many; the error names the model and what to do."""
    with pytest.raises(UsageError, match=advice) as caught:
        desk.plan(make_base(chars), config=config)
    assert str(desk.path) in str(caught.value)


@pytest.mark.parametrize(
    ("chars", "config", "new"),
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
def test_a_model_of_the_same_kind_of_text_is_begun_with(desk, chars, config, new):
    """Its signs for what is no character are kept, and documents may be learnt anew; a step of each is done."""
    plan = desk.plan(make_base(chars), "abba\nbaab\n" * 30, given={"steps": 1}, config=config)
    vocab = plan.corpus.vocab
    assert set(chars) <= set(vocab.chars)
    assert len(vocab) == len(set(chars)) + new
    assert plan.model.reset_id == vocab.id_of(END)
    run_through(plan)
    assert load_model(plan.run.model_path).vocab == vocab


# the first step


def rows_of(arrays, chars, vocab):
    """What belongs to each of the characters, in the arrays that have a row for each."""
    ids = [vocab.chars.index(char) for char in chars]
    return {name: arrays[name][ids] for name in ("embedding.weight", "head.weight", "head.bias")}


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_step_finds_the_models_weights(desk, cell):
    """Each known character has its own in its new place; a new one as drawn, as likely as the least likely."""
    base = make_base(make_text(6000) + "\u03b1#", cell)
    plan = desk.plan(base)
    state = training.starting_state(plan, torch.device("cpu"))
    vocab, found, kept = plan.corpus.vocab, state.model.to_arrays(), state.average.to_arrays()
    drawn = CharRNN(plan.model, seed=plan.training.seed).to_arrays()
    for name, array in rows_of(found, base.vocab.chars, vocab).items():
        assert (array == base.tensors[name]).all()
    for name in base.tensors:
        assert (found[name] == kept[name]).all()
        assert name in rows_of(found, "", vocab) or (found[name] == base.tensors[name]).all()
    new = rows_of(found, NEW, vocab)
    assert (new["embedding.weight"] == rows_of(drawn, NEW, vocab)["embedding.weight"]).all()
    assert (new["head.weight"] == 0).all()
    assert (new["head.bias"] == base.tensors["head.bias"].min()).all()


def test_at_first_a_text_costs_what_it_cost_the_model(desk, base):
    """But for the little that the new characters are given."""
    plan = desk.plan(base)
    state = training.starting_state(plan, torch.device("cpu"))
    before = CharRNN.from_arrays(base.config, base.tensors)
    chars = make_text(40, seed=2)
    logits = [
        model(torch.from_numpy(vocab.encode(chars).astype(np.int64))[:, None], model.initial_state(1))[0][:, 0]
        for model, vocab in ((before, base.vocab), (state.model, plan.corpus.vocab))
    ]
    places = [plan.corpus.vocab.chars.index(char) for char in base.vocab.chars]
    assert torch.allclose(logits[0], logits[1][:, places], atol=1e-5)


def test_the_first_state_holds_them(desk, base):
    """On the disk, before any step."""
    plan = desk.plan(base)
    run_through(plan, stop_after=2)
    state = plan.run.newest_state()
    assert state.meta["step"] == 0
    arrays = {name.removeprefix("weights."): array for name, array in state.tensors.items()}
    for name, array in rows_of(arrays, base.vocab.chars, plan.corpus.vocab).items():
        assert (array == base.tensors[name]).all()


def test_new_characters_are_learnt(desk, base):
    """Their weights move, and the text is predicted better than at first."""
    plan = desk.plan(base, given={"steps": 120, "dropout": 0.0, "weight_drop": 0.0})
    first = training.starting_state(plan, torch.device("cpu")).average.to_arrays()
    scores = [event.nats_per_char for event in run_through(plan) if isinstance(event, Evaluated)]
    file = load_model(plan.run.model_path)
    before, after = (rows_of(arrays, NEW, plan.corpus.vocab) for arrays in (first, file.tensors))
    for name, array in after.items():
        assert (array != before[name]).any(axis=-1).all()
    assert scores[-1] < scores[0] - 0.2


def test_a_model_that_fits_the_text_is_no_worse_for_it(desk, plan):
    """Negative control: begun with what this text has taught, a run's first score is better than a fresh one's."""
    taught = replace(plan, training=replace(plan.training, steps=300, dropout=0.0, learning_rate=2e-2))
    run_through(taught)
    base = load_model(plan.run.model_path)
    text = plan.corpus.vocab.decode(plan.corpus.ids)
    events = run_through(desk.plan(base, text))
    first = next(event for event in events if isinstance(event, Evaluated))
    assert first.nats_per_char < 0.75 * np.log(len(base.vocab))
    fresh = replace(desk.plan(base, text), resume=None, base=None, training=plan.training, run=plan.run)
    plan.run.clear()
    worse = next(event for event in run_through(fresh) if isinstance(event, Evaluated))
    assert worse.nats_per_char > first.nats_per_char + 0.5


# going on


def test_a_run_goes_on_without_the_model_it_began_with(desk, base):
    """Stopped and started again when that is gone: all is in the state; the same bytes, the same log."""
    run_through(desk.plan(base))
    expected = digests(desk.plan(None))
    desk.run.clear()
    run_through(desk.plan(base), stop_after=20)
    desk.path.unlink()
    again = desk.plan(None)
    assert again.base is None
    assert again.training.init_from == str(desk.path)
    run_through(again)
    assert digests(again) == expected


def test_a_run_goes_on_as_it_began(desk, base):
    """With the model's characters, though nobody names them again; another model to begin with is refused."""
    run_through(desk.plan(base), stop_after=20)
    settled = settle_corpus(desk.run, {}, fresh=False)
    assert settled.known == base.vocab.chars
    assert settle_corpus(desk.run, {"known": "x"}, fresh=False) == settled  # which the state knows better
    again = desk.plan(None)
    for given in ({"init_from": "/other.safetensors"}, {"hidden_size": 17}):
        with pytest.raises(UsageError, match="--fresh"):
            make_plan(desk.run, again.corpus, settled, given, **PLACE)
    assert make_plan(desk.run, again.corpus, settled, {}, **PLACE).training == again.training


def test_a_run_that_began_from_nothing_refuses_a_model(desk, plan, base):
    """It is too late for that; the error names both ways out."""
    run_through(plan, stop_after=20)
    with pytest.raises(UsageError, match=r"--init-from .*--run NAME.*--fresh"):
        make_plan(plan.run, plan.corpus, plan.corpus_config, {"init_from": "/base.safetensors"}, **PLACE)


# what is written down


def test_a_model_says_what_it_began_with(desk, base, cache):
    """Its file names it, and the characters that it came with; with them the held-out text is found again."""
    plan = desk.plan(base)
    finished = run_through(plan)[-1]
    file = load_model(plan.run.model_path)
    assert file.provenance["training"]["init_from"] == str(desk.path)
    assert file.provenance["split"]["known"] == base.vocab.chars
    meta = plan.run.newest_state().meta
    assert meta["text"]["vocab"] == plan.corpus.vocab.fingerprint != base.vocab.fingerprint
    assert meta["corpus"] == asdict(plan.corpus_config)
    json.dumps(plan.fact().record(), allow_nan=False)
    for entry in cache.folder.iterdir():
        entry.unlink()
    found = held_out(file, trained_on(file, None, SourceConfig(), cache))
    assert len(found.ids) == finished.num_chars
    assert file.vocab.decode(found.ids) == TEXT[-len(found.ids) :]


def test_a_run_from_nothing_says_so(plan):
    """With nothing in the place of the model."""
    run_through(plan)
    provenance = load_model(plan.run.model_path).provenance
    assert provenance["training"]["init_from"] is None
    assert provenance["split"]["known"] == ""


def test_the_same_text_is_read_anew_for_other_known_characters(desk, base, cache):
    """The ids are others, so the cache has both; each is found again."""
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


def test_it_may_be_done_again_and_again(desk, base, tmp_path, cache):
    """A model that began with a model is one to begin with; nothing that the first knew is lost."""
    run_through(desk.plan(base))
    second = load_model(desk.run.model_path)
    other = Desk(tmp_path / "other", cache)
    plan = other.plan(second, "zu zu za\n" * 60)
    run_through(plan)
    third = load_model(plan.run.model_path)
    assert set(base.vocab.chars) < set(second.vocab.chars) < set(third.vocab.chars)
    assert isinstance(third, ModelFile)
