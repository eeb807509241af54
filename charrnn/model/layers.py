"""Recurrent layers: RNN (tanh), GRU and LSTM behind one contract.

A layer is a stock single-layer `torch.nn` module, so its parameters are named and laid out
as PyTorch's. `run_layer` runs it by our own kernels (kernels/recurrent.py): on a CPU, in
float32 or bfloat16 by how its weights were packed; `forward_window` and `backward_window` are
its two halves, on arrays. `run_stock_layer` leaves it to cuDNN on a GPU, and to PyTorch in
float64.

Letters: T steps, B lanes, I input size, H hidden size, N gates * H, V vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from charrnn.config import Precision
from charrnn.kernels import recurrent
from charrnn.kernels.products import add_outer_product, new_packed, new_sides, pack, pack_transposed, padded, product
from charrnn.kernels.recurrent import Packed
from charrnn.kernels.vectors import Floats

Layer = nn.RNN | nn.GRU | nn.LSTM
LAYERS: dict[str, type[Layer]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
HiddenState = tuple[Tensor, ...]  # h, and for the LSTM also c; each (B, H) for one layer
PackedPair = tuple[NDArray[Any], NDArray[Any]]  # a weight packed for the way there, and for the way back


class Buffers:
    """Arrays that a window leaves warm for the next one of its size: new pages cost more than what is done in them.

    What a window finds there is good until the next one.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def empty(self, name: str, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        """The array of that name, whatever is in it, aligned as PyTorch's."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            stored = torch.empty(shape, dtype=torch.int16 if dtype == np.uint16 else torch.float32)
            array = self._arrays[name] = stored.numpy().view(dtype)
        return array

    def zeros(self, name: str, *shape: int) -> Floats:
        """The same in float32, all zero."""
        array = self.empty(name, *shape)
        array.fill(0.0)
        return array


def make_layer(cell: str, input_size: int, hidden_size: int) -> Layer:
    """Build one layer whose redundant biases are zero and stay zero.

    Every gate but the GRU's candidate adds bias_ih and bias_hh, so one of them is free.
    It is fixed at zero, by masking its gradient, so that kernels need only the other.
    """
    layer = LAYERS[cell](input_size, hidden_size)
    bias_hh = layer.get_parameter("bias_hh_l0")
    used = torch.zeros_like(bias_hh)
    if cell == "gru":
        used[2 * hidden_size :] = 1.0  # inside the reset gate's product, hence not redundant
    with torch.no_grad():
        bias_hh.mul_(used)
    layer.register_buffer("bias_is_used", used, persistent=False)  # goes to the device that the layer goes to
    bias_hh.register_hook(lambda gradient: gradient * layer.bias_is_used)  # type: ignore[no-untyped-call]
    return layer


def is_fused(layer: nn.Module) -> bool:
    """Whether our kernels run it: float32 on a CPU."""
    weight = next(layer.parameters())
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor's memory as numpy's; bfloat16 as the bits of it, uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def tensor_of(array: NDArray[Any]) -> Tensor:
    """The same the other way round."""
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == np.uint16
        else torch.from_numpy(array)
    )


def pack_weight(weight: Tensor, precision: Precision, out: PackedPair | None = None) -> PackedPair:
    """A weight (N, K) for products x W^T, and for products x W, which take gradients back.

    out: what this returned before the weight changed; its memory is used again.
    """
    stored = array_of(weight.to(getattr(torch, precision)))
    there, back = out or (new_packed(stored, weight.shape[1], weight.shape[0]), new_packed(stored, *weight.shape))
    pack_transposed(stored, there)
    pack(stored, back)
    return there, back


def multiply(a: Tensor, packed: NDArray[Any], num_columns: int) -> Tensor:
    """a (M, K) times what is packed, in float32: (M, num_columns). PyTorch's own rounds as memory happens to lie."""
    out = torch.empty(len(a), padded(num_columns))
    product(array_of(a.contiguous()), packed, out.numpy())
    return out[:, :num_columns]


def make_table(embedding: Tensor, weight_ih: Tensor, bias: NDArray[Any]) -> NDArray[Any]:
    """The first layer's input projection, one row a character: (V, N)."""
    products = multiply(embedding.detach(), pack_weight(weight_ih, "float32")[0], len(bias))
    table: NDArray[Any] = products.numpy() + bias
    return table


@torch.no_grad()
def pack_layer(layer: Layer, embedding: Tensor | None, precision: Precision, out: Packed | None = None) -> Packed:
    """Lay a layer's weights out for the kernels; the first layer's around the embedding (V, E).

    out: what this returned before the weights changed; its memory is used again.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = (layer.get_parameter(name).detach() for name in _NAMES)
    bias, inner_bias = recurrent.fold_biases(_cell(layer), bias_ih.numpy(), bias_hh.numpy())
    nothing = np.zeros((0, 0, 0), np.float32 if precision == "float32" else np.uint16)
    recurrent_both = pack_weight(weight_hh, precision, out and (out.recurrent, out.recurrent_back))
    if embedding is None:
        table = np.zeros((0, len(bias)), np.float32)
        input_both = pack_weight(weight_ih, precision, out and (out.input, out.input_back))
    else:
        table, input_both = make_table(embedding, weight_ih, bias), (nothing, nothing)
    return Packed(
        cell=recurrent.CELLS[_cell(layer)],
        table=table,
        input=input_both[0],
        recurrent=recurrent_both[0],
        input_back=input_both[1],
        recurrent_back=recurrent_both[1],
        bias=bias,
        inner_bias=inner_bias,
    )


def run_layer(
    layer: Layer,
    x: Tensor,
    state: HiddenState,
    *,
    packed: Packed,
    embedding: Tensor | None = None,
    resets: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, HiddenState]:
    """Run a layer over a window with our kernels.

    x: (T, B) ids with the embedding (V, E) for the first layer, else (T, B, I) in the packed
    weights' precision; state: tensors (B, H); resets: (T, B), where a lane begins anew, from a
    state of zeros, or None; mask: (B, H) factors for the outputs. Returns outputs (T, B, H) in that
    precision and the state after the last step, in float32.
    """
    parameters = [layer.get_parameter(name) for name in _NAMES]
    resets = torch.zeros(x.shape[:2], dtype=torch.bool) if resets is None else resets
    y, *after = _Layer.apply(packed, layer, x, resets, embedding, mask, *parameters, *state)  # type: ignore[no-untyped-call]
    return y, tuple(after)


def run_stock_layer(
    layer: Layer, x: Tensor, state: HiddenState, *, resets: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, HiddenState]:
    """Run a layer over a window with PyTorch's own or cuDNN; as run_layer, but x is (T, B, I).

    These layers know nothing of resets, so where there may be some it runs step by step.
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


_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def _cell(layer: Layer) -> str:
    return next(name for name, kind in LAYERS.items() if isinstance(layer, kind))


class SavedActivations(NamedTuple):
    """What a layer's way there leaves for its way back; as in kernels/recurrent.py, where it says how much that is."""

    ids: NDArray[np.int64]
    x: NDArray[Any]
    resets: NDArray[np.bool_]
    mask: Floats
    y: NDArray[Any]
    gates: NDArray[Any]
    cells: NDArray[Any]


class WeightGradients(NamedTuple):
    """What a layer's way back adds up over a window; as in recurrent.backward."""

    table: Floats
    input: Floats
    recurrent: Floats
    gates: Floats


def forward_window(
    packed: Packed,
    x: NDArray[Any],
    resets: NDArray[np.bool_],
    h: Floats,
    c: Floats,
    mask: Floats | None,
    buffers: Buffers,
    *,
    needs_backward: bool,
) -> tuple[NDArray[Any], SavedActivations]:
    """Run a layer over a window: its outputs (T, B, H), stored as its weights are, and what backward_window needs.

    x: (T, B) ids for the first layer, else (T, B, I); resets: (T, B); h, c: (B, H), which become the
    state after the window, both the same unless there are two; mask: (B, H) or None; all
    contiguous. keep: whether there is a way back.
    """
    num_steps, num_lanes, size, is_first = *x.shape[:2], h.shape[1], len(packed.table) > 0
    dtype = packed.recurrent.dtype
    # the kernels trust what they are given
    assert all(part.shape == (num_lanes, size) and part.dtype == np.float32 for part in (h, c))
    assert resets.shape == x.shape[:2]
    assert mask is None or (mask.shape == (num_lanes, size) and mask.dtype == np.float32)
    assert not is_first or (x.min() >= 0 and x.max() < len(packed.table))
    nothing = np.empty((0, 0, 0), dtype)
    y = buffers.empty("y", num_steps + 1, num_lanes, size, dtype=dtype)
    masked = nothing if mask is None else buffers.empty("masked", num_steps, num_lanes, size, dtype=dtype)
    width = 0 if packed.cell == recurrent.RNN else 4 * size
    saved = SavedActivations(
        ids=x if is_first else np.empty((0, 0), np.int64),
        x=nothing if is_first else x,
        resets=resets,
        mask=np.empty((0, 0), np.float32) if mask is None else mask,
        y=y,
        gates=buffers.empty("gates", num_steps if needs_backward else 1, num_lanes, width, dtype=dtype),
        cells=buffers.empty("cells", *y.shape, dtype=dtype) if packed.cell == recurrent.LSTM else nothing,
    )
    recurrent.forward(packed, saved.ids, resets, saved.x, h, c, saved.mask, y, masked, saved.gates, saved.cells)
    return (y[1:] if mask is None else masked), saved


def backward_window(
    packed: Packed, saved: SavedActivations, dy: NDArray[Any], dh: Floats, dc: Floats, buffers: Buffers
) -> tuple[NDArray[Any], WeightGradients]:
    """From the gradient of a layer's outputs to that of its inputs, (T, B, I), none for ids, and to its weights' sums.

    dy: (T, B, H), stored as the weights are; dh, dc: (B, H), of the state after the window, which
    become those of the state before.
    """
    num_gates, size = len(packed.bias), saved.y.shape[2]
    dx = buffers.empty("dx", *saved.x.shape, dtype=dy.dtype)
    sums = WeightGradients(
        table=buffers.zeros("table", *packed.table.shape),
        input=buffers.zeros("input", 0 if len(packed.table) else num_gates, padded(dx.shape[2])),
        recurrent=buffers.zeros("recurrent", num_gates, padded(size)),
        gates=buffers.zeros("sums", num_gates + len(packed.inner_bias)),
    )
    ids, x, resets, mask, y, gates, cells = saved
    there = ids, resets, x, dy, dh, dc, mask, y, gates, cells
    recurrent.backward(packed, *there, dx, sums.table, sums.input, sums.recurrent, sums.gates)
    return dx, sums


def parameter_gradients(packed: Packed, sums: WeightGradients, layer: Layer, embedding: Tensor | None) -> list[Tensor]:
    """The gradients of the embedding (V, E), in the first layer, and of the layer's parameters, in their order."""
    first, weight_ih = [], layer.get_parameter("weight_ih_l0").detach()
    num_gates, input_size = weight_ih.shape
    d_weight_ih = torch.from_numpy(sums.input)
    if embedding is not None:  # the table is their product, and the bias
        table = sums.table
        first = [multiply(torch.from_numpy(table), pack_weight(weight_ih, "float32")[1], input_size)]
        d_weight_ih = torch.zeros(num_gates, padded(input_size))
        add_outer_product(table, array_of(embedding), d_weight_ih.numpy(), new_sides(table, *weight_ih.shape))
    num_inner, d_gates = len(packed.inner_bias), torch.from_numpy(sums.gates)
    d_bias_hh = torch.zeros(num_gates)  # the redundant part gets none
    d_bias_hh[num_gates - num_inner :] = d_gates[num_gates:]
    d_weight_hh = torch.from_numpy(sums.recurrent)[:, : layer.hidden_size]
    return [*first, d_weight_ih[:, :input_size], d_weight_hh, d_gates[:num_gates], d_bias_hh]


class _Layer(torch.autograd.Function):
    """One layer over one window, for whatever asks PyTorch for gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        packed: Packed,
        layer: Layer,
        x: Tensor,
        resets: Tensor,
        embedding: Tensor | None,
        mask: Tensor | None,
        *rest: Tensor,
    ) -> Any:
        state = [part.clone(memory_format=torch.contiguous_format) for part in rest[len(_NAMES) :]]
        masks, needs_backward = None if mask is None else mask.numpy(), any(ctx.needs_input_grad)
        arrays = array_of(x.contiguous()), resets.contiguous().numpy(), state[0].numpy(), state[-1].numpy()
        y, ctx.saved = forward_window(packed, *arrays, masks, Buffers(), needs_backward=needs_backward)
        ctx.packed, ctx.layer, ctx.embedding = packed, layer, embedding
        ctx.set_materialize_grads(True)
        return (tensor_of(y), *state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *d_state: Tensor) -> Any:
        packed, before = ctx.packed, [part.clone() for part in d_state]
        stored = array_of(dy.to(tensor_of(ctx.saved.y).dtype).contiguous())
        dx, sums = backward_window(packed, ctx.saved, stored, before[0].numpy(), before[-1].numpy(), Buffers())
        gradients = parameter_gradients(packed, sums, ctx.layer, ctx.embedding)
        if ctx.embedding is None:
            return (None, None, tensor_of(dx), None, None, None, *gradients, *before)
        return (None, None, None, None, gradients[0], None, *gradients[1:], *before)
