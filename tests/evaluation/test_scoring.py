"""Exact scores: against the naive network, in sequence and in lanes, by the scoring rules."""

import itertools
import math

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import END, UNKNOWN, Vocab, bytes_as_chars
from charrnn.errors import InputError
from charrnn.evaluation.scoring import WARM_UP, evaluate, line_costs, predict, predictions
from charrnn.kernels.head import Predictions
from charrnn.model.network import CharRNN
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
    nats = predict(model, ids[20:], context=ids[:20]).nats
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
    lanes = predict(model, ids[1500:], context=ids[:1500]).nats
    sequence = predict(model, ids[1500:], context=ids[:1500], max_lanes=1).nats
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
    whole = predict(model, ids, context=ids[:1], max_lanes=1).nats
    found = predict(model, ids, context=ids[:1], num_scored=4 * WARM_UP + 2)
    part = found.nats
    assert len(part) == 4 * WARM_UP + 2
    lengths = [WARM_UP + 1, WARM_UP + 1, WARM_UP, WARM_UP]
    pieces = [whole[5 * WARM_UP * k : 5 * WARM_UP * k + length] for k, length in enumerate(lengths)]
    np.testing.assert_allclose(part, np.concatenate(pieces), atol=1e-4)
    places = [ids[5 * WARM_UP * k : 5 * WARM_UP * k + length] for k, length in enumerate(lengths)]
    assert (found.ids == np.concatenate(places)).all()


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
    nats = predict(model, ids, context=end).nats
    naive = reference.Network("lstm", file.tensors)
    borders = [0, *(np.flatnonzero(ids == 5) + 1).tolist()]
    for start, stop in list(itertools.pairwise(borders))[::37]:
        alone = naive.nats(ids[start:stop].tolist(), [5])
        assert nats[start:stop] == pytest.approx(alone, abs=1e-5)
    together = [predict(model, ids[start:stop], context=end).nats.sum() for start, stop in itertools.pairwise(borders)]
    assert sum(together) == pytest.approx(nats.sum(), rel=1e-6)


@pytest.mark.parametrize("num_scored", [None, 1500])
def test_rare_characters_are_read_but_not_scored(num_scored):
    """Their places are left out of sum and count, in all lanes, also where stretches are scored."""
    ids, model, _ = make_documents()
    whole = predict(model, ids, context=ids[:1], num_scored=num_scored)
    score = evaluate(model, ids, context=ids[:1], num_scored=num_scored, rare=2)
    kept = whole.ids != 2
    assert score.num_chars == kept.sum() < len(whole.ids)
    assert score.nats == pytest.approx(whole.nats[kept].sum())
    assert score.unknown == {"\ufffd": len(whole.ids) - kept.sum()}
    named = evaluate(model, ids, context=ids[:1], num_scored=num_scored, rare=2, unknown={"x": 3})
    assert named.unknown == {"x": 3}


def test_a_long_text_is_scored_in_parts(monkeypatch):
    """Parts that fit into memory add up to the whole, each read from what is before it."""
    ids, model, _ = make_documents()
    whole = evaluate(model, ids, context=ids[:1])
    monkeypatch.setattr("charrnn.evaluation.scoring._AT_ONCE", 1200)
    parts = evaluate(model, ids, context=ids[:1])
    assert parts.num_chars == whole.num_chars
    assert parts.nats == pytest.approx(whole.nats, rel=1e-4)


def test_a_text_of_nothing_but_rare_characters_has_no_score():
    """Rather an error than a division by zero."""
    ids, model, _ = make_documents()
    with pytest.raises(InputError, match="rare"):
        evaluate(model, np.full(10, 2, np.uint8), context=ids[:1], rare=2)


# what was expected


def make_model_of(vocab_size, *, cell="gru", scale=3.0):
    """A network that has opinions, and its file."""
    config = ModelConfig(cell=cell, vocab_size=vocab_size, embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, scale=scale)
    return CharRNN.from_arrays(config, file.tensors), file


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("vocab_size", [3, 9, 300])
def test_what_was_expected_is_what_the_equations_say(vocab_size, fused, monkeypatch):
    """Ranks and the likeliest characters, from the naive network's whole distribution."""
    model, file = make_model_of(vocab_size)
    ids = np.random.default_rng(3).integers(0, vocab_size, 80).astype(np.uint16)
    monkeypatch.setattr("charrnn.evaluation.scoring.is_fused", lambda _: fused)
    found = predict(model, ids[20:], context=ids[:20], num_top=5)
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
        likelier, alike = (int((probabilities > probabilities[target] * (1 + slack)).sum()) for slack in (1e-4, -1e-4))
        assert likelier <= found.ranks[row] < alike  # of nearly equal ones either may come first in float32
        assert probabilities[found.top[row]] == pytest.approx(probabilities[order[:5]], rel=1e-3)
        assert found.probabilities[row] == pytest.approx(probabilities[found.top[row]], rel=1e-3)
        assert found.nats[row] == pytest.approx(-math.log(probabilities[target]), abs=1e-4)


def test_equally_likely_characters_come_in_their_order():
    """A network of zeros: the first are the likeliest, and a character's rank is its number."""
    config = ModelConfig(cell="rnn", vocab_size=7, embedding_dim=2, hidden_size=3, num_layers=1)
    model = CharRNN.from_arrays(config, {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()})
    found = predict(model, np.arange(7, dtype=np.uint8), context=np.zeros(1, np.uint8), num_top=4)
    assert found.ranks.tolist() == list(range(7))
    assert (found.top == np.arange(4)).all()
    assert found.probabilities == pytest.approx(np.full((7, 4), 1 / 7))


def test_the_parts_of_a_long_text_are_its_whole(monkeypatch):
    """In order, nothing twice; their nats sum to the total that evaluate gives, to the last bit."""
    model, ids = make_model()[0], random_ids(5000)
    monkeypatch.setattr("charrnn.evaluation.scoring._AT_ONCE", 1300)
    parts = list(predictions(model, ids[1:], context=ids[:1], num_top=2))
    assert [len(part.ids) for part in parts] == [1300, 1300, 1300, 1099]
    assert (np.concatenate([part.ids for part in parts]) == ids[1:]).all()
    assert sum(float(part.nats.sum()) for part in parts) == evaluate(model, ids[1:], context=ids[:1]).nats


def parts_of(text, vocab, sizes):
    """Predictions in parts of such sizes, in which each character costs its number in the text."""
    ids, nats = vocab.encode(text), np.arange(1.0, len(text) + 1)
    empty = np.empty((0, 0), np.int32)
    for start, stop in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        yield Predictions(ids[start:stop], nats[start:stop], empty, empty, empty)


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [3, 1, 8], [4, 4, 4]])
def test_lines_cost_what_their_characters_do(sizes):
    """Newlines included, an unfinished last line too, wherever the parts are cut."""
    text = "ab\n\ncde\nfghi"
    lines = list(line_costs(parts_of(text, Vocab.from_text(text), sizes), Vocab.from_text(text)))
    assert [(line.number, line.text, line.nats, line.num_chars) for line in lines] == [
        (1, "ab", 6.0, 3),
        (2, "", 4.0, 1),
        (3, "cde", 26.0, 4),
        (4, "fghi", 42.0, 4),
    ]


def test_a_document_ends_a_line_and_rare_characters_cost_nothing():
    """Of a line that is nothing but rare ones there is nothing to divide by."""
    text = f"a{UNKNOWN}{END}{UNKNOWN}\nb"
    lines = list(line_costs(parts_of(text, Vocab.from_text(text), [6]), Vocab.from_text(text)))
    assert [(line.text, line.nats, line.num_chars) for line in lines] == [
        ("a\ufffd", 4.0, 2),
        ("\ufffd", 5.0, 1),
        ("b", 6.0, 1),
    ]
    lone = next(line_costs(parts_of(UNKNOWN, Vocab.from_text("a" + UNKNOWN), [1]), Vocab.from_text("a" + UNKNOWN)))
    assert (lone.num_chars, lone.bits, lone.bits_per_char) == (0, 0.0, 0.0)


def test_lines_of_bytes_are_text():
    """As a person wrote them; what isn't UTF-8 is replaced."""
    text = bytes_as_chars("né\n") + "\udcff"
    vocab = Vocab.from_text(text)
    lines = list(line_costs(parts_of(text, vocab, [len(text)]), vocab))
    assert [(line.text, line.num_chars) for line in lines] == [("né", 4), ("\ufffd", 1)]
