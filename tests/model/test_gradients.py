"""One window's loss and gradient: sums, truncation, workers, and that nothing else moves."""

import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.data.batches import IGNORE_INDEX
from charrnn.hardware import split_range
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.model.gradients import Workers, window_gradient
from charrnn.model.layers import Buffers
from charrnn.model.network import CharRNN
from tests import reference
from tests.conftest import make_model_file, relative_error


def make_model(cell="gru"):
    """A small network and the file it was made from."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config)
    return CharRNN.from_arrays(config, file.tensors), file


KERNELS = pytest.mark.parametrize("kernels", ["ours", "PyTorch's"])
PRECISIONS = ["float32", *["bfloat16"] * has_fast_bfloat16()]


def pack(model, kernels):
    """What window_gradient is told for the kernels to be used."""
    return model.pack() if kernels == "ours" else None


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_is_the_sum_over_targets(cell, kernels):
    """Nats are summed over the characters that count, as the naive network scores them."""
    model, file = make_model(cell)
    ids = torch.randint(0, 9, (6, 2), generator=torch.Generator().manual_seed(1))
    targets = ids[1:].clone()
    targets[-1, 1] = IGNORE_INDEX
    result = window_gradient(model, ids[:-1], targets, model.initial_state(2), None, pack(model, kernels))
    naive = reference.Network(cell, file.tensors)
    expected = sum(naive.nats(ids[1:, 0].tolist(), [int(ids[0, 0])]))
    expected += sum(naive.nats(ids[1:-1, 1].tolist(), [int(ids[0, 1])]))
    assert float(result.nats) == pytest.approx(expected, rel=1e-5)
    assert result.gradient.shape == (model.config.num_parameters,)


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_truncated_but_the_state_carries(cell, kernels):
    """No gradient goes from a window into the one before, whose state's value does arrive."""
    model, _ = make_model(cell)
    ids = torch.randint(0, 9, (9, 3), generator=torch.Generator().manual_seed(2))
    packed = pack(model, kernels)
    first = window_gradient(model, ids[:4], ids[1:5], model.initial_state(3), None, packed)
    second = window_gradient(model, ids[4:8], ids[5:], first.state, None, packed)
    assert all(part.grad_fn is None for part in (*first.state, *second.state))

    # by hand: the same state as a constant gives the same gradient …
    logits, _ = model(ids[4:8], tuple(part.clone() for part in first.state))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[5:].flatten(), reduction="sum")
    constant = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert relative_error(second.gradient, constant) < 1e-6
    assert float(second.nats) == pytest.approx(loss.item(), rel=1e-6)

    # … backpropagation through both windows gives another, and no state another loss
    _, carried = model(ids[:4], model.initial_state(3))
    logits, _ = model(ids[4:8], carried)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[5:].flatten(), reduction="sum")
    through = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert relative_error(second.gradient, through) > 1e-3
    forgotten = window_gradient(model, ids[4:8], ids[5:], model.initial_state(3), None)
    assert float(forgotten.nats) != pytest.approx(float(second.nats), rel=1e-4)


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_weights_count_in_one_window_alone(cell, kernels, monkeypatch):
    """Loss and gradient are those of a network whose recurrent weights are masked; the weights stay whole."""
    if kernels != "ours":
        monkeypatch.setattr("charrnn.model.gradients.is_fused", lambda model: False)
    model, _ = make_model(cell)
    before = model.to_arrays()
    x, targets = torch.randint(0, 9, (2, 5, 4), generator=torch.Generator().manual_seed(5))
    shape = model.layers[0].weight_hh_l0.shape
    masks = [torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(k)) * 1.5 for k in range(2)]
    with Workers(model, num_workers=2, precision="float32") as workers:
        found = workers.window_gradient(x, targets, model.initial_state(4), None, masks)
        found = float(found.nats), found.gradient.clone()
        plain = workers.window_gradient(x, targets, model.initial_state(4), None)
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())
    assert float(plain.nats) != pytest.approx(found[0], rel=1e-5)

    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    masked = {
        name: p * masks[int(name.split(".")[1])] if name.endswith("weight_hh_l0") else p for name, p in leaves.items()
    }
    double = CharRNN(model.config).double()
    outputs, _ = torch.func.functional_call(
        double,
        {name: p.double() for name, p in masked.items()},
        (x, tuple(part.double() for part in model.initial_state(4))),
    )
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])
    assert found[0] == pytest.approx(loss.item(), rel=1e-5)
    redundant = torch.cat([torch.full((p.numel(),), "bias_hh" in n) for n, p in leaves.items()])
    assert relative_error(found[1][~redundant], expected[~redundant]) < 1e-5


@KERNELS
def test_lanes_add_up(kernels):
    """The sum over all lanes is the sum of what halves of them give."""
    model, _ = make_model()
    packed = pack(model, kernels)
    x, targets = torch.randint(0, 9, (5, 4)), torch.randint(0, 9, (5, 4))
    masks = [torch.rand(4, 6) for _ in range(2)]
    whole = window_gradient(model, x, targets, model.initial_state(4), masks, packed)
    halves = [
        window_gradient(model, x[:, part], targets[:, part], model.initial_state(2), [m[part] for m in masks], packed)
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert float(whole.nats) == pytest.approx(sum(float(half.nats) for half in halves), rel=1e-5)
    assert relative_error(whole.gradient, halves[0].gradient + halves[1].gradient) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_our_kernels_give_the_gradient_that_pytorch_gives(cell):
    """Of a whole network, from the characters to the loss, with dropped outputs."""
    config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=5, hidden_size=33, num_layers=3)
    model = CharRNN(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    x, targets = torch.randint(0, 65, (2, 20, 9), generator=generator)
    targets[5, 3] = IGNORE_INDEX
    masks = [(torch.rand(9, 33, generator=generator) < 0.7) / 0.7 for _ in range(3)]
    exact = CharRNN(config, seed=3).double()
    state = tuple(torch.randn(3, 9, 33, generator=generator) for _ in range(config.num_states))
    wanted = window_gradient(
        exact, x, targets, tuple(part.double() for part in state), [mask.double() for mask in masks]
    )
    for precision in PRECISIONS:
        found = window_gradient(model, x, targets, state, masks, model.pack(precision))
        bound = 1e-5 if precision == "float32" else 1e-2
        assert relative_error(found.gradient, wanted.gradient.float()) < bound
        assert float(found.nats) == pytest.approx(float(wanted.nats), rel=bound)
        for part, want in zip(found.state, wanted.state, strict=True):
            assert relative_error(part, want.float()) < bound


@pytest.mark.parametrize(
    ("cell", "precision", "bound"),  # a CPU has no LSTM in float16
    [*((cell, "bfloat16", 2e-2) for cell in CELLS), ("rnn", "float16", 4e-3), ("gru", "float16", 4e-3)],
)
def test_pytorchs_layers_may_round_their_products(cell, precision, bound):
    """As they do on a GPU: gradients and state are float32, and near those of float32 products."""
    config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=5, hidden_size=32, num_layers=2)
    model = CharRNN(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    x, targets = torch.randint(0, 65, (2, 70, 99), generator=generator)
    masks = [(torch.rand(99, 32, generator=generator) < 0.7) / 0.7 for _ in range(2)]
    state = tuple(torch.randn(2, 99, 32, generator=generator) for _ in range(config.num_states))
    wanted = window_gradient(model, x, targets, state, masks)
    found = window_gradient(model, x, targets, state, masks, precision=precision)
    error = relative_error(found.gradient, wanted.gradient)
    assert 1e-5 < error < bound
    assert found.gradient.dtype == torch.float32
    assert float(found.nats) == pytest.approx(float(wanted.nats), rel=bound)
    for part, want in zip(found.state, wanted.state, strict=True):
        assert part.dtype == torch.float32
        assert relative_error(part, want) < bound


def test_a_sum_of_many_gradients_fits_float16():
    """Of so many characters that the sum itself would not: all want the same of one weight."""
    config = ModelConfig(cell="rnn", vocab_size=2, embedding_dim=2, hidden_size=2, num_layers=1)
    model = CharRNN(config, seed=3)
    x = torch.zeros(200, 1000, dtype=torch.int64)
    state = model.initial_state(1000)
    wanted = window_gradient(model, x, x, state, None)
    assert float(wanted.gradient.abs().max()) > 65_504
    found = window_gradient(model, x, x, state, None, precision="float16")
    assert relative_error(found.gradient, wanted.gradient) < 1e-2


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_workers_together_are_one(num_workers):
    """Lanes that don't divide evenly, more workers than cores: the same sum, and each time the same bits."""
    model, _ = make_model("lstm")
    generator = torch.Generator().manual_seed(1)
    x, targets = torch.randint(0, 9, (2, 7, 11), generator=generator)
    masks = [torch.rand(11, 6, generator=generator) for _ in range(2)]
    alone = window_gradient(model, x, targets, model.initial_state(11), masks, model.pack())
    with Workers(model, num_workers=num_workers, precision="float32") as workers:
        found, again = (
            (float(result.nats), result.gradient.clone(), result.state)
            for result in (workers.window_gradient(x, targets, model.initial_state(11), masks) for _ in range(2))
        )
    assert found[0] == pytest.approx(float(alone.nats), rel=1e-6)
    assert relative_error(found[1], alone.gradient) < 1e-5
    for part, want, same in zip(found[2], alone.state, again[2], strict=True):
        assert part.shape == want.shape
        assert relative_error(part, want) < 1e-6
        assert (part == same).all()
    assert found[0] == again[0]
    assert (found[1] == again[1]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_what_a_window_leaves_is_of_no_consequence(cell):
    """Windows of several sizes, with masks and without, in memory that others filled: the bits of fresh memory."""
    model, _ = make_model(cell)
    generator, packed = torch.Generator().manual_seed(1), model.pack()
    rooms = [Buffers() for _ in range(3)]
    for steps, lanes, masked in [(7, 4, True), (7, 4, False), (3, 4, True), (7, 2, False), (7, 4, True)]:
        x, targets = torch.randint(0, 9, (2, steps, lanes), generator=generator)
        state = tuple(torch.randn(part.shape, generator=generator) for part in model.initial_state(lanes))
        before = [part.clone() for part in state]
        masks = [torch.rand(lanes, 6, generator=generator) for _ in range(2)] if masked else None
        found = window_gradient(model, x, targets, state, masks, packed, rooms=rooms)
        wanted = window_gradient(model, x, targets, state, masks, packed)
        assert float(found.nats) == float(wanted.nats)
        assert torch.equal(found.gradient, wanted.gradient)
        assert all(map(torch.equal, found.state, wanted.state))
        assert all(map(torch.equal, state, before))


def test_a_workers_failure_is_told():
    """What goes wrong in a thread is raised where the step was asked for."""
    model, _ = make_model()
    x = torch.zeros(3, 4, dtype=torch.int64)
    with Workers(model, num_workers=2, precision="float32") as workers, pytest.raises(AssertionError):
        workers.window_gradient(x, x, model.initial_state(4), [torch.ones(2, 6)] * 2)


def test_lanes_are_shared_without_gaps():
    """Each lane has one worker, and no worker has two more than another."""
    for num_lanes in (1, 2, 7, 64):
        for num_workers in range(1, num_lanes + 1):
            shares = [range(num_lanes)[lanes] for lanes in split_range(num_lanes, num_workers)]
            assert [lane for share in shares for lane in share] == list(range(num_lanes))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
