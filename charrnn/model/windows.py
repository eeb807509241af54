"""Windows of text through a network on our CPU kernels: arrays in, arrays out, without PyTorch.

`forward_window` and `backward_window` run one layer, `head_gradients` the head, in float32 or bfloat16 as the weights
were packed. `KernelNetwork` reads and predicts text with weights that don't change.

Letters: T steps, B lanes, L layers, I input size, H hidden size, N gates * H, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charrnn.config import ModelConfig
from charrnn.kernels import recurrent
from charrnn.kernels.cells import LSTM, RNN
from charrnn.kernels.head import PackedHead, Predictions, fill_logits, nats_and_gradients, predict_from_features
from charrnn.kernels.ngrams import Mixture
from charrnn.kernels.recurrent import Activations, PackedLayer, WeightGradients
from charrnn.model.packing import PackedNetwork, pack_network
from charrnn.numerics.products import padded
from charrnn.numerics.vectors import Floats

State = tuple[Floats, ...]  # h, and for the LSTM also c; each (L, B, H)
_ALIGNMENT = 64  # bytes, a cache line


class Buffers:
    """Arrays that are reused by the next window of the same size: touching new pages costs more than the work in them.

    A window's results are valid until the next window.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def empty(self, name: str, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        """Return the array of that name, which begins at a cache line, with undefined contents."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            memory = np.empty(size + _ALIGNMENT, np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT
            array = self._arrays[name] = memory[start : start + size].view(dtype).reshape(shape)
        return array

    def zeros(self, name: str, *shape: int) -> Floats:
        """Return the float32 array of that name, filled with zeros."""
        array = self.empty(name, *shape)
        array.fill(0.0)
        return array


def find_resets(ids: NDArray[np.int64], config: ModelConfig) -> NDArray[np.bool_]:
    """Return where the state is set to zeros first, in the shape of the ids."""
    return np.zeros(ids.shape, np.bool_) if config.reset_id is None else ids == config.reset_id


def forward_window(
    packed: PackedLayer,
    x: NDArray[Any],
    resets: NDArray[np.bool_],
    state: tuple[Floats, Floats],
    mask: Floats | None,
    buffers: Buffers,
    *,
    needs_backward: bool,
) -> tuple[NDArray[Any], Activations]:
    """Run a layer over a window; return its outputs (T, B, H), stored as its weights are, and its activations.

    x: (T, B) ids for the first layer, else (T, B, I); resets: (T, B); state: h and c, (B, H) each,
    updated in place, twice the same array without c; mask: (B, H) or None. All are contiguous.
    needs_backward: whether backward_window will follow.
    """
    h, c = state
    num_steps, num_lanes, size, is_first = *x.shape[:2], h.shape[1], len(packed.table) > 0
    dtype = packed.recurrent.dtype
    # the kernels don't check their arguments
    assert all(part.shape == (num_lanes, size) and part.dtype == np.float32 for part in state)
    assert resets.shape == x.shape[:2]
    assert mask is None or (mask.shape == (num_lanes, size) and mask.dtype == np.float32)
    assert not is_first or (x.min() >= 0 and x.max() < len(packed.table))
    empty = np.empty((0, 0, 0), dtype)
    y = buffers.empty("y", num_steps + 1, num_lanes, size, dtype=dtype)
    masked = empty if mask is None else buffers.empty("masked", num_steps, num_lanes, size, dtype=dtype)
    width = 0 if packed.cell == RNN else 4 * size
    saved = Activations(
        ids=x if is_first else np.empty((0, 0), np.int64),
        x=empty if is_first else x,
        resets=resets,
        mask=np.empty((0, 0), np.float32) if mask is None else mask,
        y=y,
        gates=buffers.empty("gates", num_steps if needs_backward else 1, num_lanes, width, dtype=dtype),
        cells=buffers.empty("cells", *y.shape, dtype=dtype) if packed.cell == LSTM else empty,
    )
    recurrent.forward(packed, saved, h, c, masked)
    return (y[1:] if mask is None else masked), saved


def backward_window(
    packed: PackedLayer,
    saved: Activations,
    dy: NDArray[Any],
    d_state: tuple[Floats, Floats],
    buffers: Buffers,
) -> tuple[NDArray[Any], WeightGradients]:
    """Backpropagate through a layer's window; return the gradients of its inputs and of its packed weights.

    dy: (T, B, H), the gradient of the outputs, stored as the weights are; d_state: dh and dc, (B, H)
    each, of the state after the window, which become those of the state before. The inputs'
    gradient is (T, B, I), and empty for ids.
    """
    num_gates, size = len(packed.bias), saved.y.shape[2]
    dx = buffers.empty("dx", *saved.x.shape, dtype=dy.dtype)
    gradients = WeightGradients(
        table=buffers.zeros("table", *packed.table.shape),
        input=buffers.zeros("input", 0 if len(packed.table) else num_gates, padded(dx.shape[2])),
        recurrent=buffers.zeros("recurrent", num_gates, padded(size)),
        bias=buffers.zeros("sums", num_gates + len(packed.inner_bias)),
    )
    recurrent.backward(packed, saved, dy, d_state[0], d_state[1], dx, gradients)
    return dx, gradients


def head_gradients(
    packed: PackedHead, h: NDArray[Any], targets: NDArray[np.int64], buffers: Buffers
) -> tuple[float, NDArray[Any], Floats, Floats]:
    """Return the nats of targets (T, B) after features h (T, B, H), and the gradients of h, head weight and bias."""
    vocab_size, size = len(packed.bias), h.shape[2]
    d_h = buffers.empty("h", *h.shape, dtype=h.dtype)
    d_weight, d_bias = buffers.zeros("weight", vocab_size, padded(size)), buffers.zeros("bias", vocab_size)
    y, dy = h.reshape(-1, size), d_h.reshape(-1, size)
    nats = nats_and_gradients(packed, y, targets.ravel(), dy, d_weight, d_bias)
    return nats, d_h, d_weight[:, :size], d_bias


class Predictor(Protocol):
    """What predicts characters from a network's features."""

    def predict(self, h: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions) -> None:
        """Fill in predictions (N,) from features (N, H). contexts: of the n-grams to mix with, (N, order)."""


class Reader(Predictor, Protocol):
    """A network that reads and predicts text: KernelNetwork, or PyTorch's layers (network.StockNetwork).

    threads: how many may read at once, each its own lanes.
    """

    config: ModelConfig
    threads: int

    def initial_state(self, num_lanes: int) -> State:
        """Make a state of zeros."""

    def features(self, ids: NDArray[np.int64], state: State) -> tuple[Floats, State]:
        """Run the network without its head over ids (T, B); return (T, B, H) and the state afterwards.

        Where a lane reads the config's reset_id, its state is set to zeros first.
        """

    def logits(self, h: Floats) -> Floats:
        """Compute the logits (T, B, V) after features (T, B, H)."""


class KernelNetwork:
    """A Reader on our CPU kernels, in float32. Its weights don't change."""

    def __init__(self, config: ModelConfig, packed: PackedNetwork, threads: int) -> None:
        self.config, self.packed, self.threads = config, packed, threads

    @classmethod
    def from_arrays(cls, config: ModelConfig, arrays: Mapping[str, NDArray[Any]], threads: int) -> "KernelNetwork":
        """Build a network with the weights of a model file."""
        # copies, because arrays from a file are unaligned and can't be written to: other kernels would be compiled
        weights = {name: np.array(arrays[name]) for name in config.tensor_shapes()}
        return cls(config, pack_network(config, weights), threads)

    def initial_state(self, num_lanes: int) -> State:
        """Make a state of zeros."""
        shape = (self.config.num_layers, num_lanes, self.config.hidden_size)
        return tuple(np.zeros(shape, np.float32) for _ in range(self.config.num_states))

    def features(self, ids: NDArray[np.int64], state: State) -> tuple[Floats, State]:
        """Run the network without its head: see Reader.features."""
        after, resets = tuple(np.array(part) for part in state), find_resets(ids, self.config)
        h: NDArray[Any] = np.ascontiguousarray(ids, np.int64)
        for index, layer in enumerate(self.packed.layers):
            before = after[0][index], after[-1][index]
            h, _ = forward_window(layer, h, resets, before, None, Buffers(), needs_backward=False)
        return h, after

    def logits(self, h: Floats) -> Floats:
        """Compute the logits: see Reader.logits."""
        rows = h.reshape(-1, h.shape[2])
        logits = np.empty((len(rows), padded(self.config.vocab_size)), np.float32)
        fill_logits(self.packed.head, rows, logits)
        return logits[:, : self.config.vocab_size].reshape(*h.shape[:2], -1)

    def predict(self, h: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions) -> None:
        """Fill in predictions: see Predictor.predict."""
        predict_from_features(self.packed.head, h, mixture, contexts, out)
