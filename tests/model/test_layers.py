"""The recurrent layers: PyTorch's own against naive loops from the equations, our kernels against PyTorch's own."""

import itertools

import numpy as np
import pytest
import torch

from charrnn.config import CELLS
from charrnn.errors import ResourceError, UsageError
from charrnn.hardware import select_device, select_precision
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.model.layers import LAYERS, make_layer, pack_layer, run_layer, run_stock_layer
from tests import reference
from tests.conftest import relative_error

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
CPU = torch.device("cpu")
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


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "lanes", "inputs", "hidden"), [(1, 1, 1, 1), (5, 3, 7, 4), (9, 2, 3, 33)])
def test_outputs_and_states_follow_the_equations(cell, steps, lanes, inputs, hidden):
    """Each lane equals a loop over its steps, carried state in and out."""
    torch.manual_seed(steps)
    layer = random_layer(cell, inputs, hidden)
    x = torch.randn(steps, lanes, inputs, dtype=torch.float64)
    state = tuple(torch.randn(lanes, hidden, dtype=torch.float64) for _ in range(reference.NUM_STATES[cell]))
    y, after = run_stock_layer(layer, x, state)
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
    y, _ = run_stock_layer(layer, x, state)
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
        y, after = run_stock_layer(layer, y, tuple(part[k] for part in state))
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


def compare_with_torch(
    cell, precision, *, hidden, lanes, steps, inputs=None, vocab=None, masked=False, anew=0.0, draw=0
):
    """Relative errors of our kernels against torch.nn in float64.

    Returns those of outputs and states, of each gradient, and of all parameters' as one.

    With `vocab` the layer is a first one, above an embedding; with `inputs` one above another layer.
    anew: the share of steps before which a lane's state is forgotten.
    """
    generator = torch.Generator().manual_seed(hidden * 1000 + lanes * 10 + steps + draw)
    size = inputs or 5
    torch.manual_seed(hidden + 7 * lanes + draw)
    layer = random_layer(cell, size, hidden, scale=0.5 * max(size, hidden) ** -0.5, dtype=torch.float32)
    exact = LAYERS[cell](size, hidden).double()
    exact.load_state_dict(layer.state_dict())
    embedding = torch.randn(vocab or 1, size, generator=generator).requires_grad_()
    exact_embedding = embedding.detach().double().requires_grad_()
    if vocab:
        x = torch.randint(vocab, (steps, lanes), generator=generator)
        x_exact = exact_embedding[x]
    else:
        x = torch.randn(steps, lanes, size, generator=generator).to(getattr(torch, precision)).requires_grad_()
        x_exact = x.detach().double().requires_grad_()
    count = reference.NUM_STATES[cell]
    state = tuple(torch.randn(lanes, hidden, generator=generator).requires_grad_() for _ in range(count))
    state_exact = tuple(part.detach().double().requires_grad_() for part in state)
    mask = (torch.rand(lanes, hidden, generator=generator) < 0.7) / 0.7 if masked else None

    packed = pack_layer(layer, embedding if vocab else None, precision)
    resets = torch.rand(steps, lanes, generator=generator) < anew if anew else None
    table = embedding if vocab else None
    y, after = run_layer(layer, x, state, packed=packed, embedding=table, mask=mask, resets=resets)
    mask_exact = None if mask is None else mask.double()
    y_exact, after_exact = run_stock_layer(exact, x_exact, state_exact, mask=mask_exact, resets=resets)
    weight = torch.rand(y.shape, generator=generator)  # of one sign, so that few numbers don't cancel to nearly none
    ends = [torch.rand(part.shape, generator=generator) for part in after]

    def gradients(y, after, layer, *others):
        total = (y * weight.to(y.dtype)).sum() + sum(
            (a * e.to(a.dtype)).sum() for a, e in zip(after, ends, strict=True)
        )
        named = [layer.get_parameter(name) for name in NAMES]
        return torch.autograd.grad(total, [*named, *others])

    found = gradients(y, after, layer, embedding if vocab else x, *state)
    wanted = list(gradients(y_exact, after_exact, exact, exact_embedding if vocab else x_exact, *state_exact))
    used = torch.zeros_like(wanted[3])  # the redundant part of bias_hh gets no gradient
    used[2 * hidden :] = float(cell == "gru")
    wanted[3] = wanted[3] * used
    pairs = zip((y, *after), (y_exact, *after_exact), strict=True)
    values = [relative_error(a.detach().double(), b.detach()) for a, b in pairs]
    each = [relative_error(a.double(), b) for a, b in zip(found, wanted, strict=True) if b.abs().max() > 0]
    whole = relative_error(
        *(torch.cat([g.flatten().double() for g in side[: 4 + bool(vocab)]]) for side in (found, wanted))
    )
    assert all((a == 0).all() for a, b in zip(found, wanted, strict=True) if b.abs().max() == 0)
    return max(values), max(each), whole


SIZES = [
    *({"hidden": hidden, "lanes": lanes, "steps": 5} for hidden in (1, 7, 33, 200) for lanes in (1, 3, 64)),
    *({"hidden": 33, "lanes": 3, "steps": steps} for steps in (1, 64)),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s.values())))
@pytest.mark.parametrize("where", [{"vocab": 65}, {"inputs": 33}], ids=["first", "above"])
def test_our_kernels_agree_with_torch(cell, precision, sizes, where):
    """Outputs, states and every gradient, the carried state's included, against torch.nn in float64.

    In bfloat16 the mean of three draws: a network of one unit is hardly more than one rounding.
    """
    draws = range(1 if precision == "float32" else 3)
    found = np.array([compare_with_torch(cell, precision, **sizes, **where, draw=draw) for draw in draws])
    values, each, whole = found.mean(axis=0)
    if precision == "float32":
        assert values < 1e-5
        assert each < 1e-5
    else:
        assert values < 1e-2
        assert whole < 1e-2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", [{"vocab": 2}, {"vocab": 5000}, {"inputs": 1}, {"inputs": 40}], ids=str)
def test_masks_and_odd_inputs_agree_with_torch(cell, precision, where):
    """Dropped outputs, the smallest and a large vocabulary, an input that is smaller or larger than the layer."""
    values, each, whole = compare_with_torch(cell, precision, hidden=33, lanes=9, steps=12, masked=True, **where)
    assert values < (1e-5 if precision == "float32" else 1e-2)
    assert (each if precision == "float32" else whole) < (1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("anew", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("where", [{"vocab": 65}, {"inputs": 33}], ids=["first", "above"])
def test_lanes_that_begin_anew_agree_with_torch(cell, precision, anew, where):
    """Rarely, often and at every step; more steps than are taken back at a time."""
    values, each, whole = compare_with_torch(
        cell, precision, hidden=33, lanes=5, steps=150, masked=True, anew=anew, **where
    )
    assert values < (1e-5 if precision == "float32" else 1e-2)
    assert (each if precision == "float32" else whole) < (1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("cell", CELLS)
def test_beginning_anew_is_reading_a_text_of_its_own(cell):
    """Outputs and gradients are those of each stretch read alone from a state of zeros; nothing crosses a border."""
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
def test_what_backward_needs_is_kept_only_where_there_is_one(cell):
    """Without gradients the outputs are the same to the last bit."""
    layer = random_layer(cell, 5, 33, dtype=torch.float32)
    x = torch.randn(6, 3, 5)
    state = tuple(torch.zeros(3, 33) for _ in range(reference.NUM_STATES[cell]))
    packed = pack_layer(layer, None, "float32")
    with torch.inference_mode():
        quick, _ = run_layer(layer, x, state, packed=packed)
    full, _ = run_layer(layer, x, state, packed=packed)
    assert full.requires_grad
    assert (quick == full.detach()).all()
    assert (state[0] == 0).all()  # the caller's state is left alone


def test_a_window_is_the_same_in_pieces():
    """Two windows with the state carried equal one, to the last bit."""
    layer = random_layer("lstm", 5, 33, dtype=torch.float32)
    x = torch.randn(10, 3, 5)
    state = (torch.randn(3, 33), torch.randn(3, 33))
    packed = pack_layer(layer, None, "float32")
    whole, _ = run_layer(layer, x, state, packed=packed)
    first, between = run_layer(layer, x[:4], state, packed=packed)
    second, _ = run_layer(layer, x[4:], between, packed=packed)
    assert (torch.cat([first, second]) == whole).all()


@pytest.mark.parametrize("run", ["stock", "fused"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_redundant_bias_gets_no_gradient(cell, run):
    """It starts at zero and stays there, so that one bias tells all."""
    layer = make_layer(cell, 3, 4)
    state = tuple(torch.zeros(1, 4) for _ in range(reference.NUM_STATES[cell]))
    x = torch.randn(2, 1, 3)
    if run == "stock":
        y, _ = run_stock_layer(layer, x, state)
    else:
        y, _ = run_layer(layer, x, state, packed=pack_layer(layer, None, "float32"))
    (gradient,) = torch.autograd.grad(y.sum(), [layer.bias_hh_l0])
    redundant = slice(0, 8) if cell == "gru" else slice(None)
    assert (gradient[redundant] == 0).all()
    assert (layer.bias_hh_l0[redundant] == 0).all()
    if cell == "gru":
        assert (gradient[8:] != 0).all()


def test_weights_are_packed_again_in_the_same_memory():
    """After an update, and with the same result as in new memory."""
    layer = random_layer("gru", 5, 33, dtype=torch.float32)
    packed = pack_layer(layer, None, "float32")
    with torch.no_grad():
        layer.weight_hh_l0 += 1
    again = pack_layer(layer, None, "float32", packed)
    assert again.recurrent is packed.recurrent
    for one, other in zip(again[1:], pack_layer(layer, None, "float32")[1:], strict=True):
        assert (one == other).all()


def test_devices_are_named_or_refused():
    """A device that isn't there is told from a name that means nothing."""
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ResourceError, match="--device cpu"):
        select_device("cuda:99")
    for name in ("tpu", "cuda:x", ""):
        with pytest.raises(UsageError, match="--device"):
            select_device(name)


def test_precisions_are_chosen_or_refused(monkeypatch):
    """auto is what is fast here; bfloat16 is never emulated."""
    for fast in (True, False):
        monkeypatch.setattr("charrnn.model.layers.has_fast_bfloat16", lambda fast=fast: fast)
        assert select_precision("auto", CPU) == ("bfloat16" if fast else "float32")
        assert select_precision("float32", CPU) == "float32"
        if fast:
            assert select_precision("bfloat16", CPU) == "bfloat16"
        else:
            with pytest.raises(ResourceError, match="--precision float32"):
                select_precision("bfloat16", CPU)
    with pytest.raises(UsageError, match="--precision"):
        select_precision("float16", CPU)
