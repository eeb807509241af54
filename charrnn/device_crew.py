"""Drawing text with a network on a GPU: it makes the logits of many streams, threads of the host draw from them.

What is drawn from logits is decided by the same kernels as on a CPU, so a seed writes the same
text on both but where rounding decides.

Letters: T steps, S streams, L layers, H hidden size, V vocabulary.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.config import ModelConfig, Precision, share
from charrnn.crew import State, no_state
from charrnn.kernels.generation import Filters, choose_each
from charrnn.kernels.mixing import Mixture
from charrnn.kernels.ngrams import follow_all
from charrnn.model import CharRNN

_FED_AT_ONCE = 1024  # characters of a prompt


class DeviceCrew:
    """A network on a device, its n-grams, and threads that draw; to be used as crew.Crew is."""

    side_by_side = 1024

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Any],
        threads: int,
        precision: Precision,
        mixture: Mixture,
        device: torch.device,
    ) -> None:
        self.config, self.mixture = config, mixture
        self._model, self._device = CharRNN.from_arrays(config, tensors).to(device), device
        self._dtype = getattr(torch, precision)
        self._threads, self._pool = threads, ThreadPoolExecutor(threads, "charrnn")

    def new_state(self) -> State:
        """Zeros for one stream, and no characters before it."""
        return no_state(self.config, self.mixture)

    def read(self, ids: NDArray[np.int64], state: State) -> None:
        """Feed a stream's state, (L, 1, H), with characters (n,), in place."""
        there = self._there(state)
        for first in range(0, len(ids), _FED_AT_ONCE):
            _, there = self._fed(ids[first : first + _FED_AT_ONCE, None], there)
        self._take_back(there, state)
        contexts = state[2][0, 0]
        follow_all(self.mixture.trie, ids.astype(np.uint16), contexts, np.empty((len(ids), len(contexts)), np.int32))

    def draw(
        self,
        filters: Filters,
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        numbers: NDArray[np.float64],
        state: State,
    ) -> NDArray[np.float64]:
        """Draw the next n characters of S streams, in place, as Crew.draw; return what they cost, (S, n)."""
        (num_streams, count), nats = numbers.shape, np.empty(numbers.shape)
        contexts, there = state[2], self._there(state)
        for drawn in range(count):
            last = ids[np.arange(num_streams), starts + drawn - 1]
            logits, there = self._fed(last[None], there)

            def choose(part: slice, drawn: int = drawn, logits: NDArray[np.float32] = logits) -> None:
                choose_each(
                    *(filters, logits[part], ids[part], starts[part], drawn, numbers[part]),
                    *(contexts[:, part], nats[part], self.mixture),
                )

            list(self._pool.map(choose, share(num_streams, self._threads)))
        self._take_back(there, state)
        return nats

    @torch.inference_mode()
    def _fed(
        self, chars: NDArray[np.int64], there: tuple[torch.Tensor, ...]
    ) -> tuple[NDArray[np.float32], tuple[torch.Tensor, ...]]:
        """Read characters (T, S): the logits after the last of them (S, V), and the state."""
        x = torch.from_numpy(chars).to(self._device)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            h, after = self._model.features(x, there)
            logits = self._model.head(h[-1])
        return logits.float().cpu().numpy(), tuple(part.float() for part in after)

    def _there(self, state: State) -> tuple[torch.Tensor, ...]:
        """The network's part of a state, on the device."""
        return tuple(torch.from_numpy(part).to(self._device) for part in state[: self.config.num_states])

    def _take_back(self, there: tuple[torch.Tensor, ...], state: State) -> None:
        for array, part in zip(state, there, strict=False):
            array[...] = part.cpu().numpy()
