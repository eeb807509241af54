"""Recurrent layers: RNN (tanh), GRU and LSTM behind one contract.

A layer is a stock single-layer `torch.nn` module, so its parameters are named and laid out
as PyTorch's, and cuDNN serves it on a GPU. `run_layer` is the only way it is called.

Letters: T steps, B lanes, I input size, H hidden size.
"""

import torch
from torch import Tensor, nn

from charrnn.errors import ResourceError, UsageError

Layer = nn.RNN | nn.GRU | nn.LSTM
LAYERS: dict[str, type[Layer]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

State = tuple[Tensor, ...]  # h, and for the LSTM also c; each (B, H) for one layer


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
    bias_hh.register_hook(lambda gradient: gradient * used.to(gradient.device))  # type: ignore[no-untyped-call]
    return layer


def run_layer(layer: Layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Run a layer over a window.

    x: (T, B, I); state: tensors (B, H). Returns outputs (T, B, H) and the state after the
    last step.
    """
    before = tuple(part.unsqueeze(0).contiguous() for part in state)
    if isinstance(layer, nn.LSTM):
        y, after = layer(x, before)
    else:
        y, final = layer(x, before[0])
        after = (final,)
    return y, tuple(part.squeeze(0) for part in after)


def select_device(name: str) -> torch.device:
    """Turn `--device` into a device: auto, cpu, cuda or cuda:N.

    Raises UsageError for another name, ResourceError where PyTorch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if int(number or 0) >= available:
        found = f"PyTorch sees {available} CUDA device{'s' * (available != 1)}"
        raise ResourceError(f"--device {name}: {found}; use --device cpu")
    return torch.device(name)
