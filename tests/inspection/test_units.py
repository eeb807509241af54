"""Readable units: a planted one is found, and nothing constant is a number that is not one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scoring import WARM_UP, read_outputs
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.findings import ReadableUnit
from charrnn.inspection.units import MIN_READ, NUM_UNITS, choose_pairs, correlations, distinct, find_units
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from tests.conftest import make_model_file, make_reader, make_text

TEXT = make_text(3000).title()
VOCAB = Vocab.from_text(TEXT)


def make_network(cell="gru", num_layers=1, **changes):
    """A random network for the text, and its file."""
    config = ModelConfig(cell=cell, vocab_size=len(VOCAB), embedding_dim=6, hidden_size=12, num_layers=num_layers)
    file = make_model_file(config, chars=VOCAB.chars, **changes)
    return config, file


def find(config, file, text=TEXT):
    """The readable units on a text of which the first character is only fed."""
    ids = VOCAB.encode(text)
    network = make_reader(config, file.tensors)
    return find_units(network, file, EvalText("a", "a", ids[1:], ids[:1]), ids[1:].astype(np.int64))


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_are_those_of_reading_in_sequence(cell):
    """After each character, in lanes with a warm-up; of all units or of some."""
    config, file = make_network(cell, num_layers=2)
    network = make_reader(config, file.tensors)
    ids = np.tile(VOCAB.encode(TEXT), 2)[: 3 * WARM_UP + 17]
    found = read_outputs(network, ids[40:], context=ids[:40])
    with torch.no_grad():
        model = CharRNN.from_arrays(config, file.tensors)
        expected, _ = model.features(torch.from_numpy(ids.astype(np.int64))[:, None], model.initial_state(1))
    np.testing.assert_allclose(found, expected[40:, 0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(read_outputs(network, ids[40:], context=ids[:40], units=[5, 2]), found[:, [5, 2]])


def test_a_planted_unit_is_found():
    """One that is on at capitals and off elsewhere, among random ones."""
    config, file = make_network("rnn")
    file.tensors["embedding.weight"][:, 0] = [5.0 if char.isupper() else -5.0 for char in VOCAB.chars]
    file.tensors["layers.0.weight_ih_l0"][7] = [1, 0, 0, 0, 0, 0]
    file.tensors["layers.0.weight_hh_l0"][7] = 0.0
    for name in ("layers.0.bias_ih_l0", "layers.0.bias_hh_l0"):
        file.tensors[name][7] = 0.0
    found = find(config, file)
    assert (found[0].index, found[0].feature) == (7, "capitals")
    assert found[0].correlation == pytest.approx(1.0, abs=1e-6)
    shown = "".join("+" if value > 0 else "-" for value in found[0].activations)
    assert shown == "".join("+" if char.isupper() else "-" for char in TEXT[1:])
    assert len(found) == NUM_UNITS
    assert len({one.index for one in found}) == len({one.feature for one in found}) == NUM_UNITS
    strengths = [abs(one.correlation) for one in found]
    assert strengths == sorted(strengths, reverse=True)


def test_only_what_is_shown_is_read_again():
    """The units are the same, and their activations the first ones."""
    config, file = make_network()
    ids = VOCAB.encode(TEXT)
    text, network = EvalText("a", "a", ids[1:], ids[:1]), make_reader(config, file.tensors)
    whole = find_units(network, file, text, ids[1:].astype(np.int64))
    part = find_units(network, file, text, ids[1:].astype(np.int64), 40)
    for one, shown in zip(whole, part, strict=True):
        assert (one.index, one.feature, one.correlation) == (shown.index, shown.feature, shown.correlation)
        np.testing.assert_array_equal(one.activations[:40], shown.activations)


def test_units_that_never_move_are_left_out():
    """A network of zeros has no readable unit, and there is no warning about a division."""
    config, file = make_network()
    for array in file.tensors.values():
        array[:] = 0.0
    assert find(config, file) == ()


def test_a_short_text_has_no_readable_units():
    """A correlation on a few characters means nothing."""
    config, file = make_network()
    assert find(config, file, TEXT[:MIN_READ]) is None
    assert find(config, file, TEXT[: MIN_READ + 1]) is not None


def test_correlations_are_those_of_numpy():
    """And 0 for constants."""
    rng = np.random.default_rng(0)
    values, outputs = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    found = correlations(values, outputs)
    np.testing.assert_allclose(found, np.corrcoef(values.T, outputs.T)[:3, 3:], atol=1e-6)
    values[:, 1], outputs[:, 2] = 7.0, 0.1
    assert (correlations(values, outputs)[1] == 0.0).all()
    assert (correlations(values, outputs)[:, 2] == 0.0).all()


def test_each_feature_and_each_unit_is_chosen_once():
    """The strongest pair first, whatever its sign."""
    scores = np.array([[0.9, -0.95, 0.1], [0.8, 0.85, 0.0]])
    assert list(choose_pairs(scores, 8)) == [(0, 1), (1, 0)]
    assert list(choose_pairs(scores, 1)) == [(0, 1)]
    assert list(choose_pairs(np.zeros((2, 3)), 8)) == []


def test_equal_features_count_once():
    """The first of them stays."""
    rising, falling = np.arange(3.0), np.arange(3.0)[::-1]
    assert distinct({"a": rising, "b": falling, "c": rising.copy()}) == ["a", "b"]


def test_deviations_are_from_the_mean():
    """In standard deviations; equal activations, and none at all, have no deviation."""
    unit = ReadableUnit(0, "capitals", 0.5, np.array([1, 2, 3], np.float32))
    np.testing.assert_allclose(unit.deviations(), [-np.sqrt(1.5), 0, np.sqrt(1.5)])
    for same in (np.full(4, 0.1, np.float32), np.empty(0, np.float32)):
        assert replace(unit, activations=same).deviations().tolist() == [0.0] * len(same)


def test_the_file_is_not_changed():
    """Looking changes nothing."""
    config, file = make_network()
    before = {name: array.copy() for name, array in file.tensors.items()}
    find(config, file)
    assert isinstance(file, ModelFile)
    for name, array in file.tensors.items():
        np.testing.assert_array_equal(array, before[name])
