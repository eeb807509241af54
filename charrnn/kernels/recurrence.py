"""One time step of each cell over numpy arrays.

Layers are laid out as PyTorch's: weight_ih (gates * H, I), weight_hh (gates * H, H), gate
order r, z, n (GRU) and i, f, g, o (LSTM). Letters: B streams, I input size, H hidden size.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
State = tuple[Floats, ...]


def sigmoid(x: Floats) -> Floats:
    """The logistic function by way of tanh, which can't overflow."""
    half = np.float32(0.5)
    result: Floats = half * np.tanh(half * x) + half
    return result


def rnn_step(projected: Floats, state: State, weight_hh: Floats, bias_hh: Floats) -> State:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh). projected is W_ih x + b_ih: (B, H)."""
    (h,) = state
    return (np.tanh(projected + h @ weight_hh.T + bias_hh),)


def gru_step(projected: Floats, state: State, weight_hh: Floats, bias_hh: Floats) -> State:
    """The GRU with the reset gate applied after the product, as cuDNN has it.

    projected: (B, 3H). Source: Cho et al. 2014; the variant is torch.nn.GRU's.
    """
    (h,) = state
    size = h.shape[-1]
    recurrent = h @ weight_hh.T + bias_hh  # (B, 3H)
    gates = sigmoid(projected[:, : 2 * size] + recurrent[:, : 2 * size])
    r, z = gates[:, :size], gates[:, size:]
    n = np.tanh(projected[:, 2 * size :] + r * recurrent[:, 2 * size :])
    return (n + z * (h - n),)


def lstm_step(projected: Floats, state: State, weight_hh: Floats, bias_hh: Floats) -> State:
    """The LSTM with a forget gate. projected: (B, 4H). Source: Gers et al. 2000."""
    h, c = state
    i, f, g, o = np.split(projected + h @ weight_hh.T + bias_hh, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
