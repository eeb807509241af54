"""How far back a model looks: the cost of forgetting, against reading each place by itself, and on planted texts."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn
from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scoring import predict_forgetting
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.memory import (
    MAX_AGE,
    MAX_PLACES,
    MIN_PLACES,
    NUM_PLACES,
    choose_places,
    falling,
    first_below,
    group_ages,
    measure_memory,
)
from charrnn.inspection.sentences import describe_memory
from charrnn.kernels.ngrams import Mixture
from charrnn.model.file import ModelFile, load_model
from charrnn.model.ngrams import count_ngrams, make_trie
from tests.conftest import make_model_file, make_reader, predict_text

DELAY = 50  # characters after which the planted text repeats


def random_ids(count, vocab_size, seed=0):
    """Random ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.uint8)


def make_mixture(ids, vocab_size, order=3):
    """n-grams of a text, with equal weights."""
    trie = make_trie(count_ngrams(ids, order, vocab_size=vocab_size), vocab_size=vocab_size)
    return Mixture(trie, np.full((order, 2), 0.5))


def measure(model, ids, *, file, mixture=None, reset_id=None, num_before=1):
    """The memory of a network on ids after the first num_before."""
    text = EvalText("a", "a", ids[num_before:], ids[:num_before], reset_id=reset_id)
    full = predict_text(model, text.ids, context=text.context, mixture=mixture)
    if mixture is not None:
        file = with_mixture(file, mixture)
    return measure_memory(model, file, text, full)


def with_mixture(file, mixture):
    """A model file with n-grams that were counted by the test."""

    class Mixed(ModelFile):
        mixture = None

    mixed = Mixed(**{field.name: getattr(file, field.name) for field in dataclasses.fields(ModelFile)})
    object.__setattr__(mixed, "mixture", mixture)
    return mixed


def make_delay_line():
    """An RNN that repeats what it read 50 characters before: two units for each of the last 50 characters.

    A unit is 1 or -1, as a bit of its character is, and 0 for one that was forgotten.
    """
    config = ModelConfig(cell="rnn", vocab_size=4, embedding_dim=2, hidden_size=2 * DELAY, num_layers=1)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    bits = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    arrays["embedding.weight"][:] = 5 * bits
    arrays["layers.0.weight_ih_l0"][:2] = np.eye(2)
    arrays["layers.0.weight_hh_l0"][2:, :-2] = 5 * np.eye(2 * DELAY - 2)
    arrays["head.weight"][:, -2:] = 10 * bits
    file = ModelFile(config, Vocab("0123"), arrays, {}, {})
    return make_reader(config, arrays), file


@pytest.mark.parametrize("reset_id", [None, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_forgetting_is_the_score_after_one_character(cell, reset_id):
    """Of network and mixture: the same as scoring each place as a text of its own."""
    config = ModelConfig(cell=cell, vocab_size=7, embedding_dim=4, hidden_size=6, num_layers=2, reset_id=reset_id)
    model = make_reader(config, make_model_file(config, scale=3.0).tensors)
    ids = random_ids(400, 7)
    mixture = make_mixture(ids, 7)
    starts = np.array([1, 7, 100, 101, 368])
    found = predict_forgetting(model, ids, starts=starts, length=32, mixture=mixture)
    for row, start in enumerate(starts.tolist()):
        alone = predict_text(model, ids[start : start + 32], context=ids[start - 1 : start], mixture=mixture)
        np.testing.assert_array_equal(found.ids[row], alone.ids)
        np.testing.assert_allclose(found.nats[row], alone.nats, atol=1e-5)
        np.testing.assert_allclose(found.experts[row], alone.experts, atol=1e-5)


def test_a_network_without_state_forgets_nothing():
    """Its excess is exactly 0, so the paired estimate has no bias."""
    config = ModelConfig(cell="rnn", vocab_size=9, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config, scale=2.0)
    for name, array in file.tensors.items():
        if "weight_hh" in name:
            array[:] = 0.0
    ids = random_ids(3000, 9)
    found = measure(make_reader(config, file.tensors), ids, file=file)
    assert set(found.network.bits) == set(found.network.errors) == {0.0}
    assert (found.network.num_used, found.network.num_most, found.mixture) == (1, 1, None)
    assert describe_memory(found, "character") == "The network uses only the last character."


def test_a_planted_dependency_is_found_where_it_is():
    """The network that repeats what was 50 characters before needs exactly 50."""
    model, file = make_delay_line()
    ids = np.tile(random_ids(DELAY, 4), 80)
    found = measure(model, ids, file=file)
    ages, cost = np.array(found.ages), np.array(found.network.bits)
    assert (cost[ages < DELAY - 2] > 1.9).all()
    assert (np.abs(cost[ages > DELAY + 3]) < 0.1).all()
    assert (found.network.num_used, found.network.num_most) == (DELAY, DELAY)
    sentence = "The network uses about 50 characters; the last 50 give 90% of the gain."
    assert describe_memory(found, "character") == sentence


def test_two_grams_need_one_character():
    """With a network that knows nothing, a mixture with n-grams of up to two characters is flat."""
    config = ModelConfig(cell="rnn", vocab_size=4, embedding_dim=2, hidden_size=3, num_layers=1)
    file = make_model_file(config, scale=0.0)
    ids = np.tile(random_ids(DELAY, 4), 40)
    found = measure(
        make_reader(config, file.tensors), ids, file=file, mixture=make_mixture(ids, 4, order=2), num_before=5
    )
    assert np.abs(found.mixture.bits).max() < 1e-6
    assert found.mixture.num_used == 1


@pytest.mark.slow
def test_a_network_learns_a_planted_dependency(tmp_path, monkeypatch):
    """A digit comes again exactly 20 characters later: a GRU looks back so far and no farther, a 2-gram doesn't.

    A minute of training is too short for 50 characters.
    """
    monkeypatch.chdir(tmp_path)
    filler = "abcdefghijklmnopqrs"
    distance, period = len(filler) + 1, len(filler) + 2
    digits = np.random.default_rng(0).integers(0, 10, 6000)
    text = "".join(f"{digit}{filler}{digit}" for digit in digits)
    Path("planted.txt").write_text(text)
    settings = {"hidden_size": 128, "num_layers": 1, "embedding_dim": 32, "batch_size": 8, "seq_len": 3 * period}
    rates = {"learning_rate": 0.01, "dropout": 0.0, "weight_drop": 0.0, "weight_decay": 0.0}
    charrnn.train("planted.txt", steps=3000, seed=1, threads=1, precision="float32", mix=False, **settings, **rates)
    file = load_model(Path("checkpoints/planted/model.safetensors"))
    ids = file.vocab.encode(text[:40_000])
    found = measure(make_reader(file.config, file.tensors), ids, file=file)
    ages, cost = np.array(found.ages), np.array(found.network.bits)
    lost = math.log2(10) / period  # if the second digit is as hard as the first
    assert (cost[ages < distance - 2] > 0.6 * lost).all()
    assert (cost[ages > distance + 3] < 0.15 * lost).all()
    unlearnt = make_model_file(file.config, scale=0.0)
    network = make_reader(file.config, unlearnt.tensors)
    mixture = make_mixture(ids, len(file.vocab), order=2)
    flat = measure(network, ids, file=unlearnt, mixture=mixture, num_before=5).mixture
    assert np.abs(flat.bits).max() < 1e-6


def test_documents_are_compared_inside():
    """After a document's end nothing of what was forgotten counts, so ages end where documents do."""
    config = ModelConfig(cell="gru", vocab_size=5, embedding_dim=4, hidden_size=8, num_layers=1, reset_id=4)
    file = make_model_file(config, scale=4.0)
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 4, rng.integers(3, 9)), 4) for _ in range(400)]
    ids = np.concatenate([[4], *documents]).astype(np.uint8)
    found = measure(make_reader(config, file.tensors), ids, file=file, reset_id=4)
    assert 3 <= found.max_age <= 8
    assert found.network.bits[0] != 0.0
    starts, length = choose_places(ids[1:].astype(np.int64), 1, 4)
    assert len(starts) > NUM_PLACES
    assert length == 9
    before = ids[1:][starts - 1]
    assert (before != 4).all()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 89, 1000, 5000, 200_000])
@pytest.mark.parametrize("num_before", [1, 2000])
def test_places_are_in_the_text_and_have_something_to_forget(count, num_before):
    """A short text has fewer and shorter ones."""
    starts, length = choose_places(np.zeros(count, np.int64), num_before, None)
    assert len(starts) <= MAX_PLACES
    if count >= 5000:
        assert (len(starts), length) == (NUM_PLACES, MAX_AGE)
    if len(starts):
        assert starts.min() >= 1
        assert starts.max() + length <= count
        assert starts.min() + num_before > length
        assert (np.diff(starts) > 0).all()


def test_a_text_that_is_too_short_has_no_memory():
    """It needs enough places."""
    model, file = make_delay_line()
    assert measure(model, random_ids(MIN_PLACES, 4), file=file) is None
    assert measure(model, random_ids(2, 4), file=file) is None


def test_groups_cover_all_ages_once():
    """Single ages first, then growing groups."""
    groups = group_ages(1024)
    assert [age for start, stop in groups for age in range(start, stop)] == list(range(1024))
    assert groups[:3] == [(0, 1), (1, 2), (2, 3)]
    sizes = [stop - start for start, stop in groups]
    assert sizes[:-1] == sorted(sizes[:-1])
    assert len(groups) < 50


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_falling_curve_is_the_nearest(points):
    """By the min-max formula of isotonic regression."""
    values, weights = (np.array(column) for column in zip(*points, strict=True))

    def mean(first, last):
        return np.average(values[first : last + 1], weights=weights[first : last + 1])

    count = len(values)
    expected = [min(max(mean(a, b) for b in range(i, count)) for a in range(i + 1)) for i in range(count)]
    np.testing.assert_allclose(falling(values, weights), expected, atol=1e-9)


def test_noise_does_not_end_a_curve_early():
    """One low value between high ones is no end."""
    curve = falling(np.array([2.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]), np.ones(7, np.int64))
    assert first_below(curve, 0.1) == 6
    assert first_below(curve, 3.0) == 1
    assert first_below(np.array([2.0, 1.0]), 0.5) is None
