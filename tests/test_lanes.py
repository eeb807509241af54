"""One window's loss and gradient: sums, truncation, and that nothing else moves."""

import pytest
import torch

from charrnn.batches import IGNORED
from charrnn.config import CELLS, ModelConfig
from charrnn.lanes import window_gradient
from charrnn.model import CharRNN
from tests import reference
from tests.conftest import make_model_file, relative_error


def make_model(cell="gru"):
    """A small network and the file it was made from."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=6, num_layers=2)
    file = make_model_file(config)
    return CharRNN.from_arrays(config, file.tensors), file


@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_is_the_sum_over_targets(cell):
    """Nats are summed over the characters that count, as the naive network scores them."""
    model, file = make_model(cell)
    ids = torch.randint(0, 9, (6, 2), generator=torch.Generator().manual_seed(1))
    targets = ids[1:].clone()
    targets[-1, 1] = IGNORED
    result = window_gradient(model, ids[:-1], targets, model.initial_state(2), None)
    naive = reference.Network(cell, file.tensors)
    expected = sum(naive.nats(ids[1:, 0].tolist(), [int(ids[0, 0])]))
    expected += sum(naive.nats(ids[1:-1, 1].tolist(), [int(ids[0, 1])]))
    assert float(result.nats) == pytest.approx(expected, rel=1e-5)
    assert result.gradient.shape == (model.config.num_parameters,)


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_truncated_but_the_state_carries(cell):
    """No gradient goes from a window into the one before, whose state's value does arrive."""
    model, _ = make_model(cell)
    ids = torch.randint(0, 9, (9, 3), generator=torch.Generator().manual_seed(2))
    first = window_gradient(model, ids[:4], ids[1:5], model.initial_state(3), None)
    second = window_gradient(model, ids[4:8], ids[5:], first.state, None)
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


def test_lanes_add_up():
    """The sum over all lanes is the sum of what halves of them give."""
    model, _ = make_model()
    x, targets = torch.randint(0, 9, (5, 4)), torch.randint(0, 9, (5, 4))
    masks = [torch.rand(4, 6) for _ in range(2)]
    whole = window_gradient(model, x, targets, model.initial_state(4), masks)
    halves = [
        window_gradient(model, x[:, part], targets[:, part], model.initial_state(2), [m[part] for m in masks])
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert float(whole.nats) == pytest.approx(sum(float(h.nats) for h in halves), rel=1e-5)
    assert relative_error(whole.gradient, halves[0].gradient + halves[1].gradient) < 1e-5
