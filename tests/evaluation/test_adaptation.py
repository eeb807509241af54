"""Dynamic evaluation: windows are scored before the model learns from them; a rate of zero gives the plain score."""

import math

import numpy as np
import pytest

from charrnn.config import CELLS, ModelConfig
from charrnn.errors import DivergenceError
from charrnn.evaluation import adaptation
from charrnn.evaluation.adaptation import SEQ_LEN, evaluate_adapting
from charrnn.evaluation.scoring import evaluate
from charrnn.model.network import CharRNN
from tests.conftest import make_model_file


def make_model(cell="gru", vocab_size=6, reset_id=None):
    """A small network with random weights."""
    config = ModelConfig(
        cell=cell, vocab_size=vocab_size, embedding_dim=4, hidden_size=8, num_layers=2, reset_id=reset_id
    )
    return CharRNN.from_arrays(config, make_model_file(config).tensors)


def make_ids(count, seed=0):
    """Ids that are usually one more than the id before."""
    generator = np.random.default_rng(seed)
    return (np.arange(count) + (generator.random(count) < 0.1).cumsum()).astype(np.uint8) % 6


@pytest.mark.parametrize("cell", CELLS)
def test_a_rate_of_zero_gives_the_plain_score(cell):
    """Characters, context and rare characters count in the same way."""
    model, ids = make_model(cell), make_ids(2000)
    for rare_id in (None, 2):
        options = {"context": ids[:1200], "rare_id": rare_id}
        adapted = evaluate_adapting(model, ids[1200:], train=ids[:1200], rate=0.0, **options)
        plain = evaluate(model.reader(threads=2), ids[1200:], **options)
        assert adapted.num_chars == plain.num_chars
        assert adapted.nats_per_char == pytest.approx(plain.nats_per_char, abs=1e-5)


def test_learning_from_a_text_with_a_pattern_lowers_the_loss():
    """The model's own weights stay as they are."""
    model, ids = make_model(), make_ids(4000)
    before = model.to_arrays()
    plain = evaluate(model.reader(threads=2), ids[1000:], context=ids[:1000])
    adapted = evaluate_adapting(model, ids[1000:], context=ids[:1000], train=ids[:1000], rate=0.05)
    assert adapted.nats_per_char < plain.nats_per_char - 0.3
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())


def test_a_window_is_scored_before_it_is_learned_from():
    """The first window has the plain score, and later text does not change the score of earlier text."""
    model, ids = make_model(), make_ids(1000)
    context, text = ids[:500], ids[500:]
    first = evaluate_adapting(model, text[:SEQ_LEN], context=context, train=context, rate=0.1)
    plain = evaluate(model.reader(threads=2), text[:SEQ_LEN], context=context)
    assert first.nats == pytest.approx(plain.nats, abs=1e-4)
    other = text.copy()
    other[5 * SEQ_LEN :] = 0
    scores = [
        evaluate_adapting(model, part[: 5 * SEQ_LEN], context=context, train=context, rate=0.01).nats
        for part in (text, other)
    ]
    assert scores[0] == scores[1]


def test_decay_pulls_the_weights_back_to_the_trained_ones(monkeypatch):
    """With a decay of one, each step returns all the way, which gives the plain score."""
    model, ids = make_model(), make_ids(1000)
    plain = evaluate(model.reader(threads=2), ids[500:], context=ids[:500]).nats
    monkeypatch.setattr(adaptation, "DECAY", 1.0)
    adapted = evaluate_adapting(model, ids[500:], context=ids[:500], train=ids[:500], rate=1e-9).nats
    assert adapted == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("num_train", [2, 3, 40, 200])
def test_a_short_training_text_is_enough(num_train):
    """Gradients are measured on what there is."""
    model, ids = make_model(), make_ids(300)
    found = evaluate_adapting(model, ids[200:], context=ids[:200], train=ids[:num_train])
    assert math.isfinite(found.nats)
    assert found.num_chars == 100


def test_the_state_is_reset_between_documents():
    """As in the plain score."""
    model, ids = make_model(reset_id=5), make_ids(800)
    end = np.array([5], np.uint8)
    adapted = evaluate_adapting(model, ids, context=end, train=ids, rate=0.0)
    assert adapted.nats == pytest.approx(evaluate(model.reader(threads=2), ids, context=end).nats, rel=1e-5)


def test_too_large_a_rate_is_an_error_that_names_the_option():
    """The score would not be a number."""
    model, ids = make_model(), make_ids(1500)
    with pytest.raises(DivergenceError, match="adapt-rate"):
        evaluate_adapting(model, ids[500:], context=ids[:500], train=ids[:500], rate=1e30)
