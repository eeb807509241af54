"""Recommendations: a valid choice of network, settings and budget for any text."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import CELLS, MIN_CHARS, ModelConfig, TrainConfig
from charrnn.training.recipe import default_budget, estimate_memory, recommend

SIZES = sorted(
    {18, 19, *(int(10 ** (power / 4)) for power in range(6, 37)), *(n + d for n in (32, 256, 512) for d in (-1, 0))}
)
MACHINE = {"device": "cpu", "threads": 2, "precision": "float32"}


@pytest.mark.parametrize("vocab_size", [1, 2, 65, 256, 1000, 1001, 5000, 65536, 100_000])
def test_every_text_has_a_valid_recommendation(vocab_size):
    """From the shortest possible training text to a billion characters, for any time and device."""
    assert min(SIZES) == 18 == int(0.9 * MIN_CHARS)
    assert max(SIZES) == 10**9
    budgets = [(0.01, "cpu", 1), (5.0, "cpu", 2), (1.7e5, "cpu", 64), (5.0, "cuda", 2)]
    for num_chars, (minutes, device, threads) in itertools.product(SIZES, budgets):
        machine = {"device": device, "threads": threads, "precision": "float32"}
        model, training, _ = recommend(num_chars, vocab_size, {"minutes": minutes}, **machine)
        assert model.vocab_size == vocab_size
        assert model.cell in CELLS
        assert 1 <= training.batch_size <= num_chars
        assert 1 <= training.seq_len <= num_chars
        assert training.batch_size * training.seq_len <= max(num_chars, 32)
        assert training.steps is None


@given(
    num_chars=st.integers(18, 10**9),
    vocab_size=st.integers(1, 100_000),
    minutes=st.floats(0.01, 1e6),
    device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
    threads=st.integers(1, 1024),
)
def test_a_recommendation_depends_only_on_its_arguments(num_chars, vocab_size, minutes, device, threads):
    """A run without options can be resumed only because the second recommendation equals the first."""
    machine = {"device": device, "threads": threads, "precision": "float32"}
    first = recommend(num_chars, vocab_size, {"minutes": minutes}, **machine)
    assert first == recommend(num_chars, vocab_size, {"minutes": minutes}, **machine)
    assert first.training.batch_size <= num_chars
    settings = {**dataclasses.asdict(first.model), **dataclasses.asdict(first.training)}
    assert first.reasons.keys() <= settings.keys()


def test_longer_texts_get_no_smaller_networks():
    """More text supports more parameters, needs less dropout and fills larger steps."""
    found = [recommend(size, 65, {"minutes": 5.0}, **MACHINE) for size in SIZES]
    for (smaller, before, _), (larger, after, _) in itertools.pairwise(found):
        assert larger.hidden_size * larger.num_layers >= smaller.hidden_size * smaller.num_layers
        assert after.dropout <= before.dropout
        assert after.batch_size * after.seq_len >= before.batch_size * before.seq_len


@given(num_chars=st.integers(18, 499_999), batch_size=st.integers(1, 64), seq_len=st.integers(1, 100))
def test_a_short_text_gets_thirty_to_fifty_passes(num_chars, batch_size, seq_len):
    """The smallest number of steps that makes fifty passes, or fewer passes of 15 million characters together."""
    minutes, steps = default_budget(num_chars, batch_size * seq_len)
    assert minutes is None
    assert steps * batch_size * seq_len >= min(50 * num_chars, 15_000_000) > (steps - 1) * batch_size * seq_len


@pytest.mark.parametrize("num_chars", [500_000, 1_003_854, 10**9, 10**15])
def test_a_long_text_gets_five_minutes(num_chars):
    """Unless the user asks for more."""
    assert default_budget(num_chars, 64 * 64) == (5.0, None)


@pytest.mark.parametrize("num_chars", [1000, 400_000, 2_000_000])
def test_without_a_budget_the_default_one_is_used(num_chars):
    """Whether it is a number of passes or of minutes."""
    model, training, reasons = recommend(num_chars, 65, {}, **MACHINE)
    minutes, steps = default_budget(num_chars, training.batch_size * training.seq_len)
    expected = recommend(num_chars, 65, {"minutes": minutes, "steps": steps}, **MACHINE)
    assert (model, dataclasses.replace(training, steps=steps), reasons) == expected


def test_regularisation_grows_with_the_number_of_passes():
    """More steps or more time over the same text give more dropout; the reason names the number of passes."""
    by_steps = [recommend(100_000, 65, {"steps": n}, **MACHINE) for n in (49, 490, 4900)]
    by_time = [recommend(100_000, 65, {"minutes": n}, **MACHINE) for n in (0.03, 0.3, 3.0)]
    for few, more, many in (by_steps, by_time):
        assert few.training.dropout <= more.training.dropout <= many.training.dropout
        assert few.training.weight_drop < many.training.weight_drop
    for passes, choice in zip((1, 10, 100), by_steps, strict=True):
        assert f"about {passes} times" in choice.reasons["dropout"]


def test_documents_that_are_not_read_twice_are_learned_without_dropout():
    """They were shuffled, so the held-out ones do not differ from the rest, as the end of a text does."""
    for documents, steps, dropout in ((True, 1000, 0.0), (True, 20_000, 0.05), (False, 1000, 0.05)):
        _, training, _ = recommend(20_000_000, 65, {"steps": steps}, **MACHINE, documents=documents)
        assert (training.dropout, training.weight_drop) == (dropout, dropout)


def test_an_lstm_learns_all_but_short_texts():
    """Those and all texts on a GPU get a GRU."""
    cells = [
        recommend(size, 65, {"minutes": 1.0}, **MACHINE | {"device": device}).model.cell
        for size, device in ((10**6, "cpu"), (20_000, "cpu"), (19_999, "cpu"), (10**6, "cuda"))
    ]
    assert cells == ["lstm", "lstm", "gru", "gru"]


def test_a_long_budget_gets_a_larger_network():
    """With a lower learning rate and more dropout, up to a largest size; a short text's network does not grow."""
    few, more, many, endless = (
        recommend(3_000_000, 65, {"minutes": n}, **MACHINE | {"precision": "bfloat16"}) for n in (1, 30, 60, 10_000)
    )
    assert few.model.hidden_size < more.model.hidden_size < many.model.hidden_size <= endless.model.hidden_size == 1024
    assert few.training.learning_rate > more.training.learning_rate > many.training.learning_rate
    assert few.training.dropout < more.training.dropout < many.training.dropout
    sizes = {recommend(400_000, 65, {"minutes": n}, **MACHINE).model.hidden_size for n in (1, 60)}
    assert sizes == {448}


def test_dropout_and_rate_follow_a_size_that_the_user_named():
    """A larger network overfits sooner, and needs a lower rate."""
    usual, large = (
        recommend(1_000_000, 65, {"steps": 10_000, **given}, **MACHINE).training
        for given in ({}, {"hidden_size": 1024})
    )
    assert large.dropout > usual.dropout
    assert large.learning_rate < usual.learning_rate


@pytest.mark.parametrize("num_chars", [100_000, 1_000_000])
def test_the_size_follows_a_cell_that_the_user_named(num_chars):
    """An LSTM has as many recurrent weights as a GRU, roughly."""
    sizes = {
        cell: recommend(num_chars, 65, {"minutes": 1.0, "cell": cell}, **MACHINE).model.hidden_size for cell in CELLS
    }
    assert sizes == {"gru": 512, "lstm": 448, "rnn": 512}


def test_estimated_memory_grows_with_every_size():
    """It includes the weights."""
    model = ModelConfig(cell="gru", vocab_size=5, embedding_dim=3, hidden_size=4, num_layers=2)
    training = TrainConfig(batch_size=4, seq_len=8, dropout=0.5, learning_rate=1e-3)
    least = estimate_memory(model, training)
    assert least > 4 * model.num_parameters
    for name in ("vocab_size", "embedding_dim", "hidden_size", "num_layers"):
        assert estimate_memory(dataclasses.replace(model, **{name: 50}), training) > least
    for name in ("batch_size", "seq_len"):
        assert estimate_memory(model, dataclasses.replace(training, **{name: 50})) > least
