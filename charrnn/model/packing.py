"""Packing: a layer's PyTorch parameters in the layout that the CPU kernels read.

Letters: M rows, I input size, H hidden size, N gates * H, V vocabulary, E embedding.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.config import Precision
from charrnn.kernels.cells import CELLS
from charrnn.kernels.recurrent import PackedLayer, fold_biases
from charrnn.numerics.products import new_packed, pack, pack_transposed, padded, product

Layer = nn.RNN | nn.GRU | nn.LSTM
LAYERS: dict[str, type[Layer]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
PackedPair = tuple[NDArray[Any], NDArray[Any]]  # a weight packed for the forward and for the backward pass
Each = Callable[..., Iterable[Any]]  # a function like `map`, which may call on several threads


def array_of(tensor: Tensor) -> NDArray[Any]:
    """View a CPU tensor as an array; bfloat16 becomes its bits in uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def tensor_of(array: NDArray[Any]) -> Tensor:
    """View an array as a tensor; uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def pack_weight(weight: Tensor, precision: Precision, out: PackedPair | None = None, each: Each = map) -> PackedPair:
    """Pack a weight (N, K) for products x W^T, and for products x W, which the backward pass needs.

    out: what this returned before the weight changed; its memory is reused.
    """
    stored = array_of(weight.to(getattr(torch, precision)))
    forward, backward = out or (new_packed(stored, weight.shape[1], weight.shape[0]), new_packed(stored, *weight.shape))
    list(each(lambda kernel, packed: kernel(stored, packed), (pack_transposed, pack), (forward, backward)))
    return forward, backward


def multiply(a: Tensor, weight: Tensor, *, transposed: bool = False) -> Tensor:
    """Multiply a (M, K) by a weight (K, N), or by the transpose of one (N, K), in float32: (M, N).

    PyTorch's own product rounds differently depending on the alignment of the memory.
    """
    stored = array_of(weight)
    if transposed:
        num_columns, depth = weight.shape
        packed = new_packed(stored, depth, num_columns)
        pack_transposed(stored, packed)
    else:
        depth, num_columns = weight.shape
        packed = new_packed(stored, depth, num_columns)
        pack(stored, packed)
    out = torch.empty(len(a), padded(num_columns))
    product(array_of(a.contiguous()), packed, out.numpy())
    return out[:, :num_columns]


def make_table(embedding: Tensor, weight_ih: Tensor, bias: NDArray[Any]) -> NDArray[Any]:
    """Compute the first layer's input projection of each character: (V, N)."""
    table: NDArray[Any] = multiply(embedding.detach(), weight_ih, transposed=True).numpy() + bias
    return table


@torch.no_grad()
def pack_layer(
    layer: Layer, embedding: Tensor | None, precision: Precision, out: PackedLayer | None = None, each: Each = map
) -> PackedLayer:
    """Pack a layer's weights. embedding: (V, E) for the first layer, None for the others.

    out: what this returned before the weights changed; its memory is reused.
    """
    cell = next(name for name, kind in LAYERS.items() if isinstance(layer, kind))
    weight_ih, weight_hh, bias_ih, bias_hh = (layer.get_parameter(name).detach() for name in PARAMETERS)
    bias, inner_bias = fold_biases(cell, bias_ih.numpy(), bias_hh.numpy())
    recurrent = pack_weight(weight_hh, precision, out and (out.recurrent, out.recurrent_backward), each)
    if embedding is None:
        table = np.zeros((0, len(bias)), np.float32)
        inputs = pack_weight(weight_ih, precision, out and (out.input, out.input_backward), each)
    else:
        table, empty = make_table(embedding, weight_ih, bias), np.zeros((0, 0, 0), recurrent[0].dtype)
        inputs = empty, empty
    return PackedLayer(
        cell=CELLS[cell],
        table=table,
        input=inputs[0],
        recurrent=recurrent[0],
        input_backward=inputs[1],
        recurrent_backward=recurrent[1],
        bias=bias,
        inner_bias=inner_bias,
    )
