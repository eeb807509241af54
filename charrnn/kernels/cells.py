"""One step of each recurrent cell for one lane, forward and backward: everything but the products.

Letters: H hidden size.
"""

import numpy as np

from charrnn.numerics.compilation import compiled
from charrnn.numerics.vectors import Floats, Stored, sigmoid, tanh, widen

RNN, GRU, LSTM = 0, 1, 2
CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


@compiled
def rnn_step(projected: Floats, recurrent: Floats, h: Floats) -> None:
    """Compute h' = tanh(projected + recurrent), all (H,). projected is W_ih x + b_ih, recurrent is W_hh h + b_hh."""
    for i in range(len(h)):
        h[i] = tanh(projected[i] + recurrent[i])


@compiled
def gru_step(projected: Floats, recurrent: Floats, h: Floats) -> None:
    """Compute h' of a GRU whose reset gate is applied after the product, as in torch.nn.GRU and cuDNN.

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
    """Compute h' and c' of an LSTM with a forget gate.

    projected: (4H,); recurrent: (4H,), becomes i, f, g, o; h, c: (H,). Source: Gers et al. 2000.
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
def rnn_step_backward(d: Floats, after: Stored, scratch: Floats) -> None:
    """From d = dL/dh', (H,), compute the gradient of the pre-activation, in scratch (H, …).

    after: h', (H,). d becomes the gradient that reaches h past the product, which is zero.
    """
    widen(after, scratch[: len(d)])
    for i in range(len(d)):
        scratch[i] = d[i] * (np.float32(1.0) - scratch[i] * scratch[i])
    for i in range(len(d)):
        d[i] = np.float32(0.0)


@compiled
def gru_step_backward(d: Floats, before: Stored, saved: Stored, scratch: Floats) -> None:
    """From d = dL/dh', (H,), and the saved gates, compute the gradients of their pre-activations.

    saved: [r | z | n | W_hn h], (4H,); before: h, (H,). The gradients fill the first 4H of scratch
    (6H,) in that order. d becomes the gradient that reaches h past the products.
    """
    size = len(d)
    r, z, n = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    inner, g, h = scratch[3 * size : 4 * size], scratch[4 * size : 5 * size], scratch[5 * size :]
    widen(saved, scratch[: 4 * size])
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
def lstm_step_backward(d: Floats, dc: Floats, before: Stored, after: Stored, saved: Stored, scratch: Floats) -> None:
    """From d = dL/dh', dc = dL/dc', (H,), and the saved gates, compute the gradients of their pre-activations.

    saved: [i | f | g | o], (4H,); before, after: c and c', (H,). The gradients fill the first 4H of
    scratch (6H,) in that order. dc becomes dL/dc. d becomes the gradient that reaches h past the
    product, which is zero.
    """
    size = len(d)
    i, f, g = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    o, c = scratch[3 * size : 4 * size], scratch[4 * size : 5 * size]
    widen(saved, scratch[: 4 * size])
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
