"""Packing: a network's weights in the layout that the CPU kernels read.

Letters: I input size, H hidden size, N gates * H, V vocabulary, E embedding.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from charrnn.config import ModelConfig
from charrnn.kernels.cells import CELLS
from charrnn.kernels.head import PackedHead
from charrnn.kernels.recurrent import PackedLayer, fold_biases
from charrnn.numerics.products import new_packed, pack, pack_transposed, padded, product
from charrnn.numerics.vectors import Floats, Stored

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
FLOAT32_WEIGHTS = ("embedding.weight", "layers.0.weight_ih_l0")  # the first layer's table is computed from them
PackedPair = tuple[Stored, Stored]  # a weight packed for the forward and for the backward pass
Each = Callable[..., Iterable[Any]]  # a function like `map`, which may call on several threads


class PackedNetwork(NamedTuple):
    """A network's weights in the layout that the CPU kernels read."""

    layers: tuple[PackedLayer, ...]
    head: PackedHead


def pack_network(
    config: ModelConfig,
    weights: Mapping[str, Floats],
    stored: Mapping[str, Stored] | None = None,
    *,
    out: PackedNetwork | None = None,
    each: Each = map,
) -> PackedNetwork:
    """Pack a network's weights.

    weights: the parameters by name, float32. stored: all matrices but FLOAT32_WEIGHTS by name, rounded to the
    products' precision; None means float32. out: what this returned before the weights changed; its memory is reused.
    each: may pack on several threads.
    """
    stored, layers = stored or weights, []
    for index in range(config.num_layers):
        weight_ih, weight_hh, *biases = (f"layers.{index}.{name}" for name in PARAMETERS)
        layers.append(
            pack_layer(
                config.cell,
                stored[weight_ih] if index else weights[weight_ih],
                stored[weight_hh],
                (weights[biases[0]], weights[biases[1]]),
                embedding=None if index else weights["embedding.weight"],
                out=out and out.layers[index],
                each=each,
            )
        )
    head = pack_weight(stored["head.weight"], out and (out.head.weight, out.head.weight_backward))
    return PackedNetwork(tuple(layers), PackedHead(*head, weights["head.bias"]))


def pack_layer(
    cell: str,
    weight_ih: Stored,
    weight_hh: Stored,
    biases: tuple[Floats, Floats],
    *,
    embedding: Floats | None = None,
    out: PackedLayer | None = None,
    each: Each = map,
) -> PackedLayer:
    """Pack a layer's weights (N, I) and (N, H); biases: bias_ih and bias_hh, (N,). out, each: as for pack_network.

    embedding: (V, E) for the first layer, whose input projection becomes a table with a row for each character.
    """
    bias, inner_bias = fold_biases(cell, *biases)
    recurrent = pack_weight(weight_hh, out and (out.recurrent, out.recurrent_backward), each)
    if embedding is None:
        table = np.zeros((0, len(bias)), np.float32)
        inputs = pack_weight(weight_ih, out and (out.input, out.input_backward), each)
    else:
        empty = np.zeros((0, 0, 0), recurrent[0].dtype)
        table, inputs = multiply(embedding, weight_ih, transposed=True) + bias, (empty, empty)
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


def pack_weight(weight: Stored, out: PackedPair | None = None, each: Each = map) -> PackedPair:
    """Pack a weight W (N, K) for products x W^T, and for products x W, which the backward pass needs.

    out: what this returned before the weight changed; its memory is reused.
    """
    forward, backward = out or (new_packed(weight, weight.shape[1], weight.shape[0]), new_packed(weight, *weight.shape))
    list(each(lambda kernel, packed: kernel(weight, packed), (pack_transposed, pack), (forward, backward)))
    return forward, backward


def multiply(a: Stored, weight: Stored, *, transposed: bool = False) -> Floats:
    """Multiply a (M, K) by a weight (K, N), or by the transpose of one (N, K): (M, N). Both are contiguous and float32.

    A library's product rounds differently depending on the alignment of the memory.
    """
    num_columns, depth = weight.shape if transposed else weight.shape[::-1]
    packed = new_packed(weight, depth, num_columns)
    (pack_transposed if transposed else pack)(weight, packed)
    out = np.empty((len(a), padded(num_columns)), np.float32)
    product(a, packed, out)
    return out[:, :num_columns]
