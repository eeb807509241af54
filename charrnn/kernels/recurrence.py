"""One time step of each cell over numpy arrays, and the draw of the next character.

Layers are laid out as PyTorch's: weight_ih (gates * H, I), weight_hh (gates * H, H), gate
order r, z, n (GRU) and i, f, g, o (LSTM). Letters: B streams, I input size, H hidden size,
V vocabulary.
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


def draw(logits: Floats, uniform: float, *, temperature: float) -> int:
    """Draw one id from softmax(logits / temperature) by inverting its distribution function.

    logits: (V,). uniform in [0, 1). Temperature 0 is greedy; a tiny one can't make a NaN
    because the largest logit is subtracted before the division.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    shifted = logits.astype(np.float64) - logits.max()
    with np.errstate(over="ignore"):  # -x / 1e-308 is -inf, whose exp is the 0 that is meant
        cumulative = np.cumsum(np.exp(shifted / temperature))
    # A uniform this close to one could round past the end; the last id with mass is meant then.
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(logits) - 1)
