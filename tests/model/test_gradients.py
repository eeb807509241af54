"""One window's loss and gradient: sums, truncation, workers, and that nothing else changes."""

import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.counters import weight_mask
from charrnn.data.batches import IGNORE_INDEX
from charrnn.model.gradients import Workers, Workspace, autograd_window, fused_window
from charrnn.model.network import CharRNN
from charrnn.numerics.processor import has_fast_bfloat16
from tests import reference
from tests.conftest import make_model_file, relative_error

KERNELS = pytest.mark.parametrize("kernels", ["ours", "PyTorch's"])
PRECISIONS = ["float32", *["bfloat16"] * has_fast_bfloat16()]


def make_model(cell="gru"):
    """A small network and the file it was made from."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config)
    return CharRNN.from_arrays(config, file.tensors), file


def run_window(model, kernels, x, targets, state, masks=None):
    """Compute a window's gradient with our kernels or with PyTorch's."""
    if kernels == "ours":
        return fused_window(model, model.pack(), x, targets, state, masks)
    return autograd_window(model, x, targets, state, masks)


def loss_of(logits, targets):
    """The sum of nats, by PyTorch."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def flat_gradient(loss, model):
    """The gradient of a loss, as one vector, by autograd."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_is_the_sum_over_targets(cell, kernels):
    """Nats are summed over the scored characters, as the naive network scores them."""
    model, file = make_model(cell)
    ids = torch.randint(0, 9, (6, 2), generator=torch.Generator().manual_seed(1))
    targets = ids[1:].clone()
    targets[-1, 1] = IGNORE_INDEX
    result = run_window(model, kernels, ids[:-1], targets, model.initial_state(2))
    naive = reference.Network(cell, file.tensors)
    expected = sum(naive.nats(ids[1:, 0].tolist(), [int(ids[0, 0])]))
    expected += sum(naive.nats(ids[1:-1, 1].tolist(), [int(ids[0, 1])]))
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.gradient.shape == (model.config.num_parameters,)


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_truncated_but_the_state_carries(cell, kernels):
    """No gradient flows from a window into the one before, but the value of its state does."""
    model, _ = make_model(cell)
    ids = torch.randint(0, 9, (9, 3), generator=torch.Generator().manual_seed(2))
    first = run_window(model, kernels, ids[:4], ids[1:5], model.initial_state(3))
    second = run_window(model, kernels, ids[4:8], ids[5:], first.state)
    assert all(part.grad_fn is None for part in (*first.state, *second.state))

    # the same state as a constant gives the same gradient
    logits, _ = model(ids[4:8], tuple(part.clone() for part in first.state))
    loss = loss_of(logits, ids[5:])
    assert relative_error(second.gradient, flat_gradient(loss, model)) < 1e-6
    assert second.nats == pytest.approx(loss.item(), rel=1e-6)

    # backpropagation through both windows gives another gradient, and no state another loss
    _, carried = model(ids[:4], model.initial_state(3))
    logits, _ = model(ids[4:8], carried)
    assert relative_error(second.gradient, flat_gradient(loss_of(logits, ids[5:]), model)) > 1e-3
    without = autograd_window(model, ids[4:8], ids[5:], model.initial_state(3))
    assert without.nats != pytest.approx(second.nats, rel=1e-4)


@KERNELS
@pytest.mark.parametrize("cell", CELLS)
def test_weight_masks_apply_to_one_window_only(cell, kernels, monkeypatch):
    """Loss and gradient are those of a network with masked recurrent weights; the weights stay as they were."""
    if kernels != "ours":
        monkeypatch.setattr("charrnn.model.gradients.is_fused", lambda model: False)
    model, _ = make_model(cell)
    before = model.to_arrays()
    x, targets = torch.randint(0, 9, (2, 5, 4), generator=torch.Generator().manual_seed(5))
    shape = model.layers[0].weight_hh_l0.shape
    masks = [weight_mask(0.4, seed=1, step=0, layer=layer, shape=shape) for layer in range(2)]
    with Workers(model, num_workers=2, precision="float32") as workers:
        found = workers.compute(x, targets, model.initial_state(4), None, masks)
        nats, gradient = found.nats, found.gradient.clone()
        plain = workers.compute(x, targets, model.initial_state(4))
    assert all((before[name] == array).all() for name, array in model.to_arrays().items())
    assert plain.nats != pytest.approx(nats, rel=1e-5)

    factors = [torch.from_numpy(mask.kept * mask.scale) for mask in masks]
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    masked = {
        name: p * factors[int(name.split(".")[1])] if name.endswith("weight_hh_l0") else p for name, p in leaves.items()
    }
    double = CharRNN(model.config).double()
    outputs, _ = torch.func.functional_call(
        double,
        {name: p.double() for name, p in masked.items()},
        (x, tuple(part.double() for part in model.initial_state(4))),
    )
    loss = loss_of(outputs, targets)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])
    assert nats == pytest.approx(loss.item(), rel=1e-5)
    redundant = torch.cat([torch.full((p.numel(),), "bias_hh" in n) for n, p in leaves.items()])
    assert relative_error(gradient[~redundant], expected[~redundant]) < 1e-5


@KERNELS
def test_lanes_add_up(kernels):
    """The sum over all lanes equals the sum of two halves."""
    model, _ = make_model()
    x, targets = torch.randint(0, 9, (5, 4)), torch.randint(0, 9, (5, 4))
    masks = [torch.rand(4, 6) for _ in range(2)]
    whole = run_window(model, kernels, x, targets, model.initial_state(4), masks)
    halves = [
        run_window(model, kernels, x[:, part], targets[:, part], model.initial_state(2), [m[part] for m in masks])
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert whole.nats == pytest.approx(sum(half.nats for half in halves), rel=1e-5)
    assert relative_error(whole.gradient, halves[0].gradient + halves[1].gradient) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_our_kernels_compute_the_gradient_that_pytorch_computes(cell):
    """It is the gradient of a whole network, from the characters to the loss, with dropped outputs."""
    config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=5, hidden_size=33, num_layers=3)
    model = CharRNN(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    x, targets = torch.randint(0, 65, (2, 20, 9), generator=generator)
    targets[5, 3] = IGNORE_INDEX
    masks = [(torch.rand(9, 33, generator=generator) < 0.7) / 0.7 for _ in range(3)]
    exact = CharRNN(config, seed=3).double()
    state = tuple(torch.randn(3, 9, 33, generator=generator) for _ in range(config.num_states))
    exact_state = tuple(part.double() for part in state)
    wanted = autograd_window(exact, x, targets, exact_state, [mask.double() for mask in masks])
    for precision in PRECISIONS:
        found = fused_window(model, model.pack(precision), x, targets, state, masks)
        bound = 1e-5 if precision == "float32" else 1e-2
        assert relative_error(found.gradient, wanted.gradient.float()) < bound
        assert found.nats == pytest.approx(wanted.nats, rel=bound)
        for part, want in zip(found.state, wanted.state, strict=True):
            assert relative_error(part, want.float()) < bound


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_rounds_the_products_of_pytorchs_layers(cell):
    """As on a GPU, gradients and state are float32, and close to those of float32 products."""
    config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=5, hidden_size=32, num_layers=2)
    model = CharRNN(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    x, targets = torch.randint(0, 65, (2, 70, 99), generator=generator)
    masks = [(torch.rand(99, 32, generator=generator) < 0.7) / 0.7 for _ in range(2)]
    state = tuple(torch.randn(2, 99, 32, generator=generator) for _ in range(config.num_states))
    wanted = autograd_window(model, x, targets, state, masks)
    try:
        found = autograd_window(model, x, targets, state, masks, "bfloat16")
    except RuntimeError as error:  # oneDNN has no LSTM in bfloat16 for some processors
        if "could not create a primitive" not in str(error):
            raise
        pytest.skip(f"PyTorch has no bfloat16 {cell} for this processor")
    assert 1e-5 < relative_error(found.gradient, wanted.gradient) < 2e-2
    assert found.gradient.dtype == torch.float32
    assert found.nats == pytest.approx(wanted.nats, rel=2e-2)
    for part, want in zip(found.state, wanted.state, strict=True):
        assert part.dtype == torch.float32
        assert relative_error(part, want) < 2e-2


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_workers_together_equal_one(num_workers):
    """Lanes that don't divide evenly and more workers than cores give the same sum, each time to the last bit."""
    model, _ = make_model("lstm")
    generator = torch.Generator().manual_seed(1)
    x, targets = torch.randint(0, 9, (2, 7, 11), generator=generator)
    masks = [torch.rand(11, 6, generator=generator) for _ in range(2)]
    alone = fused_window(model, model.pack(), x, targets, model.initial_state(11), masks)
    with Workers(model, num_workers=num_workers, precision="float32") as workers:
        found, again = (
            (result.nats, result.gradient.clone(), result.state)
            for result in (workers.compute(x, targets, model.initial_state(11), masks) for _ in range(2))
        )
    assert found[0] == pytest.approx(alone.nats, rel=1e-6)
    assert relative_error(found[1], alone.gradient) < 1e-5
    for part, want, same in zip(found[2], alone.state, again[2], strict=True):
        assert part.shape == want.shape
        assert relative_error(part, want) < 1e-6
        assert (part == same).all()
    assert found[0] == again[0]
    assert (found[1] == again[1]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_reused_memory_has_no_effect(cell):
    """Windows of several sizes, with and without masks, give the same bits as in fresh memory."""
    model, _ = make_model(cell)
    generator, packed, workspace = torch.Generator().manual_seed(1), model.pack(), Workspace(model)
    for steps, lanes, masked in [(7, 4, True), (7, 4, False), (3, 4, True), (7, 2, False), (7, 4, True)]:
        x, targets = torch.randint(0, 9, (2, steps, lanes), generator=generator)
        state = tuple(torch.randn(part.shape, generator=generator) for part in model.initial_state(lanes))
        before = [part.clone() for part in state]
        masks = [torch.rand(lanes, 6, generator=generator) for _ in range(2)] if masked else None
        found = fused_window(model, packed, x, targets, state, masks, workspace)
        wanted = fused_window(model, packed, x, targets, state, masks)
        assert found.nats == wanted.nats
        assert torch.equal(found.gradient, wanted.gradient)
        assert all(map(torch.equal, found.state, wanted.state))
        assert all(map(torch.equal, state, before))


def test_a_workers_failure_is_raised():
    """An error in a worker thread is raised in the thread that asked for the window."""
    model, _ = make_model()
    x = torch.zeros(3, 4, dtype=torch.int64)
    with Workers(model, num_workers=2, precision="float32") as workers, pytest.raises(AssertionError):
        workers.compute(x, x, model.initial_state(4), [torch.ones(2, 6)] * 2)
