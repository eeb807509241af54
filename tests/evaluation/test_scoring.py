"""Exact scores: against the naive network, in sequence and in lanes, by the scoring rules."""

import itertools
import math

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.errors import InputError
from charrnn.evaluation import scoring
from charrnn.evaluation.scoring import WARM_UP, compute_logits, evaluate, predict
from charrnn.model.network import CharRNN, StockNetwork
from tests import reference
from tests.conftest import make_model_file, make_reader, predict_text, sequential_nats


def make_model(cell="gru", vocab_size=9, scale=1.0):
    """A small network and the file it was made from."""
    config = ModelConfig(cell=cell, vocab_size=vocab_size, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config, scale=scale)
    return make_reader(config, file.tensors), file


def random_ids(count, vocab_size=9, seed=0):
    """Random ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.uint8)


@pytest.mark.parametrize("cell", CELLS)
def test_each_characters_nats_follow_the_equations(cell):
    """They equal the naive network's, after a context."""
    model, file = make_model(cell)
    ids = random_ids(60)
    nats = predict_text(model, ids[20:], context=ids[:20]).nats
    expected = reference.Network(cell, file.tensors).nats(ids[20:].tolist(), ids[:20].tolist())
    np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [2, 65, 1000])
def test_a_uniform_model_scores_exactly_log2_v_bits(vocab_size):
    """With all weights zero the score is exact up to rounding."""
    config = ModelConfig(cell="gru", vocab_size=vocab_size, embedding_dim=2, hidden_size=3, num_layers=1)
    model = make_reader(config, {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()})
    ids = (np.arange(5000) % vocab_size).astype(np.uint16)
    score = evaluate(model, ids[1:], context=ids[:1])
    assert score.num_chars == 4999
    assert score.bits_per_char == pytest.approx(math.log2(vocab_size), rel=1e-13)
    assert score.perplexity == pytest.approx(vocab_size, rel=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_lanes_agree_with_reading_in_sequence(cell):
    """Lanes with a warm-up give what a sequential reader gets."""
    model, file = make_model(cell, scale=2.0)
    ids = random_ids(9 * WARM_UP + 321, seed=4)
    lanes = predict_text(model, ids[1500:], context=ids[:1500]).nats
    sequence = sequential_nats(file, ids[1500:], ids[:1500])
    assert len(lanes) == len(sequence) == len(ids) - 1500
    np.testing.assert_allclose(lanes, sequence, atol=1e-4)
    assert lanes.sum() == pytest.approx(sequence.sum(), abs=1e-4 * len(lanes))


def test_the_context_sets_the_state():
    """The last W + 1 characters before the text change its score; earlier ones are not used."""
    model, _ = make_model(scale=3.0)
    ids = random_ids(3000, seed=1)
    near = evaluate(model, ids[2000:], context=ids[:2000]).nats
    assert near == evaluate(model, ids[2000:], context=ids[2000 - WARM_UP - 1 : 2000]).nats
    assert near != pytest.approx(evaluate(model, ids[2000:], context=ids[1999:2000]).nats, abs=1e-6)


def test_fewer_characters_are_scored_in_even_stretches():
    """They get the same nats as in the whole text."""
    model, file = make_model()
    ids = random_ids(20 * WARM_UP, seed=2)
    whole = sequential_nats(file, ids, ids[:1])
    (found,) = predict(model, ids, context=ids[:1], num_scored=4 * WARM_UP + 2)
    assert len(found.nats) == 4 * WARM_UP + 2
    lengths = [WARM_UP + 1, WARM_UP + 1, WARM_UP, WARM_UP]
    pieces = [whole[5 * WARM_UP * k : 5 * WARM_UP * k + length] for k, length in enumerate(lengths)]
    np.testing.assert_allclose(found.nats, np.concatenate(pieces), atol=1e-4)
    places = [ids[5 * WARM_UP * k : 5 * WARM_UP * k + length] for k, length in enumerate(lengths)]
    assert (found.ids == np.concatenate(places)).all()


def test_the_smallest_text_scores_one_character():
    """Of two characters one is fed and one is scored."""
    model, file = make_model()
    score = evaluate(model, np.array([3], np.uint8), context=np.array([5], np.uint8))
    assert score.num_chars == 1
    assert score.nats == pytest.approx(reference.Network("gru", file.tensors).nats([3], [5])[0], rel=1e-5)


@pytest.mark.parametrize("stock", [True, False])
def test_evaluation_changes_neither_the_model_nor_grad_mode(stock):
    """So scoring between two training steps does not change them."""
    _, file = make_model()
    model = CharRNN.from_arrays(file.config, file.tensors)
    before = model.to_arrays()
    evaluate(StockNetwork(model) if stock else model.reader(threads=2), random_ids(50), context=random_ids(5))
    assert torch.is_grad_enabled()
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("stock", [True, False])
def test_logits_of_pieces_are_the_networks_own(stock):
    """Each piece warms up on what precedes it, at most W characters."""
    reader, file = make_model("lstm", scale=2.0)
    model, ids = CharRNN.from_arrays(file.config, file.tensors), random_ids(WARM_UP + 200, seed=6)
    for starts in ([1, 150], [30], [WARM_UP + 10, WARM_UP + 40]):
        found = compute_logits(StockNetwork(model) if stock else reader, ids, np.array(starts), 50)
        for lane, start in enumerate(starts):
            first = start - min(WARM_UP, min(starts))
            x = torch.from_numpy(ids[first : start + 49].astype(np.int64))[:, None]
            expected = model(x, model.initial_state(1))[0][-50:, 0].detach().numpy()
            np.testing.assert_allclose(found[:, lane], expected, atol=1e-4)


# documents and rare characters


def make_documents(vocab_size=6, num_ids=4000, seed=0):
    """Random ids of documents that end with the last id, and a network that resets its state there."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab_size, num_ids).astype(np.uint8)
    ids[-1] = vocab_size - 1
    config = ModelConfig(
        cell="lstm", vocab_size=vocab_size, embedding_dim=4, hidden_size=9, num_layers=2, reset_id=vocab_size - 1
    )
    file = make_model_file(config, scale=2.0)
    return ids, make_reader(config, file.tensors), file


def test_a_document_is_scored_as_if_it_were_alone():
    """Its nats are those of the naive network from a zero state after an end, and of the document on its own."""
    ids, model, file = make_documents()
    end = np.array([5], np.uint8)
    nats = predict_text(model, ids, context=end).nats
    naive = reference.Network("lstm", file.tensors)
    borders = [0, *(np.flatnonzero(ids == 5) + 1).tolist()]
    documents = [ids[start:stop] for start, stop in itertools.pairwise(borders)]
    expected = [nats for document in documents for nats in naive.nats(document.tolist(), [5])]
    assert nats == pytest.approx(expected, abs=1e-5)
    alone = [predict_text(model, document, context=end).nats for document in documents[:9]]
    assert np.concatenate(alone) == pytest.approx(nats[: borders[9]], abs=1e-5)


@pytest.mark.parametrize("num_scored", [None, 1500])
def test_rare_characters_are_fed_but_not_scored(num_scored):
    """They are left out of sum and count, in all lanes, also when stretches are scored."""
    ids, model, _ = make_documents()
    whole = predict_text(model, ids, context=ids[:1], num_scored=num_scored)
    score = evaluate(model, ids, context=ids[:1], num_scored=num_scored, rare_id=2)
    is_scored = whole.ids != 2
    assert score.num_chars == is_scored.sum() < len(whole.ids)
    assert score.nats == pytest.approx(whole.nats[is_scored].sum())
    assert score.unknown == {"\ufffd": len(whole.ids) - is_scored.sum()}


def test_a_text_of_rare_characters_only_is_an_error():
    """There is nothing to divide by."""
    ids, model, _ = make_documents()
    with pytest.raises(InputError, match="rare"):
        evaluate(model, np.full(10, 2, np.uint8), context=ids[:1], rare_id=2)


# predictions


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("vocab_size", [3, 9, 300])
def test_predictions_follow_the_equations(vocab_size, stock):
    """Ranks and the likeliest characters are those of the naive network's distribution."""
    config = ModelConfig(cell="gru", vocab_size=vocab_size, embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, scale=3.0)
    model = CharRNN.from_arrays(config, file.tensors)
    reader = StockNetwork(model) if stock else model.reader(threads=2)
    ids = np.random.default_rng(3).integers(0, vocab_size, 80).astype(np.uint16)
    found = predict_text(reader, ids[20:], context=ids[:20], num_top=5)
    network = reference.Network("gru", file.tensors)
    state = network.zeros()
    for place, char in enumerate(ids[:-1].tolist()):
        logits, state = network.step(char, state)
        if place < 19:
            continue
        row, target = place - 19, int(ids[place + 1])
        probabilities = np.exp(logits - np.logaddexp.reduce(logits))
        order = np.argsort(-probabilities, kind="stable").tolist()
        assert found.ids[row] == target
        likelier, equal = (int((probabilities > probabilities[target] * (1 + slack)).sum()) for slack in (1e-4, -1e-4))
        assert likelier <= found.ranks[row] < equal  # nearly equal ones may be in any order in float32
        assert probabilities[found.top[row]] == pytest.approx(probabilities[order[:5]], rel=1e-3)
        assert found.probabilities[row] == pytest.approx(probabilities[found.top[row]], rel=1e-3)
        assert found.nats[row] == pytest.approx(-math.log(probabilities[target]), abs=1e-4)


def test_equally_likely_characters_are_ordered_by_id():
    """For a network of zeros the first ids are the likeliest, and a character's rank is its id."""
    config = ModelConfig(cell="rnn", vocab_size=7, embedding_dim=2, hidden_size=3, num_layers=1)
    model = make_reader(config, {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()})
    found = predict_text(model, np.arange(7, dtype=np.uint8), context=np.zeros(1, np.uint8), num_top=4)
    assert found.ranks.tolist() == list(range(7))
    assert (found.top == np.arange(4)).all()
    assert found.probabilities == pytest.approx(np.full((7, 4), 1 / 7))


def test_the_parts_of_a_long_text_make_up_the_whole(monkeypatch):
    """They are in order and don't overlap, and their nats sum to the total that evaluate gives, to the last bit."""
    model, ids = make_model()[0], random_ids(5000)
    whole = predict_text(model, ids[1:], context=ids[:1]).nats
    monkeypatch.setattr(scoring, "_PART_SIZE", 1300)
    parts = list(predict(model, ids[1:], context=ids[:1], num_top=2))
    assert [len(part.ids) for part in parts] == [1300, 1300, 1300, 1099]
    assert (np.concatenate([part.ids for part in parts]) == ids[1:]).all()
    np.testing.assert_allclose(np.concatenate([part.nats for part in parts]), whole, atol=1e-4)
    score = evaluate(model, ids[1:], context=ids[:1])
    assert score.num_chars == 4999
    assert sum(float(part.nats.sum()) for part in parts) == score.nats
