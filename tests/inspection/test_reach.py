"""How far gradients reach back: against autograd, and on recurrences whose eigenvalue is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from charrnn.config import CELLS, ModelConfig
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.findings import Reach
from charrnn.inspection.reach import MIN_TARGETS, NUM_WARM_UP, fit_gain, gradient_norms, input_gradients, measure_reach
from charrnn.inspection.sentences import describe_reach
from charrnn.model.file import ModelFile
from charrnn.model.layers import run_stock_layer
from charrnn.model.network import CharRNN
from tests.conftest import make_model_file, make_reader


def random_ids(count, vocab_size=7, seed=0):
    """Random ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count)


def autograd_gradients(model, x, target, state):
    """The gradient at each input's embedding by PyTorch's layers."""
    resets = None if model.config.reset_id is None else x == model.config.reset_id
    inputs = model.embedding(x).detach().requires_grad_()
    h = inputs
    for index, layer in enumerate(model.layers):
        h, _ = run_stock_layer(layer, h, tuple(part[index] for part in state), resets=resets)
    nats = functional.cross_entropy(model.head(h[-1]), target, reduction="sum")
    return torch.autograd.grad(nats, inputs)[0]


@pytest.mark.parametrize("reset_id", [None, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_autograd(cell, num_layers, reset_id):
    """At each step of each lane, of every cell, across layers and resets."""
    config = ModelConfig(
        cell=cell, vocab_size=7, embedding_dim=5, hidden_size=6, num_layers=num_layers, reset_id=reset_id
    )
    model = CharRNN.from_arrays(config, make_model_file(config, scale=2.0).tensors)
    network, weight = model.reader(threads=1), model.layers[0].weight_ih_l0.detach().numpy()
    x, target = random_ids(36).reshape(12, 3), np.array([1, 0, 2])
    found = input_gradients(network, weight, x, target, network.initial_state(3))
    expected = autograd_gradients(model, torch.from_numpy(x), torch.from_numpy(target), model.initial_state(3))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6, rtol=1e-4)


def linear_model(eigenvalue, size=4) -> ModelFile:
    """An RNN in the linear range of tanh, whose recurrence multiplies the state by a number."""
    config = ModelConfig(cell="rnn", vocab_size=5, embedding_dim=size, hidden_size=size, num_layers=1)
    file = make_model_file(config)
    file.tensors["embedding.weight"][:] *= 1e-6
    for name, array in file.tensors.items():
        if "bias" in name:
            array[:] = 0.0
    file.tensors["layers.0.weight_hh_l0"][:] = eigenvalue * np.eye(size)
    return file


@pytest.mark.parametrize(
    ("eigenvalue", "sentence"),
    [
        (0.8, "The gradient vanishes: on average it halves every 3.1 characters (a factor of 0.800 each)."),
        (1.0, "The gradient holds: it changes by a factor of 1.000 per character."),
        (1.02, "The gradient explodes: on average it doubles every 35.0 characters (a factor of 1.020 each)."),
    ],
)
def test_a_linear_recurrence_has_the_power_of_its_eigenvalue(eigenvalue, sentence):
    """Step by step, and as the gain of the whole curve."""
    model, ids = linear_model(eigenvalue), random_ids(600, 5)
    text = EvalText("a", "a", ids[1:], ids[:1])
    found = measure_reach(model, text, ids[1:])
    assert len(found.median) == 256
    expected = eigenvalue ** np.arange(200)
    np.testing.assert_allclose(np.array(found.median)[:200] / found.median[0], expected, rtol=2e-3)
    assert found.gain == pytest.approx(eigenvalue, rel=1e-4)
    assert describe_reach(found, "character") == sentence
    assert (np.array(found.lower) <= found.median).all()
    assert (np.array(found.median) <= found.upper).all()


def test_the_half_life_follows_from_the_gain():
    """A gradient that does not shrink has none."""
    reach = Reach((1.0, 0.5), (1.0, 0.5), (1.0, 0.5), num_targets=64, gain=0.5)
    assert reach.half_life == pytest.approx(1.0)
    assert replace(reach, gain=1.01).half_life is None
    assert replace(reach, gain=0.0).half_life is None
    assert describe_reach(replace(reach, gain=0.0), "byte") == "The gradient vanishes within a byte."


def test_a_gradient_ends_where_its_document_begins():
    """Only targets whose document reaches as far back count."""
    config = ModelConfig(cell="gru", vocab_size=5, embedding_dim=4, hidden_size=8, num_layers=1, reset_id=4)
    model = make_model_file(config)
    ids = np.tile([0, 1, 2, 3, 0, 1, 4], 300)
    found = measure_reach(model, EvalText("a", "a", ids, np.array([4]), reset_id=4), ids)
    assert 3 <= len(found.median) <= 6
    assert min(found.lower) > 0.0


def test_a_short_text_has_no_reach():
    """It needs enough targets; a few more characters give a short one."""
    model = linear_model(0.9)
    for count in (0, 1, MIN_TARGETS):
        ids = random_ids(count, 5)
        assert measure_reach(model, EvalText("a", "a", ids, ids[:1]), ids) is None
    ids = random_ids(100, 5)
    assert len(measure_reach(model, EvalText("a", "a", ids, ids[:1]), ids).median) == 50 - NUM_WARM_UP


def test_the_steps_farthest_back_are_not_those_from_a_state_of_zeros():
    """Where a network saturates in any text, the first steps from zeros let far more through."""
    model = linear_model(1.5)
    model.tensors["embedding.weight"][:] *= 1e5
    ids = random_ids(90, 5)
    found = measure_reach(model, EvalText("a", "a", ids[1:], ids[:1]), ids[1:])
    assert len(found.median) == 44 - NUM_WARM_UP
    assert (np.diff(found.median[8:]) < 0).all()


def test_the_gain_leaves_out_what_float32_cannot_hold():
    """A gradient that is exactly 0 has no logarithm."""
    assert fit_gain(np.array([1.0, 0.5, 0.25, 0.0, 0.0])) == pytest.approx(0.5)
    assert fit_gain(np.array([1.0, 0.0])) == 0.0
    assert fit_gain(np.zeros(5)) == 0.0


def test_norms_are_per_step_and_lane():
    """(T, B) for T + 1 rows of ids."""
    file = linear_model(0.5)
    network, weight = make_reader(file.config, file.tensors), file.tensors["layers.0.weight_ih_l0"]
    norms = gradient_norms(network, weight, random_ids(12, 5).reshape(4, 3))
    assert norms.shape == (3, 3)
    assert (norms > 0).all()
