"""What one step asks of the network: the sum of nats over its lanes, and its gradient.

The sum, not the mean, so that what several workers compute over their own lanes can be
added before it is divided by the count.

Letters: T steps, B lanes, P parameters in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from charrnn.cells import State
from charrnn.model import CharRNN


@dataclass(frozen=True)
class WindowResult:
    """nats: () summed over the window's targets; gradient: (P,) of that sum; state: detached."""

    nats: Tensor
    gradient: Tensor
    state: State


def window_gradient(
    model: CharRNN, x: Tensor, targets: Tensor, state: State, masks: Sequence[Tensor] | None
) -> WindowResult:
    """Run one window forward and back: backpropagation through time, truncated at its start.

    x, targets: (T, B) ids; state: tensors (L, B, H) from the window before, whose values
    are carried while no gradient goes back into them; masks as in CharRNN.forward.
    """
    logits, after = model(x, tuple(part.detach() for part in state), masks)
    nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    gradients = torch.autograd.grad(nats, list(model.parameters()))
    return WindowResult(
        nats=nats.detach(),
        gradient=torch.cat([gradient.flatten() for gradient in gradients]),
        state=tuple(part.detach() for part in after),
    )
