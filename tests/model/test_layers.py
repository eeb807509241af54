"""The recurrent layers: PyTorch's own against naive loops from the equations, our kernels against PyTorch's own."""

import itertools

import numpy as np
import pytest
import torch

from charrnn.config import CELLS
from charrnn.model.layers import LAYERS, array_of, make_layer, parameter_gradients, run_stock_layer
from charrnn.model.packing import PARAMETERS, pack_layer
from charrnn.model.windows import Buffers, backward_window, forward_window
from charrnn.numerics.processor import has_fast_bfloat16
from tests import reference
from tests.conftest import relative_error

PRECISIONS = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not has_fast_bfloat16(), reason="no AVX512-BF16 here")),
]


def random_layer(cell, inputs, hidden, *, scale=0.5, dtype=torch.float64):
    """A layer whose used parameters are all far from zero."""
    layer = make_layer(cell, inputs, hidden).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias_hh" not in name:
                parameter.copy_(torch.randn_like(parameter) * scale)
        if cell == "gru":
            layer.bias_hh_l0[2 * hidden :] = torch.randn(hidden)
    return layer


def tensor_of(array):
    """View an array as a tensor; uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def pack(cell, layer, precision="float32", *, embedding=None, out=None):
    """A layer's weights, packed for products of a precision."""
    weight_ih, weight_hh, *biases = (layer.get_parameter(name).detach() for name in PARAMETERS)
    stored_ih, stored_hh = (array_of(weight.to(getattr(torch, precision))) for weight in (weight_ih, weight_hh))
    first = {} if embedding is None else {"embedding": embedding.numpy()}
    inputs = stored_ih if embedding is None else array_of(weight_ih)
    return pack_layer(cell, inputs, stored_hh, tuple(map(array_of, biases)), out=out, **first)


def run(packed, x, state):
    """Outputs and the state after x, by our kernels."""
    after = [part.numpy().copy() for part in state]
    resets = np.zeros(x.shape[:2], np.bool_)
    y, _ = forward_window(packed, x.numpy(), resets, (after[0], after[-1]), None, Buffers(), needs_backward=False)
    return torch.from_numpy(y), tuple(map(torch.from_numpy, after))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "lanes", "inputs", "hidden"), [(1, 1, 1, 1), (5, 3, 7, 4), (9, 2, 3, 33)])
def test_outputs_and_states_follow_the_equations(cell, steps, lanes, inputs, hidden):
    """Each lane equals a loop over its steps, with the carried state in and out."""
    torch.manual_seed(steps)
    layer = random_layer(cell, inputs, hidden)
    x = torch.randn(steps, lanes, inputs, dtype=torch.float64)
    state = tuple(torch.randn(lanes, hidden, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    y, after = run_stock_layer(layer, x, state)
    weights = [getattr(layer, name).detach().numpy() for name in PARAMETERS]
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
    weights = [getattr(layer, name).detach().numpy().copy() for name in PARAMETERS]
    y, _ = run_stock_layer(layer, x, state)
    gradients = torch.autograd.grad((y * target).sum(), [getattr(layer, name) for name in PARAMETERS])

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
def test_a_stack_of_layers_equals_that_of_torch(cell, num_layers):
    """Values and gradients are those of torch.nn's own stack with the same parameters."""
    torch.manual_seed(num_layers)
    layers = [random_layer(cell, 5 if k == 0 else 6, 6) for k in range(num_layers)]
    stock = LAYERS[cell](5, 6, num_layers=num_layers).double()
    with torch.no_grad():
        for k, layer in enumerate(layers):
            for name in PARAMETERS:
                getattr(stock, name.replace("_l0", f"_l{k}")).copy_(getattr(layer, name))
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    state = tuple(torch.randn(num_layers, 3, 6, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    y, finals = x, []
    for k, layer in enumerate(layers):
        y, after = run_stock_layer(layer, y, tuple(part[k] for part in state))
        finals.append(after)
    expected, final = stock(x, state if cell == "lstm" else state[0])
    assert relative_error(y.detach(), expected.detach()) < 1e-12
    for part, want in zip(zip(*finals, strict=True), final if cell == "lstm" else (final,), strict=True):
        assert relative_error(torch.stack(part).detach(), want.detach()) < 1e-12
    y.square().sum().backward()
    expected.square().sum().backward()
    for k, layer in enumerate(layers):
        for name in PARAMETERS[:3]:
            want = getattr(stock, name.replace("_l0", f"_l{k}")).grad
            assert relative_error(getattr(layer, name).grad, want) < 1e-12


class Case:
    """A layer with inputs and a loss, for our kernels and, in float64, for torch.nn.

    With `vocab` it is a first layer, above an embedding; with `inputs` one above another layer.
    reset_share: the share of steps before which a lane's state is set to zeros.
    """

    def __init__(
        self, cell, precision, *, hidden, lanes, steps, inputs=None, vocab=None, masked=False, reset_share=0.0, draw=0
    ):
        self.cell, self.precision, self.hidden = cell, precision, hidden
        size = inputs or 5
        torch.manual_seed(hidden + 7 * lanes + draw)
        self.layer = random_layer(cell, size, hidden, scale=0.5 * max(size, hidden) ** -0.5, dtype=torch.float32)
        generator = torch.Generator().manual_seed(hidden * 1000 + lanes * 10 + steps + draw)
        self.embedding = torch.randn(vocab, size, generator=generator) if vocab else None
        if vocab:
            self.x = torch.randint(vocab, (steps, lanes), generator=generator)
        else:
            self.x = torch.randn(steps, lanes, size, generator=generator).to(getattr(torch, precision))
        count = reference.NUM_STATES[cell]
        self.state = [torch.randn(lanes, hidden, generator=generator) for _ in range(count)]
        self.mask = (torch.rand(lanes, hidden, generator=generator) < 0.7) / 0.7 if masked else None
        self.resets = torch.rand(steps, lanes, generator=generator) < reset_share
        # the loss is a weighted sum of outputs and states; weights of one sign don't cancel to nearly nothing
        self.y_weight = torch.rand(steps, lanes, hidden, generator=generator).to(getattr(torch, precision))
        self.state_weights = [torch.rand(lanes, hidden, generator=generator) for _ in range(count)]

    def run_kernels(self):
        """Outputs and states; the gradients of the layer's parameters, of the embedding or x, and of the state."""
        packed = pack(self.cell, self.layer, self.precision, embedding=self.embedding)
        buffers = Buffers()
        state = [part.numpy().copy() for part in self.state]
        mask = None if self.mask is None else self.mask.numpy()
        resets = self.resets.numpy()
        pair = state[0], state[-1]
        y, saved = forward_window(packed, array_of(self.x), resets, pair, mask, buffers, needs_backward=True)
        y, after = tensor_of(y).clone(), [torch.from_numpy(part.copy()) for part in state]
        d_state = [part.numpy().copy() for part in self.state_weights]
        if len(d_state) == 1:
            d_state.append(np.zeros_like(d_state[0]))
        dx, sums = backward_window(packed, saved, array_of(self.y_weight), tuple(d_state), buffers)
        gradients = parameter_gradients(packed, sums, self.layer, self.embedding)
        if self.embedding is None:
            gradients.append(tensor_of(dx))
        else:
            gradients.append(gradients.pop(0))
        return [y, *after], [*gradients, *map(torch.from_numpy, d_state[: len(self.state)])]

    def run_torch(self):
        """The same in float64 by torch.nn and autograd."""
        exact = LAYERS[self.cell](self.layer.input_size, self.hidden).double()
        exact.load_state_dict(self.layer.state_dict())
        source = (self.x if self.embedding is None else self.embedding).double().requires_grad_()
        x = source if self.embedding is None else source[self.x]
        state = [part.double().requires_grad_() for part in self.state]
        mask = None if self.mask is None else self.mask.double()
        y, after = run_stock_layer(exact, x, tuple(state), mask=mask, resets=self.resets if self.resets.any() else None)
        loss = (y * self.y_weight.double()).sum()
        loss += sum((a * w.double()).sum() for a, w in zip(after, self.state_weights, strict=True))
        parameters = [exact.get_parameter(name) for name in PARAMETERS]
        gradients = list(torch.autograd.grad(loss, [*parameters, source, *state]))
        used = torch.zeros_like(gradients[3])  # the redundant part of bias_hh gets no gradient
        used[2 * self.hidden :] = float(self.cell == "gru")
        gradients[3] = gradients[3] * used
        return [part.detach() for part in (y, *after)], gradients


def errors_of(*args, **kwargs):
    """The largest relative error of outputs and states, of a gradient, and of all parameters' gradients as one."""
    case = Case(*args, **kwargs)
    (values, found), (exact_values, wanted) = case.run_kernels(), case.run_torch()
    pairs = list(zip(found, wanted, strict=True))
    assert all((a == 0).all() for a, b in pairs if b.abs().max() == 0)
    count = 4 + (case.embedding is not None)
    whole = [torch.cat([g.flatten().double() for g in side[:count]]) for side in (found, wanted)]
    return (
        max(relative_error(a.double(), b) for a, b in zip(values, exact_values, strict=True)),
        max(relative_error(a.double(), b) for a, b in pairs if b.abs().max() > 0),
        relative_error(*whole),
    )


def check_errors(precision, values, each, whole):
    """Check them: in float32 every gradient, in bfloat16 all parameters' as one."""
    if precision == "float32":
        assert values < 1e-5
        assert each < 1e-5
    else:
        assert values < 1e-2
        assert whole < 1e-2


SIZES = [*itertools.product((1, 7, 33, 200), (1, 3, 64), (5,)), (33, 3, 1), (33, 3, 64)]  # hidden, lanes, steps


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", [{"vocab": 65}, {"inputs": 33}], ids=["first", "above"])
def test_our_kernels_agree_with_torch(cell, precision, place):
    """Outputs, states and every gradient, the carried state's included, equal those of torch.nn in float64.

    In bfloat16 the mean of three draws counts: a network of one unit has hardly more than one rounding.
    """
    draws = range(1 if precision == "float32" else 3)
    for hidden, lanes, steps in SIZES:
        sizes = {"hidden": hidden, "lanes": lanes, "steps": steps}
        found = np.array([errors_of(cell, precision, **sizes, **place, draw=draw) for draw in draws])
        check_errors(precision, *found.mean(axis=0))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_masks_and_odd_inputs_agree_with_torch(cell, precision):
    """The outputs may be masked, the vocabulary tiny or large, the input smaller or larger than the layer."""
    for place in ({"vocab": 2}, {"vocab": 5000}, {"inputs": 1}, {"inputs": 40}):
        found = errors_of(cell, precision, hidden=33, lanes=9, steps=12, masked=True, **place)
        check_errors(precision, *found)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", [{"vocab": 65}, {"inputs": 33}], ids=["first", "above"])
def test_resets_agree_with_torch(cell, precision, place):
    """Lanes are reset rarely, often or at every step, in windows of more steps than a chunk of backward has."""
    for share in (0.02, 0.3, 1.0):
        found = errors_of(cell, precision, hidden=33, lanes=5, steps=150, masked=True, reset_share=share, **place)
        check_errors(precision, *found)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_separates_texts(cell):
    """Outputs and gradients are those of each stretch read alone from a state of zeros."""
    layer = random_layer(cell, 5, 7)
    x = torch.randn(9, 2, 5, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 7, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    zeros = tuple(torch.zeros_like(part) for part in state)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4, 0] = resets[6, 0] = resets[0, 1] = resets[1, 1] = True
    y, _ = run_stock_layer(layer, x, state, resets=resets)
    for lane, borders in ((0, [0, 4, 6, 9]), (1, [0, 1, 9])):
        for start, stop in itertools.pairwise(borders):
            before = state if (lane, start) == (0, 0) else zeros
            alone, _ = run_stock_layer(
                layer, x[start:stop, lane : lane + 1], tuple(part[lane : lane + 1] for part in before)
            )
            assert relative_error(y[start:stop, lane : lane + 1].detach(), alone.detach()) < 1e-12
            (gradient,) = torch.autograd.grad(y[start:stop, lane].sum(), x, retain_graph=True)
            outside = torch.ones(9, 2, dtype=torch.bool)
            outside[start:stop, lane] = False
            assert gradient[outside].abs().max() == 0.0
            assert gradient[~outside].abs().max() > 0.0


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_saved_only_for_the_backward_pass(cell):
    """Without it the outputs are the same to the last bit."""
    case = Case(cell, "float32", hidden=33, lanes=3, steps=6, inputs=5)
    packed = pack(cell, case.layer)
    y, _ = run(packed, case.x, case.state)
    assert torch.equal(y, case.run_kernels()[0][0])
    for needs_backward, num_steps in ((True, 6), (False, 1)):
        state = [part.numpy().copy() for part in case.state]
        resets, pair = np.zeros((6, 3), np.bool_), (state[0], state[-1])
        x = case.x.numpy()
        _, saved = forward_window(packed, x, resets, pair, None, Buffers(), needs_backward=needs_backward)
        assert len(saved.gates) == num_steps


def test_a_window_equals_its_pieces():
    """Two windows with the state carried equal one, to the last bit."""
    layer = random_layer("lstm", 5, 33, dtype=torch.float32)
    x = torch.randn(10, 3, 5)
    state = (torch.randn(3, 33), torch.randn(3, 33))
    packed = pack("lstm", layer)
    whole, _ = run(packed, x, state)
    first, between = run(packed, x[:4], state)
    second, _ = run(packed, x[4:], between)
    assert (torch.cat([first, second]) == whole).all()


@pytest.mark.parametrize("cell", CELLS)
def test_the_redundant_bias_gets_no_gradient(cell):
    """It starts at zero and stays there, so the kernels need only the other bias."""
    case = Case(cell, "float32", hidden=4, lanes=1, steps=2, inputs=3)
    ours = case.run_kernels()[1][3]
    layer = make_layer(cell, 3, 4)
    y, _ = run_stock_layer(layer, case.x, tuple(case.state))
    (stock,) = torch.autograd.grad(y.sum(), [layer.bias_hh_l0])
    redundant = slice(0, 8) if cell == "gru" else slice(None)
    assert (layer.bias_hh_l0[redundant] == 0).all()
    for gradient in (ours, stock):
        assert (gradient[redundant] == 0).all()
        if cell == "gru":
            assert (gradient[8:] != 0).all()


def test_weights_are_packed_again_in_the_same_memory():
    """After an update the result is the same as in new memory."""
    layer = random_layer("gru", 5, 33, dtype=torch.float32)
    packed = pack("gru", layer)
    with torch.no_grad():
        layer.weight_hh_l0 += 1
    again = pack("gru", layer, out=packed)
    assert again.recurrent is packed.recurrent
    for one, other in zip(again[1:], pack("gru", layer)[1:], strict=True):
        assert (one == other).all()


def test_bfloat16_tensors_are_viewed_as_their_bits():
    """Both views share the tensor's memory."""
    tensor = torch.randn(3, 5).to(torch.bfloat16)
    bits = array_of(tensor)
    assert bits.dtype == np.uint16
    assert torch.equal(tensor_of(bits), tensor)
    bits[0, 0] = 0x3F80
    assert tensor[0, 0] == 1
