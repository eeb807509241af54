"""One lane on our kernels reads and learns as PyTorch's autograd does, whatever the number of threads."""

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.model.learner import AutogradLearner, KernelLearner, LearningRule
from charrnn.model.network import CharRNN
from tests.conftest import make_model_file

WINDOWS = (7, 7, 1, 5)


def make_network(cell, size, *, dtype=torch.float32):
    """A network of two layers with random weights and biases, the redundant ones aside."""
    config = ModelConfig(cell=cell, vocab_size=6, embedding_dim=5, hidden_size=size, num_layers=2, reset_id=5)
    return CharRNN.from_arrays(config, make_model_file(config).tensors).to(dtype)


def run(learner_type, model, *, decay=0.1):
    """Read and learn from a few windows, with resets and unscored targets; return all features."""
    generator = np.random.default_rng(0)
    dtype = model.head.weight.dtype
    steps = [torch.from_numpy(generator.random(p.shape)).to(dtype) * 0.1 for p in model.parameters()]
    state = tuple(generator.standard_normal(part.shape).astype(np.float32) for part in model.initial_state(1))
    features = []
    with learner_type(model, state, LearningRule(model, steps, decay)) as learner:
        for length in WINDOWS:
            ids, targets = generator.integers(0, 6, (2, length))
            targets[generator.random(length) < 0.2] = -100
            features.append(learner.read(ids).astype(np.float64))
            if (targets >= 0).any():
                learner.learn(targets, int((targets >= 0).sum()))
    return np.concatenate(features)


@pytest.mark.parametrize("size", [1, 11, 16])
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_compute_what_autograd_does_in_float64(cell, size):
    """Outputs of all windows, and the weights after them."""
    model, exact = make_network(cell, size), make_network(cell, size, dtype=torch.float64)
    before = model.to_arrays()
    assert run(KernelLearner, model) == pytest.approx(run(AutogradLearner, exact), abs=2e-5)
    for name, expected in exact.to_arrays().items():
        assert model.to_arrays()[name] == pytest.approx(expected, abs=2e-5), name
        if name.endswith("weight_hh_l0"):
            assert np.abs(model.to_arrays()[name] - before[name]).max() > 2e-5


@pytest.mark.parametrize("cell", CELLS)
def test_two_threads_compute_the_same_bits_as_one(cell):
    """No score depends on the number of threads."""
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            model = make_network(cell, 37)
            found.append((run(KernelLearner, model), model.to_arrays()))
    finally:
        torch.set_num_threads(threads)
    (one, one_weights), (two, two_weights) = found
    assert (one == two).all()
    assert all((one_weights[name] == array).all() for name, array in two_weights.items())
