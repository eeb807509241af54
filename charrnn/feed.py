"""What a step reads, on the device that learns it: sent there by the host, or gathered from a text that lies there.

Letters: N characters, B lanes, T steps in a window.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.batches import IGNORED, Step, read_window
from charrnn.withholding import Withheld

_MOST_OF_FREE = 0.25  # of a GPU's memory, that a text may take
_PIECE = 1 << 24  # characters copied at a time


class Feed:
    """A training text, and its windows as tensors of a device."""

    def __init__(self, text: Withheld, device: torch.device) -> None:
        self._text, self._device = text, device
        self._resident = resident(text, device) if has_room(text, device) else None

    def window(self, step: Step) -> tuple[Tensor, Tensor]:
        """x and targets (T, B), int64; as read_window."""
        if self._resident is None:
            window = read_window(self._text, step)
            return to_device(window.x, self._device), to_device(window.targets, self._device)
        return gather(self._resident, step)


def has_room(text: Withheld, device: torch.device) -> bool:
    """Whether a GPU takes the text; a CPU reads it as it needs it."""
    num_bytes = len(text) * resident_dtype(text).itemsize
    return device.type == "cuda" and num_bytes <= _MOST_OF_FREE * torch.cuda.mem_get_info(device)[0]


def resident_dtype(text: Withheld) -> torch.dtype:
    """In which the text lies in a GPU's memory, where 16 bits without a sign can't be indexed."""
    return torch.uint8 if text.ids.dtype == np.uint8 else torch.int32


def resident(text: Withheld, device: torch.device) -> Tensor:
    """The text in a device's memory: (N,). The host reads it piece by piece."""
    found = torch.empty(len(text), dtype=resident_dtype(text), device=device)
    for start in range(0, len(text), _PIECE):
        places = np.arange(start, min(start + _PIECE, len(text)))
        found[start : start + _PIECE] = torch.from_numpy(text[places].astype(np.int64)).to(found)
    return found


def gather(ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """A step's x and targets out of ids (N,) on a device, with nothing of the text going there."""
    starts, lengths = to_device(step.starts, ids.device), to_device(step.lengths, ids.device)
    times = torch.arange(step.first, step.stop, device=ids.device)[:, None]  # (T, 1)
    positions = (starts + times) % step.num_chars  # (T, B)
    targets = ids[(positions + 1) % step.num_chars].long()
    return ids[positions].long(), targets.masked_fill(times >= lengths, IGNORED)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array as a tensor there; a GPU takes it when it gets to it, and isn't waited for."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
