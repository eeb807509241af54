"""Exact scores: against the naive network, in sequence and in lanes, by the scoring rules."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

from charrnn.checkpoint import ModelFile
from charrnn.config import CELLS, ModelConfig, SourceConfig
from charrnn.errors import InputError
from charrnn.evaluation import WARM_UP, _places_scored, character_nats, evaluate, held_out, whole_text
from charrnn.model import CharRNN
from charrnn.vocab import Vocab
from tests import reference
from tests.conftest import make_model_file


def make_model(cell="gru", vocab_size=9, scale=1.0):
    """A small network and the file it was made from."""
    config = ModelConfig(cell=cell, vocab_size=vocab_size, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config, scale=scale)
    return CharRNN.from_arrays(config, file.tensors), file


def random_ids(count, vocab_size=9, seed=0):
    """Ids without any order."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.uint8)


@pytest.mark.parametrize("cell", CELLS)
def test_each_character_costs_what_the_equations_say(cell):
    """Per-character nats equal the naive network's, after a context."""
    model, file = make_model(cell)
    ids = random_ids(60)
    nats = character_nats(model, ids[20:], context=ids[:20])
    expected = reference.Network(cell, file.tensors).nats(ids[20:].tolist(), ids[:20].tolist())
    np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)


def test_a_uniform_model_costs_exactly_log2_v_bits():
    """All-zero weights know nothing, and the figure says so to the last digit but rounding."""
    for vocab_size in (2, 65, 1000):
        config = ModelConfig(cell="gru", vocab_size=vocab_size, embedding_dim=2, hidden_size=3, num_layers=1)
        model = CharRNN.from_arrays(config, {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()})
        ids = (np.arange(5000) % vocab_size).astype(np.uint16)
        score = evaluate(model, ids[1:], context=ids[:1])
        assert score.num_chars == 4999
        assert score.bits_per_char == pytest.approx(math.log2(vocab_size), rel=1e-13)
        assert score.perplexity == pytest.approx(vocab_size, rel=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_lanes_agree_with_reading_in_sequence(cell):
    """Warmed-up lanes give what one sequential reader gets."""
    model, _ = make_model(cell, scale=2.0)
    ids = random_ids(9 * WARM_UP + 321, seed=4)
    lanes = character_nats(model, ids[1500:], context=ids[:1500])
    sequence = character_nats(model, ids[1500:], context=ids[:1500], max_lanes=1)
    assert len(lanes) == len(sequence) == len(ids) - 1500
    np.testing.assert_allclose(lanes, sequence, atol=1e-4)
    assert lanes.sum() == pytest.approx(sequence.sum(), abs=1e-4 * len(lanes))


def test_the_state_is_carried_into_the_text():
    """What came before changes the score, up to the thousand characters that are used."""
    model, _ = make_model(scale=3.0)
    ids = random_ids(3000, seed=1)
    near = evaluate(model, ids[2000:], context=ids[:2000]).nats
    assert near == evaluate(model, ids[2000:], context=ids[2000 - WARM_UP - 1 : 2000]).nats
    assert near != pytest.approx(evaluate(model, ids[2000:], context=ids[1999:2000]).nats, abs=1e-6)


def test_a_part_is_scored_in_even_stretches():
    """Fewer characters than there are: the same nats that the whole gives them."""
    model, _ = make_model()
    ids = random_ids(20 * WARM_UP, seed=2)
    whole = character_nats(model, ids, context=ids[:1], max_lanes=1)
    part = character_nats(model, ids, context=ids[:1], num_scored=4 * WARM_UP + 2)
    assert len(part) == 4 * WARM_UP + 2
    lengths = [WARM_UP + 1, WARM_UP + 1, WARM_UP, WARM_UP]
    pieces = [whole[5 * WARM_UP * k : 5 * WARM_UP * k + length] for k, length in enumerate(lengths)]
    np.testing.assert_allclose(part, np.concatenate(pieces), atol=1e-4)


def test_the_smallest_text_scores_one_character():
    """Two characters: one feeds, one is scored."""
    model, file = make_model()
    score = evaluate(model, np.array([3], np.uint8), context=np.array([5], np.uint8))
    assert score.num_chars == 1
    assert score.nats == pytest.approx(reference.Network("gru", file.tensors).nats([3], [5])[0], rel=1e-5)


def test_evaluation_leaves_no_gradient_and_no_mode_behind():
    """Scoring between two training steps must not change them."""
    model, _ = make_model()
    before = model.to_arrays()
    evaluate(model, random_ids(50), context=random_ids(5))
    assert torch.is_grad_enabled()
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def trained(tmp_path):
    """A file whose provenance names a text of 100 characters, of which 90 were trained on."""
    text = "abcdefghij" * 10
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    config = ModelConfig(cell="gru", vocab_size=10, embedding_dim=4, hidden_size=6, num_layers=1)
    file = make_model_file(config)
    provenance = {
        "text": {"paths": [str(path)], "sha256": digest},
        "split": {"num_train": 90, "num_valid": 10, "encoding": "utf-8", "valid_fraction": 0.1},
    }
    return path, ModelFile(config, Vocab("abcdefghij"), file.tensors, {}, provenance)


def test_a_separate_text_scores_all_but_its_first_character(tmp_path, trained, cache):
    """Of N known characters N - 1 are scored; unknown ones are neither fed nor scored, but named."""
    _, file = trained
    other = tmp_path / "other.txt"
    other.write_text("abXcdYXe", encoding="utf-8")
    source = whole_text(file, str(other), {}, SourceConfig(), cache)
    assert file.vocab.decode(source.context) == "a"
    assert file.vocab.decode(source.ids) == "bcde"
    assert source.unknown == {"X": 2, "Y": 1}
    other.write_text("aXY", encoding="utf-8")
    with pytest.raises(InputError, match="at least two"):
        whole_text(file, str(other), {}, SourceConfig(), cache)


def test_the_held_out_part_is_found_again(tmp_path, trained, cache):
    """By path and content; a moved text by the path that is given; another text not at all."""
    path, file = trained
    source = held_out(file, None, SourceConfig(), cache)
    assert (len(source.context), len(source.ids)) == (90, 10)
    moved = tmp_path / "moved.txt"
    path.rename(moved)
    with pytest.raises(InputError, match="--train-text"):
        held_out(file, None, SourceConfig(), cache)
    assert (held_out(file, [str(moved)], SourceConfig(), cache).ids == source.ids).all()
    moved.write_text("abcdefghij" * 9 + "bcdefghija", encoding="utf-8")
    with pytest.raises(InputError, match="--train-text"):
        held_out(file, [str(moved)], SourceConfig(), cache)


def test_a_model_that_says_nothing_of_its_text_is_told_so(trained, cache):
    """And so is one that was trained on stdin, in part or alone: nothing is read from there unasked."""
    _, file = trained
    for provenance in ({}, {"text": {"paths": ["a"]}}):
        with pytest.raises(InputError, match="TEXT"):
            held_out(ModelFile(file.config, file.vocab, file.tensors, {}, provenance), None, SourceConfig(), cache)
    text = {**file.provenance["text"], "paths": ["-", "a.txt"]}
    mixed = ModelFile(file.config, file.vocab, file.tensors, {}, {**file.provenance, "text": text})
    with pytest.raises(InputError, match="stdin"):
        held_out(mixed, None, SourceConfig(), cache)


# documents and rare characters


def make_documents(vocab_size=6, num_ids=4000, seed=0):
    """Random ids of documents, the last id of each their end, and a network that forgets there."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab_size, num_ids).astype(np.uint8)
    ids[-1] = vocab_size - 1
    config = ModelConfig(
        cell="lstm", vocab_size=vocab_size, embedding_dim=4, hidden_size=9, num_layers=2, reset_id=vocab_size - 1
    )
    file = make_model_file(config, scale=2.0)
    return ids, CharRNN.from_arrays(config, file.tensors), file


def test_a_document_is_scored_as_if_it_were_alone():
    """In lanes or in sequence, each costs what it costs read from no state behind an end."""
    ids, model, file = make_documents()
    end = np.array([5], np.uint8)
    nats = character_nats(model, ids, context=end)
    naive = reference.Network("lstm", file.tensors)
    borders = [0, *(np.flatnonzero(ids == 5) + 1).tolist()]
    for start, stop in list(itertools.pairwise(borders))[::37]:
        alone = naive.nats(ids[start:stop].tolist(), [5])
        assert nats[start:stop] == pytest.approx(alone, abs=1e-5)
    together = [
        character_nats(model, ids[start:stop], context=end).sum() for start, stop in itertools.pairwise(borders)
    ]
    assert sum(together) == pytest.approx(nats.sum(), rel=1e-6)


@pytest.mark.parametrize("num_scored", [None, 1500])
def test_rare_characters_are_read_but_not_scored(num_scored):
    """Their places are left out of sum and count, in all lanes, also where stretches are scored."""
    ids, model, _ = make_documents()
    whole = character_nats(model, ids, context=ids[:1], num_scored=num_scored)
    score = evaluate(model, ids, context=ids[:1], num_scored=num_scored, rare=2)
    places = _places_scored(len(ids), len(whole), 64)
    kept = ids[places] != 2
    assert len(places) == len(whole)
    assert (np.diff(places) > 0).all()
    assert score.num_chars == kept.sum()
    assert score.nats == pytest.approx(whole[kept].sum())
    assert score.unknown == {"\ufffd": len(whole) - kept.sum()}
    named = evaluate(model, ids, context=ids[:1], num_scored=num_scored, rare=2, unknown={"x": 3})
    assert named.unknown == {"x": 3}


def test_a_long_text_is_scored_in_parts(monkeypatch):
    """Parts that fit into memory add up to the whole, each read from what is before it."""
    ids, model, _ = make_documents()
    whole = evaluate(model, ids, context=ids[:1])
    monkeypatch.setattr("charrnn.evaluation._AT_ONCE", 1200)
    parts = evaluate(model, ids, context=ids[:1])
    assert parts.num_chars == whole.num_chars
    assert parts.nats == pytest.approx(whole.nats, rel=1e-4)


def test_a_text_of_nothing_but_rare_characters_has_no_score():
    """Rather an error than a division by zero."""
    ids, model, _ = make_documents()
    with pytest.raises(InputError, match="rare"):
        evaluate(model, np.full(10, 2, np.uint8), context=ids[:1], rare=2)
