"""Recurrent layers: RNN (tanh), GRU and LSTM behind one contract.

A layer is a stock single-layer `torch.nn` module, so its parameters are named and laid out
as PyTorch's. On a CPU our own kernels run it (kernels/recurrent.py), in float32 or bfloat16 as its
weights were packed: `forward_window` and `backward_window` work on arrays, `run_layer` runs
forward_window on tensors. `run_stock_layer` leaves a layer to cuDNN on a GPU, and to PyTorch
where autograd is wanted.

Letters: T steps, B lanes, I input size, H hidden size, N gates * H, V vocabulary, E embedding.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.kernels import recurrent
from charrnn.kernels.cells import LSTM, RNN
from charrnn.kernels.recurrent import Activations, PackedLayer, WeightGradients
from charrnn.model.packing import LAYERS, Layer, array_of, multiply, tensor_of
from charrnn.numerics.products import add_outer_product, new_outer_buffers, padded
from charrnn.numerics.vectors import Floats

HiddenState = tuple[Tensor, ...]  # h, and for the LSTM also c; each (B, H) for one layer


class Buffers:
    """Arrays that are reused by the next window of the same size: touching new pages costs more than the work in them.

    A window's results are valid until the next window.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def empty(self, name: str, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        """Return the array of that name, aligned as PyTorch's, with undefined contents."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            stored = torch.empty(shape, dtype=torch.int16 if dtype == np.uint16 else torch.float32)
            array = self._arrays[name] = stored.numpy().view(dtype)
        return array

    def zeros(self, name: str, *shape: int) -> Floats:
        """Return the float32 array of that name, filled with zeros."""
        array = self.empty(name, *shape)
        array.fill(0.0)
        return array


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
    """Tell whether our kernels can run a module: float32 on a CPU."""
    weight = next(layer.parameters())
    return weight.device.type == "cpu" and weight.dtype == torch.float32


@torch.no_grad()
def run_layer(
    packed: PackedLayer, x: Tensor, state: HiddenState, *, resets: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, HiddenState]:
    """Run a layer over a window with our kernels, without gradients.

    x: (T, B) ids for the first layer, else (T, B, I) in the packed weights' precision; state:
    tensors (B, H); resets: (T, B), where a lane's state is set to zeros before the step, or None;
    mask: (B, H) factors for the outputs. Returns outputs (T, B, H) in that precision, and the state
    after the last step in float32.
    """
    after = tuple(part.clone(memory_format=torch.contiguous_format) for part in state)
    y, _ = forward_window(
        packed,
        array_of(x.contiguous()),
        np.zeros(x.shape[:2], np.bool_) if resets is None else resets.contiguous().numpy(),
        (after[0].numpy(), after[-1].numpy()),
        None if mask is None else mask.numpy(),
        Buffers(),
        needs_backward=False,
    )
    return tensor_of(y), after


def run_stock_layer(
    layer: Layer, x: Tensor, state: HiddenState, *, resets: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, HiddenState]:
    """Run a layer over a window with PyTorch's or cuDNN's own, with gradients; as run_layer, but x is (T, B, I).

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


def forward_window(
    packed: PackedLayer,
    x: NDArray[Any],
    resets: NDArray[np.bool_],
    state: tuple[Floats, Floats],
    mask: Floats | None,
    buffers: Buffers,
    *,
    needs_backward: bool,
) -> tuple[NDArray[Any], Activations]:
    """Run a layer over a window; return its outputs (T, B, H), stored as its weights are, and its activations.

    x: (T, B) ids for the first layer, else (T, B, I); resets: (T, B); state: h and c, (B, H) each,
    updated in place, twice the same array without c; mask: (B, H) or None. All are contiguous.
    needs_backward: whether backward_window will follow.
    """
    h, c = state
    num_steps, num_lanes, size, is_first = *x.shape[:2], h.shape[1], len(packed.table) > 0
    dtype = packed.recurrent.dtype
    # the kernels don't check their arguments
    assert all(part.shape == (num_lanes, size) and part.dtype == np.float32 for part in state)
    assert resets.shape == x.shape[:2]
    assert mask is None or (mask.shape == (num_lanes, size) and mask.dtype == np.float32)
    assert not is_first or (x.min() >= 0 and x.max() < len(packed.table))
    empty = np.empty((0, 0, 0), dtype)
    y = buffers.empty("y", num_steps + 1, num_lanes, size, dtype=dtype)
    masked = empty if mask is None else buffers.empty("masked", num_steps, num_lanes, size, dtype=dtype)
    width = 0 if packed.cell == RNN else 4 * size
    saved = Activations(
        ids=x if is_first else np.empty((0, 0), np.int64),
        x=empty if is_first else x,
        resets=resets,
        mask=np.empty((0, 0), np.float32) if mask is None else mask,
        y=y,
        gates=buffers.empty("gates", num_steps if needs_backward else 1, num_lanes, width, dtype=dtype),
        cells=buffers.empty("cells", *y.shape, dtype=dtype) if packed.cell == LSTM else empty,
    )
    recurrent.forward(packed, saved, h, c, masked)
    return (y[1:] if mask is None else masked), saved


def backward_window(
    packed: PackedLayer,
    saved: Activations,
    dy: NDArray[Any],
    d_state: tuple[Floats, Floats],
    buffers: Buffers,
) -> tuple[NDArray[Any], WeightGradients]:
    """Backpropagate through a layer's window; return the gradients of its inputs and of its packed weights.

    dy: (T, B, H), the gradient of the outputs, stored as the weights are; d_state: dh and dc, (B, H)
    each, of the state after the window, which become those of the state before. The inputs'
    gradient is (T, B, I), and empty for ids.
    """
    num_gates, size = len(packed.bias), saved.y.shape[2]
    dx = buffers.empty("dx", *saved.x.shape, dtype=dy.dtype)
    gradients = WeightGradients(
        table=buffers.zeros("table", *packed.table.shape),
        input=buffers.zeros("input", 0 if len(packed.table) else num_gates, padded(dx.shape[2])),
        recurrent=buffers.zeros("recurrent", num_gates, padded(size)),
        bias=buffers.zeros("sums", num_gates + len(packed.inner_bias)),
    )
    recurrent.backward(packed, saved, dy, d_state[0], d_state[1], dx, gradients)
    return dx, gradients


def parameter_gradients(
    packed: PackedLayer, gradients: WeightGradients, layer: Layer, embedding: Tensor | None
) -> list[Tensor]:
    """Turn the gradients of packed weights into those of the embedding (V, E), if given, and of the layer's parameters.

    embedding: the first layer's, else None. The parameters are in the layer's own order.
    """
    first, weight_ih = [], layer.get_parameter("weight_ih_l0").detach()
    num_gates, input_size = weight_ih.shape
    d_weight_ih = torch.from_numpy(gradients.input)
    if embedding is not None:  # the table is embedding @ weight_ih.T + bias
        table = gradients.table
        first = [multiply(torch.from_numpy(table), weight_ih)]
        d_weight_ih = torch.zeros(num_gates, padded(input_size))
        outer_buffers = new_outer_buffers(table, *weight_ih.shape)
        add_outer_product(table, array_of(embedding), d_weight_ih.numpy(), outer_buffers)
    num_inner, d_bias = len(packed.inner_bias), torch.from_numpy(gradients.bias)
    d_bias_hh = torch.zeros(num_gates)  # the redundant part gets no gradient
    d_bias_hh[num_gates - num_inner :] = d_bias[num_gates:]
    d_weight_hh = torch.from_numpy(gradients.recurrent)[:, : layer.hidden_size]
    return [*first, d_weight_ih[:, :input_size], d_weight_hh, d_bias[:num_gates], d_bias_hh]
