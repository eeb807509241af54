"""Dynamic evaluation: without a rate it is the static one; with one, each window is scored before it is learnt."""

import math

import numpy as np
import pytest

from charrnn.config import CELLS, ModelConfig
from charrnn.errors import DivergenceError
from charrnn.evaluation.adaptation import SEQ_LEN, evaluate_adapting
from charrnn.evaluation.scoring import evaluate
from charrnn.model.network import CharRNN
from tests.conftest import make_model_file


def make_model(cell="gru", vocab_size=6, reset_id=None):
    """A small network that knows nothing of the texts here."""
    config = ModelConfig(
        cell=cell, vocab_size=vocab_size, embedding_dim=4, hidden_size=8, num_layers=2, reset_id=reset_id
    )
    return CharRNN.from_arrays(config, make_model_file(config).tensors)


def make_text(count, seed=0):
    """Ids of which each is most often the one before, plus one."""
    generator = np.random.default_rng(seed)
    return (np.arange(count) + (generator.random(count) < 0.1).cumsum()).astype(np.uint8) % 6


@pytest.mark.parametrize("cell", CELLS)
def test_a_rate_of_zero_is_the_static_score(cell):
    """Characters, context and rare ones alike."""
    model, ids = make_model(cell), make_text(3000)
    for rare in (None, 2):
        adapted = evaluate_adapting(model, ids[1200:], context=ids[:1200], train=ids[:1200], rare=rare, rate=0.0)
        static = evaluate(model, ids[1200:], context=ids[:1200], rare=rare)
        assert adapted.num_chars == static.num_chars
        assert adapted.nats_per_char == pytest.approx(static.nats_per_char, abs=1e-5)


def test_the_rate_lowers_the_loss_on_a_text_with_a_pattern():
    """Which the model learns as it reads; its own weights stay as they are."""
    model, ids = make_model(), make_text(4000)
    before = model.to_arrays()
    static = evaluate(model, ids[1000:], context=ids[:1000])
    adapted = evaluate_adapting(model, ids[1000:], context=ids[:1000], train=ids[:1000], rate=0.05)
    assert adapted.nats_per_char < static.nats_per_char - 0.3
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())


def test_nothing_is_learnt_from_a_window_before_it_is_scored():
    """The first costs what it costs without adapting, and what comes later doesn't change what came before."""
    model, ids = make_model(), make_text(1000)
    context, text = ids[:500], ids[500:]
    first = evaluate_adapting(model, text[:SEQ_LEN], context=context, train=context, rate=0.1)
    assert first.nats == pytest.approx(evaluate(model, text[:SEQ_LEN], context=context).nats, abs=1e-4)
    other = text.copy()
    other[5 * SEQ_LEN :] = 0
    scores = [
        evaluate_adapting(model, part[: 5 * SEQ_LEN], context=context, train=context, rate=0.01).nats
        for part in (text, other)
    ]
    assert scores[0] == scores[1]


def test_decay_holds_the_weights_near_the_trained_ones():
    """All the way back after each step is the static score again."""
    model, ids = make_model(), make_text(1000)
    static = evaluate(model, ids[500:], context=ids[:500]).nats
    held = evaluate_adapting(model, ids[500:], context=ids[:500], train=ids[:500], rate=1e-9, decay=1.0).nats
    assert held == pytest.approx(static, abs=1e-3)


@pytest.mark.parametrize("num_train", [2, 3, 40, 200])
def test_short_training_texts_are_enough(num_train):
    """Gradients are measured on what there is."""
    model, ids = make_model(), make_text(300)
    found = evaluate_adapting(model, ids[200:], context=ids[:200], train=ids[:num_train])
    assert math.isfinite(found.nats)
    assert found.num_chars == 100


def test_documents_begin_anew():
    """Where the model forgets, it does so here too."""
    model, ids = make_model(reset_id=5), make_text(1500)
    end = np.array([5], np.uint8)
    adapted = evaluate_adapting(model, ids, context=end, train=ids, rate=0.0)
    assert adapted.nats == pytest.approx(evaluate(model, ids, context=end).nats, rel=1e-5)


def test_too_large_a_rate_is_an_error_that_says_so():
    """Instead of a score that is no number."""
    model, ids = make_model(), make_text(3000)
    with pytest.raises(DivergenceError, match="adapt-rate"):
        evaluate_adapting(model, ids[500:], context=ids[:500], train=ids[:500], rate=1e30)
