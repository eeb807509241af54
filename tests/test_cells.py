"""The recurrent layers against naive loops from the equations, and against torch.nn."""

import numpy as np
import pytest
import torch

from charrnn.cells import LAYERS, make_layer, run_layer, select_device
from charrnn.config import CELLS
from charrnn.errors import ResourceError, UsageError
from tests import reference
from tests.conftest import relative_error

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def random_layer(cell, inputs, hidden):
    """A layer whose used parameters are all far from zero."""
    layer = make_layer(cell, inputs, hidden).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias_hh" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        if cell == "gru":
            layer.bias_hh_l0[2 * hidden :] = torch.randn(hidden)
    return layer


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "lanes", "inputs", "hidden"), [(1, 1, 1, 1), (5, 3, 7, 4), (9, 2, 3, 33)])
def test_outputs_and_states_follow_the_equations(cell, steps, lanes, inputs, hidden):
    """Each lane equals a loop over its steps, carried state in and out."""
    torch.manual_seed(steps)
    layer = random_layer(cell, inputs, hidden)
    x = torch.randn(steps, lanes, inputs, dtype=torch.float64)
    state = tuple(torch.randn(lanes, hidden, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    y, after = run_layer(layer, x, state)
    weights = [getattr(layer, name).detach().numpy() for name in NAMES]
    for lane in range(lanes):
        naive = tuple(part[lane].numpy() for part in state)
        for step in range(steps):
            naive = reference.CELLS[cell](x[step, lane].numpy(), naive, weights)
            np.testing.assert_allclose(y[step, lane].detach(), naive[0], rtol=1e-10, atol=1e-12)
        for found, expected in zip(after, naive, strict=True):
            np.testing.assert_allclose(found[lane].detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [1, 7, 33])
def test_gradients_follow_the_equations(cell, hidden):
    """Backpropagation equals differences of the naive loop along a random direction."""
    torch.manual_seed(hidden)
    layer = random_layer(cell, 3, hidden)
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    state = tuple(torch.randn(1, hidden, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    target = torch.randn(4, 1, hidden, dtype=torch.float64)
    weights = [getattr(layer, name).detach().numpy().copy() for name in NAMES]
    y, _ = run_layer(layer, x, state)
    gradients = torch.autograd.grad((y * target).sum(), [getattr(layer, name) for name in NAMES])

    def loss(moved):
        naive, total = tuple(part[0].numpy() for part in state), 0.0
        for step in range(4):
            naive = reference.CELLS[cell](x[step, 0].numpy(), naive, moved)
            total += float(naive[0] @ target[step, 0].numpy())
        return total

    rng = np.random.default_rng(hidden)
    for index, gradient in enumerate(gradients[:3]):
        direction, step = rng.standard_normal(weights[index].shape), 1e-6
        ahead, behind = (
            [w + sign * step * direction if i == index else w for i, w in enumerate(weights)] for sign in (1, -1)
        )
        slope = (loss(ahead) - loss(behind)) / (2 * step)
        assert float((gradient.numpy() * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_values_and_gradients_equal_those_of_torch(cell, num_layers):
    """A stack of our layers is torch.nn's own stack of the same parameters."""
    torch.manual_seed(num_layers)
    layers = [random_layer(cell, 5 if k == 0 else 6, 6) for k in range(num_layers)]
    stock = LAYERS[cell](5, 6, num_layers=num_layers).double()
    with torch.no_grad():
        for k, layer in enumerate(layers):
            for name in NAMES:
                getattr(stock, name.replace("_l0", f"_l{k}")).copy_(getattr(layer, name))
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    state = tuple(torch.randn(num_layers, 3, 6, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    y, finals = x, []
    for k, layer in enumerate(layers):
        y, after = run_layer(layer, y, tuple(part[k] for part in state))
        finals.append(after)
    expected, final = stock(x, state if cell == "lstm" else state[0])
    assert relative_error(y.detach(), expected.detach()) < 1e-12
    for part, want in zip(zip(*finals, strict=True), final if cell == "lstm" else (final,), strict=True):
        assert relative_error(torch.stack(part).detach(), want.detach()) < 1e-12
    y.square().sum().backward()
    expected.square().sum().backward()
    for k, layer in enumerate(layers):
        for name in NAMES[:3]:
            want = getattr(stock, name.replace("_l0", f"_l{k}")).grad
            assert relative_error(getattr(layer, name).grad, want) < 1e-12


@pytest.mark.parametrize("cell", CELLS)
def test_the_redundant_bias_gets_no_gradient(cell):
    """It starts at zero and stays there, so that one bias tells all."""
    layer = make_layer(cell, 3, 4)
    y, _ = run_layer(layer, torch.randn(2, 1, 3), tuple(torch.zeros(1, 4) for _ in range(reference.NUM_STATES[cell])))
    (gradient,) = torch.autograd.grad(y.sum(), [layer.bias_hh_l0])
    redundant = slice(0, 8) if cell == "gru" else slice(None)
    assert (gradient[redundant] == 0).all()
    assert (layer.bias_hh_l0[redundant] == 0).all()
    if cell == "gru":
        assert (gradient[8:] != 0).all()


def test_devices_are_named_or_refused():
    """A device that isn't there is told from a name that means nothing."""
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ResourceError, match="--device cpu"):
        select_device("cuda:99")
    for name in ("tpu", "cuda:x", ""):
        with pytest.raises(UsageError, match="--device"):
            select_device(name)
