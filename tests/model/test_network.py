"""The network as a whole: values, loading into stock modules, initial weights."""

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.model.file import load_model, save_model
from charrnn.model.layers import LAYERS
from charrnn.model.network import CharRNN
from tests import reference
from tests.conftest import make_model_file


def config_of(cell, num_layers=2, vocab_size=11):
    """Small odd sizes."""
    return ModelConfig(cell=cell, vocab_size=vocab_size, embedding_dim=5, hidden_size=7, num_layers=num_layers)


def predict(model, kernels, x, state):
    """Logits and the state after x, by our kernels or PyTorch's."""
    if kernels == "PyTorch's":
        return model(x, state)
    reader = model.reader(threads=1)
    h, after = reader.features(x.numpy(), tuple(part.numpy() for part in state))
    return torch.from_numpy(reader.logits(h)), tuple(map(torch.from_numpy, after))


KERNELS = pytest.mark.parametrize("kernels", ["ours", "PyTorch's"])


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_logits_follow_the_equations(cell, num_layers, kernels):
    """Forward over a window equals the naive network, character by character."""
    file = make_model_file(config_of(cell, num_layers))
    model, naive = CharRNN.from_arrays(file.config, file.tensors), reference.Network(cell, file.tensors)
    x = torch.randint(0, 11, (6, 2), generator=torch.Generator().manual_seed(0))
    logits, after = predict(model, kernels, x, model.initial_state(2))
    assert logits.shape == (6, 2, 11)
    for lane in range(2):
        states = naive.zeros()
        for step in range(6):
            expected, states = naive.step(int(x[step, lane]), states)
            np.testing.assert_allclose(logits[step, lane].detach(), expected, rtol=1e-4, atol=1e-5)
        for layer in range(num_layers):
            for part, want in zip(after, states[layer], strict=True):
                np.testing.assert_allclose(part[layer, lane].detach(), want, rtol=1e-4, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_a_window_equals_two_parts_of_it(cell, kernels):
    """The state carries everything that matters from one window to the next."""
    file = make_model_file(config_of(cell))
    model = CharRNN.from_arrays(file.config, file.tensors)
    x = torch.randint(0, 11, (8, 3))
    whole, end = predict(model, kernels, x, model.initial_state(3))
    first, state = predict(model, kernels, x[:5], model.initial_state(3))
    second, after = predict(model, kernels, x[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-5, atol=1e-6)
    for found, expected in zip(after, end, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_tensors_of_a_file_load_straight_into_torch(cell, tmp_path):
    """A reader that has only PyTorch gets the same logits from the file's tensors."""
    from safetensors.torch import load_file

    file = make_model_file(config_of(cell))
    save_model(tmp_path / "m.safetensors", file)
    tensors = load_file(tmp_path / "m.safetensors")
    x = torch.randint(0, 11, (6, 2))
    h = torch.nn.functional.embedding(x, tensors["embedding.weight"])
    for layer in range(2):
        stock = LAYERS[cell](h.shape[-1], 7)
        prefix = f"layers.{layer}."
        stock.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        h, _ = stock(h)
    expected = h @ tensors["head.weight"].T + tensors["head.bias"]
    loaded = load_model(tmp_path / "m.safetensors")
    model = CharRNN.from_arrays(loaded.config, loaded.tensors)
    found, _ = predict(model, "ours", x, model.initial_state(2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_are_those_the_config_implies(cell):
    """config.tensor_shapes, which files are checked against, equals the network's own list."""
    config = config_of(cell)
    found = {name: tuple(p.shape) for name, p in CharRNN(config).named_parameters()}
    assert list(found.items()) == list(config.tensor_shapes().items())


def test_weights_depend_on_the_seed_alone():
    """The global generator is neither read nor advanced."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (CharRNN(config_of("gru"), seed=seed).to_arrays() for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert all((first[name] == second[name]).all() for name in first)
    assert (first["head.weight"] != other["head.weight"]).all()
    assert np.abs(first["layers.0.weight_hh_l0"]).max() <= 7**-0.5


def test_masks_scale_each_layers_output():
    """With a mask of zeros the output is zero; a mask of ones changes nothing."""
    file = make_model_file(config_of("gru"))
    model = CharRNN.from_arrays(file.config, file.tensors)
    x = torch.randint(0, 11, (4, 2))

    def features(masks):
        return model.features(x, model.initial_state(2), masks)[0]

    assert (features([torch.ones(2, 7)] * 2) == features(None)).all()
    assert (features([torch.ones(2, 7), torch.zeros(2, 7)]) == 0).all()
