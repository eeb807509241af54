"""Recurrent layers: RNN (tanh), GRU and LSTM behind one contract.

A layer is a stock single-layer `torch.nn` module, so its parameters are named and laid out as PyTorch's. On a CPU our
own kernels run it (windows.py). `run_stock_layer` leaves a layer to cuDNN on a GPU, and to PyTorch where autograd is
wanted.

Letters: T steps, B lanes, I input size, H hidden size, N gates * H, V vocabulary, E embedding.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.kernels.recurrent import PackedLayer, WeightGradients
from charrnn.model.packing import multiply
from charrnn.numerics.products import add_outer_product, new_outer_buffers, padded

Layer = nn.RNN | nn.GRU | nn.LSTM
LAYERS: dict[str, type[Layer]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
HiddenState = tuple[Tensor, ...]  # h, and for the LSTM also c; each (B, H) for one layer


def array_of(tensor: Tensor) -> NDArray[Any]:
    """View a CPU tensor as an array; bfloat16 becomes its bits in uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def make_layer(cell: str, input_size: int, hidden_size: int) -> Layer:
    """Build one layer whose redundant biases are zero and stay zero.

    Every gate but the GRU's candidate adds bias_ih and bias_hh, so one of them is redundant.
    bias_hh is fixed at zero there by masking its gradient, so the kernels need only bias_ih.
    """
    layer = LAYERS[cell](input_size, hidden_size)
    bias_hh = layer.get_parameter("bias_hh_l0")
    used = torch.zeros_like(bias_hh)
    if cell == "gru":
        used[2 * hidden_size :] = 1.0  # inside the reset gate's product, hence not redundant
    with torch.no_grad():
        bias_hh.mul_(used)
    layer.register_buffer("bias_is_used", used, persistent=False)  # follows the layer to its device
    bias_hh.register_hook(lambda gradient: gradient * layer.bias_is_used)  # type: ignore[no-untyped-call]
    return layer


def is_fused(layer: nn.Module) -> bool:
    """Return whether our kernels can run a module: float32 on a CPU."""
    weight = next(layer.parameters())
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def run_stock_layer(
    layer: Layer, x: Tensor, state: HiddenState, *, resets: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, HiddenState]:
    """Run a layer over a window with PyTorch's or cuDNN's own, with gradients.

    x: (T, B, I); state: tensors (B, H); resets: (T, B), where a lane's state is set to zeros before the step, or None;
    mask: (B, H) factors for the outputs. Returns outputs (T, B, H) and the state after the last step.
    These layers have no resets, so with resets they run step by step.
    """
    if resets is not None:
        outputs = []
        for t in range(len(x)):
            state = tuple(part * ~resets[t, :, None] for part in state)
            y, state = run_stock_layer(layer, x[t : t + 1], state, resets=None, mask=mask)
            outputs.append(y)
        return torch.cat(outputs), state
    before = tuple(part.unsqueeze(0).contiguous() for part in state)
    if isinstance(layer, nn.LSTM):
        y, after = layer(x, before)
    else:
        y, final = layer(x, before[0])
        after = (final,)
    return y if mask is None else y * mask, tuple(part.squeeze(0) for part in after)


def parameter_gradients(
    packed: PackedLayer, gradients: WeightGradients, layer: Layer, embedding: Tensor | None
) -> list[Tensor]:
    """Turn the gradients of packed weights into those of the embedding (V, E), if given, and of the layer's parameters.

    embedding: the first layer's, else None. The parameters are in the layer's own order.
    """
    first, weight_ih = [], array_of(layer.get_parameter("weight_ih_l0"))
    num_gates, input_size = weight_ih.shape
    d_weight_ih = torch.from_numpy(gradients.input)
    if embedding is not None:  # the table is embedding @ weight_ih.T + bias
        table = gradients.table
        first = [torch.from_numpy(multiply(table, weight_ih))]
        d_weight_ih = torch.zeros(num_gates, padded(input_size))
        outer_buffers = new_outer_buffers(table, *weight_ih.shape)
        add_outer_product(table, array_of(embedding), d_weight_ih.numpy(), outer_buffers)
    num_inner, d_bias = len(packed.inner_bias), torch.from_numpy(gradients.bias)
    d_bias_hh = torch.zeros(num_gates)  # the redundant part gets no gradient
    d_bias_hh[num_gates - num_inner :] = d_bias[num_gates:]
    d_weight_hh = torch.from_numpy(gradients.recurrent)[:, : layer.hidden_size]
    return [*first, d_weight_ih[:, :input_size], d_weight_hh, d_bias[:num_gates], d_bias_hh]
