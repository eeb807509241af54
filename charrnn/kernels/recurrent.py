"""A recurrent layer over a window: forward, which saves what backward needs, and backward.

One call runs all time steps, so Python's lock is free meanwhile. A step is one product per
operand (products.py) into a float32 buffer, and one pass over each lane's row for everything
elementwise, while the row is in the cache. The input is projected step by step too: with packed
weights the product is as fast for one step as for all, and no projected window has to be
stored. The first layer's projection is a row of a table with one row per character.

A window saves, in numbers per character with H units and s bytes per number (4, or 2 in
bfloat16): outputs H, and H more if a mask drops some; gates 4H for GRU and LSTM; the
LSTM's cells H. So 5 s H bytes for the GRU, 6 s H for the LSTM, s H for the RNN. The gates'
gradients exist for a few steps only.

Letters: T steps, B lanes, I input size, H hidden size, N gates * H, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.cells import (
    GRU,
    LSTM,
    RNN,
    gru_step,
    gru_step_backward,
    lstm_step,
    lstm_step_backward,
    rnn_step,
    rnn_step_backward,
)
from charrnn.numerics.compilation import compiled
from charrnn.numerics.products import (
    PANEL_DEPTH,
    add_outer_product,
    new_outer_buffers,
    padded,
    product,
    values_per_word,
)
from charrnn.numerics.vectors import Floats, Stored, narrow, widen


class PackedLayer(NamedTuple):
    """A layer's weights in the layout that its products read.

    cell: from cells.CELLS. table: (V, N) float32 of the first layer, bias included, else (0, N).
    input, recurrent: packed (I, N) and (H, N); input_backward, recurrent_backward: packed (N, I)
    and (N, H). bias: (N,), without the bias inside the GRU's candidate, which is inner_bias (H,).
    """

    cell: int
    table: Floats
    input: Stored
    recurrent: Stored
    input_backward: Stored
    recurrent_backward: Stored
    bias: Floats
    inner_bias: Floats


class Activations(NamedTuple):
    """What forward reads and writes in a window, and backward reads again.

    ids: (T, B), the first layer's input; x: (T, B, I), that of the others. resets: (T, B), where a
    lane's state is set to zeros before the step. mask: (B, H) for the outputs, or (0, 0). y:
    (T + 1, B, H), the state before and the outputs; cells: the same for the LSTM's c. gates:
    (T, B, 4H), [r | z | n | W_hn h] or [i | f | g | o]; or (1, B, 4H) if backward won't follow.
    """

    ids: NDArray[np.int64]
    x: Stored
    resets: NDArray[np.bool_]
    mask: Floats
    y: Stored
    gates: Stored
    cells: Stored


class WeightGradients(NamedTuple):
    """Gradients of a layer's weights.

    table: (V, N) of the first layer; input: (N, padded(I)) of the others; recurrent: (N, padded(H));
    bias: (N,), where the GRU's (4H,) ends with that of inner_bias.
    """

    table: Floats
    input: Floats
    recurrent: Floats
    bias: Floats


def fold_biases(cell: str, bias_ih: Floats, bias_hh: Floats) -> tuple[Floats, Floats]:
    """Add a layer's two biases (N,), and return the part of bias_hh inside the GRU's candidate apart, (H,) or (0,)."""
    inner = len(bias_hh) // 3 if cell == "gru" else 0
    outer = len(bias_hh) - inner
    bias = np.array(bias_ih)
    bias[:outer] += bias_hh[:outer]
    return bias, np.array(bias_hh[outer:])


@compiled
def forward(packed: PackedLayer, saved: Activations, h: Floats, c: Floats, masked: Stored) -> None:
    """Run a layer over a window.

    saved: y, gates and cells are filled in. h, c: (B, H), the state, updated in place. masked:
    (T, B, H), filled with the outputs times the mask if there is one.
    """
    ids, x, resets, mask, y, gates, cells = saved
    num_steps, num_lanes, size = y.shape[0] - 1, y.shape[1], y.shape[2]
    width = padded(len(packed.bias))
    projected, recurrent = np.empty((num_lanes, width), np.float32), np.empty((num_lanes, width), np.float32)
    scratch = np.empty(width, np.float32)
    for b in range(num_lanes):
        narrow(h[b], y[0, b])
        if packed.cell == LSTM:
            narrow(c[b], cells[0, b])
    for t in range(num_steps):
        if len(packed.table) == 0:
            product(x[t], packed.input, projected)
        product(y[t], packed.recurrent, recurrent)
        step_gates = gates[t % len(gates)]
        for b in range(num_lanes):
            p, r = projected[b, : len(packed.bias)], recurrent[b, : len(packed.bias)]
            if resets[t, b]:
                r[:], h[b], c[b] = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            if len(packed.table) > 0:
                p = packed.table[ids[t, b]]
            else:
                for i in range(len(p)):
                    p[i] += packed.bias[i]
            if packed.cell == RNN:
                rnn_step(p, r, h[b])
            elif packed.cell == GRU:
                n = r[2 * size :]
                for i in range(size):
                    n[i] += packed.inner_bias[i]
                narrow(n, step_gates[b, 3 * size :])
                gru_step(p, r, h[b])
                narrow(r, step_gates[b, : 3 * size])
            else:
                lstm_step(p, r, h[b], c[b])
                narrow(r, step_gates[b])
                narrow(c[b], cells[t + 1, b])
            narrow(h[b], y[t + 1, b])
            if len(mask) > 0:
                for i in range(size):
                    scratch[i] = h[b, i] * mask[b, i]
                narrow(scratch[:size], masked[t, b])


@compiled
def add_to(source: Floats, out: Floats) -> None:
    """Add source to out, both (n,)."""
    for i in range(len(source)):
        out[i] += source[i]


@compiled
def reset_gradients(resets: NDArray[np.bool_], carry: Floats, dh: Floats, dc: Floats) -> None:
    """Zero the gradients, (B, …) each, of the states before a reset. resets: (B,)."""
    for b in range(len(resets)):
        if resets[b]:
            carry[b], dh[b], dc[b] = np.float32(0.0), np.float32(0.0), np.float32(0.0)


@compiled
def output_gradient(dy: Stored, mask: Floats, dh: Floats, carry: Floats, d: Floats) -> None:
    """Fill d, (H,), with dL/dh': through the output and its mask (1, H) or (0, …), and from the next step."""
    widen(dy, d)
    if len(mask) > 0:
        for i in range(len(d)):
            d[i] *= mask[0, i]
    for i in range(len(d)):
        d[i] += dh[i] + carry[i]


@compiled
def backward(
    packed: PackedLayer,
    saved: Activations,
    dy: Stored,
    dh: Floats,
    dc: Floats,
    dx: Stored,
    out: WeightGradients,
) -> None:
    """Backpropagate through a layer's window.

    saved: as forward left it. dy: (T, B, H), of the outputs, after the mask if there is one. dh, dc:
    (B, H), of the state after the window; they become those of the state before. dx: (T, B, I),
    filled in, but not by the first layer. out: the weights' gradients are added to it.
    """
    ids, x, resets, mask, y, gates, cells = saved
    num_steps, num_lanes, size = dy.shape
    width, is_first = len(packed.bias), len(packed.table) > 0
    carry = np.zeros((num_lanes, padded(size)), np.float32)
    inputs = np.empty((num_lanes, padded(dx.shape[2])), np.float32)
    scratch, d = np.empty(6 * size, np.float32), np.empty(size, np.float32)
    # the weights' gradients are added every few steps, while the gates' gradients are in the cache
    chunk = max(1, PANEL_DEPTH * values_per_word(dy) // num_lanes)
    d_gates = np.empty((chunk * num_lanes, width), dy.dtype)  # of the pre-activations, for the recurrent weight
    d_outer = np.empty_like(d_gates) if packed.cell == GRU and not is_first else d_gates  # for the input weight
    buffers = new_outer_buffers(dy, width, max(size, dx.shape[2]))
    zeros = np.zeros(size, dy.dtype)  # the state after a reset
    for stop in range(num_steps, 0, -chunk):
        start = max(0, stop - chunk)
        before = y[start:stop]
        if resets[start:stop].any():
            before = before.copy()  # a reset state replaces an output, which must stay in y
        for t in range(stop - 1, start - 1, -1):
            row, next_row = (t - start) * num_lanes, (t - start + 1) * num_lanes
            for b in range(num_lanes):
                if resets[t, b]:
                    before[t - start, b] = zeros[0]  # a number: an array's assignment takes seconds to compile
                output_gradient(dy[t, b], mask[b : b + 1], dh[b], carry[b], d)
                if packed.cell == RNN:
                    rnn_step_backward(d, y[t + 1, b], scratch)
                elif packed.cell == GRU:
                    gru_step_backward(d, before[t - start, b], gates[t, b], scratch)
                else:
                    old_cell = zeros if resets[t, b] else cells[t, b]
                    lstm_step_backward(d, dc[b], old_cell, cells[t + 1, b], gates[t, b], scratch)
                for i in range(size):
                    dh[b, i] = d[i]
                add_to(scratch[: len(out.bias)], out.bias)
                if is_first:
                    add_to(scratch[:width], out.table[ids[t, b]])
                elif packed.cell == GRU:
                    narrow(scratch[:width], d_outer[row + b])
                if packed.cell == GRU:
                    for i in range(size):
                        scratch[2 * size + i] = scratch[3 * size + i]
                narrow(scratch[:width], d_gates[row + b])
            product(d_gates[row:next_row], packed.recurrent_backward, carry)
            reset_gradients(resets[t], carry, dh, dc)
            if not is_first:
                product(d_outer[row:next_row], packed.input_backward, inputs)
                for b in range(num_lanes):
                    narrow(inputs[b, : dx.shape[2]], dx[t, b])
        count = (stop - start) * num_lanes
        add_outer_product(d_gates[:count], before.reshape(count, size), out.recurrent, buffers)
        if not is_first:
            add_outer_product(d_outer[:count], x[start:stop].reshape(count, x.shape[2]), out.input, buffers)
    for b in range(num_lanes):
        for i in range(size):
            dh[b, i] += carry[b, i]
