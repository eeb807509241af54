"""A recurrent layer over a window: forward, storing what backward needs, and backward.

One call runs all time steps, so Python's lock is free meanwhile. A step is one product per
operand (products.py) into a float32 scratch and one pass over each lane's row: everything
elementwise, while the row is in the cache. The projection of the input happens step by step
too: packed, the product is as fast for one step as for all, and no projected window has to
be kept. The first layer's projection is a row of a table, one a character.

What a window stores, in numbers per character, H units and s bytes a number (4, or 2 in
bfloat16): outputs H, and once more where a mask drops some; gates 4H in GRU and LSTM; the
LSTM's cells H. So 5 s H bytes for the GRU, 6 s H for the LSTM, s H for the RNN. The gates'
gradients live for a few steps only.

Letters: T steps, B lanes, I input size, H hidden size, N gates * H, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.compilation import compiled
from charrnn.kernels.products import STEPS, add_outer_product, new_sides, padded, product, step_size
from charrnn.kernels.vectors import Floats, Stored, narrow, sigmoid, tanh, widen

RNN, GRU, LSTM = 0, 1, 2
CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class Packed(NamedTuple):
    """A layer's weights as its products read them.

    cell: from CELLS. table: (V, N) float32, of the first layer, bias included, else (0, N).
    input, recurrent: packed (I, N) and (H, N); input_back, recurrent_back: packed (N, I) and
    (N, H). bias: (N,), all of it but the part inside the GRU's candidate, which is inner_bias
    (H,).
    """

    cell: int
    table: Floats
    input: Stored
    recurrent: Stored
    input_back: Stored
    recurrent_back: Stored
    bias: Floats
    inner_bias: Floats


def fold_biases(cell: str, bias_ih: Floats, bias_hh: Floats) -> tuple[Floats, Floats]:
    """What a layer's two biases (N,) add up to, and the part of bias_hh inside the GRU's candidate, (H,) or (0,)."""
    inner = len(bias_hh) // 3 if cell == "gru" else 0
    outer = len(bias_hh) - inner
    bias = np.array(bias_ih)
    bias[:outer] += bias_hh[:outer]
    return bias, np.array(bias_hh[outer:])


@compiled
def rnn_step(projected: Floats, recurrent: Floats, h: Floats) -> None:
    """h' = tanh(projected + recurrent), all (H,); projected is W_ih x + b_ih, recurrent W_hh h + b_hh."""
    for i in range(len(h)):
        h[i] = tanh(projected[i] + recurrent[i])


@compiled
def gru_step(projected: Floats, recurrent: Floats, h: Floats) -> None:
    """The GRU with the reset gate applied after the product, as torch.nn.GRU and cuDNN have it.

    projected: (3H,); recurrent: (3H,), becomes r, z, n; h: (H,). Source: Cho et al. 2014.
    """
    size = len(h)
    z, n, candidate = recurrent[size : 2 * size], recurrent[2 * size :], projected[2 * size :]
    for i in range(2 * size):
        recurrent[i] = sigmoid(projected[i] + recurrent[i])
    for i in range(size):
        n[i] = tanh(candidate[i] + recurrent[i] * n[i])
    for i in range(size):
        h[i] = n[i] + z[i] * (h[i] - n[i])


@compiled
def lstm_step(projected: Floats, recurrent: Floats, h: Floats, c: Floats) -> None:
    """The LSTM with a forget gate. projected: (4H,); recurrent: (4H,), becomes i, f, g, o; h, c: (H,).

    Source: Gers et al. 2000.
    """
    size = len(h)
    f, g, o = recurrent[size : 2 * size], recurrent[2 * size : 3 * size], recurrent[3 * size :]
    cell, out = projected[2 * size :], projected[3 * size :]
    for i in range(2 * size):
        recurrent[i] = sigmoid(projected[i] + recurrent[i])
    for i in range(size):
        g[i] = tanh(cell[i] + g[i])
    for i in range(size):
        o[i] = sigmoid(out[i] + o[i])
    for i in range(size):
        c[i] = f[i] * c[i] + recurrent[i] * g[i]
    for i in range(size):
        h[i] = o[i] * tanh(c[i])


@compiled
def forward(
    packed: Packed,
    ids: NDArray[np.int64],
    resets: NDArray[np.bool_],
    x: Stored,
    h: Floats,
    c: Floats,
    mask: Floats,
    y: Stored,
    masked: Stored,
    gates: Stored,
    cells: Stored,
) -> None:
    """Run a layer.

    ids: (T, B), read by the first layer; x: (T, B, I), read by the others. resets: (T, B), where
    a lane begins anew, from a state of zeros. h, c: (B, H), the state, changed in place. y:
    (T + 1, B, H), the state before and the outputs; cells the same for the LSTM's c. mask:
    (B, H), with masked (T, B, H) for the outputs times it, or (0, 0). gates: (T, B, 4H) to keep
    what backward needs ([r | z | n | W_hn h] or [i | f | g | o]), or (1, B, 4H) not to.
    """
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
        kept = gates[t % len(gates)]
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
                narrow(n, kept[b, 3 * size :])
                gru_step(p, r, h[b])
                narrow(r, kept[b, : 3 * size])
            else:
                lstm_step(p, r, h[b], c[b])
                narrow(r, kept[b])
                narrow(c[b], cells[t + 1, b])
            narrow(h[b], y[t + 1, b])
            if len(mask) > 0:
                for i in range(size):
                    scratch[i] = h[b, i] * mask[b, i]
                narrow(scratch[:size], masked[t, b])


@compiled
def add_rows(source: Floats, out: Floats) -> None:
    """out += source, both (n,)."""
    for i in range(len(source)):
        out[i] += source[i]


@compiled
def forget(resets: NDArray[np.bool_], carry: Floats, dh: Floats, dc: Floats) -> None:
    """Let no gradient, (B, …) each, reach what lies before a lane's new beginning. resets: (B,)."""
    for b in range(len(resets)):
        if resets[b]:
            carry[b], dh[b], dc[b] = np.float32(0.0), np.float32(0.0), np.float32(0.0)


@compiled
def output_gradient(dy: Stored, mask: Floats, dh: Floats, carry: Floats, d: Floats) -> None:
    """Fill d, (H,), with dL/dh' by way of the output, through its mask (1, H) or (0, …), and of the step after."""
    widen(dy, d)
    if len(mask) > 0:
        for i in range(len(d)):
            d[i] *= mask[0, i]
    for i in range(len(d)):
        d[i] += dh[i] + carry[i]


@compiled
def rnn_back(d: Floats, after: Stored, scratch: Floats) -> None:
    """From d = dL/dh', (H,), to the gradient of the gate's sum, in scratch (H,…).

    after: h', (H,). d becomes what reaches h past the product, which is nothing.
    """
    widen(after, scratch[: len(d)])
    for i in range(len(d)):
        scratch[i] = d[i] * (np.float32(1.0) - scratch[i] * scratch[i])
    for i in range(len(d)):
        d[i] = np.float32(0.0)


@compiled
def gru_back(d: Floats, before: Stored, kept: Stored, scratch: Floats) -> None:
    """From d = dL/dh', (H,), and kept [r | z | n | W_hn h], (4H,), to the gradients of their sums.

    They go to the front of scratch (6H,) in the same order. before: h, (H,). d becomes what
    reaches h past the products.
    """
    size = len(d)
    r, z, n = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    inner, g, h = scratch[3 * size : 4 * size], scratch[4 * size : 5 * size], scratch[5 * size :]
    widen(kept, scratch[: 4 * size])
    widen(before, h)
    one = np.float32(1.0)
    for i in range(size):
        g[i] = d[i] * (one - z[i]) * (one - n[i] * n[i])
    for i in range(size):
        h[i] = (h[i] - n[i]) * d[i]
    for i in range(size):
        d[i] *= z[i]
        z[i] = h[i] * z[i] * (one - z[i])
    for i in range(size):
        n[i] = g[i]
    for i in range(size):
        reset = r[i]
        r[i] = g[i] * inner[i] * reset * (one - reset)
        inner[i] = g[i] * reset


@compiled
def lstm_back(d: Floats, dc: Floats, before: Stored, after: Stored, kept: Stored, scratch: Floats) -> None:
    """From d = dL/dh', dc = dL/dc', (H,), and kept [i | f | g | o], (4H,), to the gradients of their sums.

    They go to the front of scratch (6H,). before, after: c and c', (H,). dc becomes dL/dc, and
    d what reaches h past the product, which is nothing.
    """
    size = len(d)
    i, f, g = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    o, c = scratch[3 * size : 4 * size], scratch[4 * size : 5 * size]
    widen(kept, scratch[: 4 * size])
    widen(after, c)
    one = np.float32(1.0)
    for k in range(size):
        c[k] = tanh(c[k])
    for k in range(size):
        dc[k] += d[k] * o[k] * (one - c[k] * c[k])
    for k in range(size):
        o[k] = d[k] * c[k] * o[k] * (one - o[k])
    widen(before, c)
    for k in range(size):
        c[k] *= dc[k] * f[k] * (one - f[k])
    for k in range(size):
        old = i[k]
        i[k] = dc[k] * g[k] * old * (one - old)
        g[k] = dc[k] * old * (one - g[k] * g[k])
    for k in range(size):
        dc[k] *= f[k]
        f[k] = c[k]
    for k in range(size):
        d[k] = np.float32(0.0)


@compiled
def backward(
    packed: Packed,
    ids: NDArray[np.int64],
    resets: NDArray[np.bool_],
    x: Stored,
    dy: Stored,
    dh: Floats,
    dc: Floats,
    mask: Floats,
    y: Stored,
    gates: Stored,
    cells: Stored,
    dx: Stored,
    d_table: Floats,
    d_input: Floats,
    d_recurrent: Floats,
    d_sums: Floats,
) -> None:
    """Run the mirrored loop, and every few steps add to the weights' gradients while those of the gates are hot.

    dy: (T, B, H), of the outputs, after the mask if there is one; gates, cells, y as forward
    left them, resets as it had them. dh, dc: (B, H), of the state after the window, which become
    those of the state before. All the others are added to: d_recurrent (N, padded(H)); d_sums, of the gates' sums
    themselves: (N,), the GRU's (4H,); the first layer's d_table (V, N), of the others d_input
    (N, padded(I)). These also fill dx (T, B, I).
    """
    num_steps, num_lanes, size = dy.shape
    width, is_first = len(packed.bias), len(packed.table) > 0
    carry = np.zeros((num_lanes, padded(size)), np.float32)
    inputs = np.empty((num_lanes, padded(dx.shape[2])), np.float32)
    scratch, d = np.empty(6 * size, np.float32), np.empty(size, np.float32)
    at_once = max(1, STEPS * step_size(dy) // num_lanes)
    d_gates = np.empty((at_once * num_lanes, width), dy.dtype)  # of the gates' sums, as the recurrent weights see them
    d_outer = np.empty_like(d_gates) if packed.cell == GRU and not is_first else d_gates  # as the input's do
    sides = new_sides(dy, width, max(size, dx.shape[2]))
    nothing = np.zeros(size, dy.dtype)  # the state where a lane begins anew
    for stop in range(num_steps, 0, -at_once):
        start = max(0, stop - at_once)
        before = y[start:stop]  # which elsewhere are outputs, and stay
        if resets[start:stop].any():
            before = before.copy()
        for t in range(stop - 1, start - 1, -1):
            row, next_row = (t - start) * num_lanes, (t - start + 1) * num_lanes
            for b in range(num_lanes):
                if resets[t, b]:
                    before[t - start, b] = nothing[0]  # a number: an array's assignment takes seconds to compile
                output_gradient(dy[t, b], mask[b : b + 1], dh[b], carry[b], d)
                if packed.cell == RNN:
                    rnn_back(d, y[t + 1, b], scratch)
                elif packed.cell == GRU:
                    gru_back(d, before[t - start, b], gates[t, b], scratch)
                else:
                    old_cell = nothing if resets[t, b] else cells[t, b]
                    lstm_back(d, dc[b], old_cell, cells[t + 1, b], gates[t, b], scratch)
                for i in range(size):
                    dh[b, i] = d[i]
                add_rows(scratch[: len(d_sums)], d_sums)
                if is_first:
                    add_rows(scratch[:width], d_table[ids[t, b]])
                elif packed.cell == GRU:
                    narrow(scratch[:width], d_outer[row + b])
                if packed.cell == GRU:
                    for i in range(size):
                        scratch[2 * size + i] = scratch[3 * size + i]
                narrow(scratch[:width], d_gates[row + b])
            product(d_gates[row:next_row], packed.recurrent_back, carry)
            forget(resets[t], carry, dh, dc)
            if not is_first:
                product(d_outer[row:next_row], packed.input_back, inputs)
                for b in range(num_lanes):
                    narrow(inputs[b, : dx.shape[2]], dx[t, b])
        count = (stop - start) * num_lanes
        add_outer_product(d_gates[:count], before.reshape(count, size), d_recurrent, sides)
        if not is_first:
            add_outer_product(d_outer[:count], x[start:stop].reshape(count, x.shape[2]), d_input, sides)
    for b in range(num_lanes):
        for i in range(size):
            dh[b, i] += carry[b, i]
