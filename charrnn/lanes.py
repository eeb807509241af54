"""What one step asks of the network: the sum of nats over its lanes, and its gradient.

Each worker thread owns a slice of the lanes. It computes sums, not means, over its own, and
the sums are added in the workers' order before they are divided by the count; so for a given
number of workers a run is the same to the last bit. The kernels hold Python's lock for a
fraction of a window, so there is one worker a core and no thread inside a product.

Letters: T steps, G lanes in all, B lanes of one worker, P parameters in all.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from charrnn.cells import Layer, Room, State, backward_window, forward_window, is_fused, weight_gradients
from charrnn.config import Precision, share
from charrnn.kernels.head import PackedHead, nats_and_gradients
from charrnn.kernels.products import padded
from charrnn.model import CharRNN, PackedNetwork
from charrnn.recording import Replays

MOST_SUMMED = 4096  # characters whose gradients are summed in float16: a weight's is far below one for each


@dataclass(frozen=True)
class WindowResult:
    """nats: (), summed over the window's targets; gradient: (P,) of that sum; state: detached.

    On a GPU they may still be under way.
    """

    nats: Tensor
    gradient: Tensor
    state: State


class Workers:
    """The threads that share a step's lanes; a context manager that ends them.

    The model's weights may be changed between steps, in place.
    """

    def __init__(self, model: CharRNN, *, num_workers: int, precision: Precision) -> None:
        self.model, self.num_workers, self.precision = model, num_workers, precision
        # memory that a step leaves warm for the next
        self._packed: PackedNetwork | None = None
        size, device = model.config.num_parameters, model.head.weight.device
        self._gradients = [torch.empty(size, device=device) for _ in range(num_workers)]
        self._rooms = [[Room() for _ in range(model.config.num_layers + 1)] for _ in range(num_workers)]
        self._pool = worker_pool(num_workers)
        self.replays = Replays(self._of_one)  # on a GPU

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def window_gradient(
        self,
        x: Tensor,
        targets: Tensor,
        state: State,
        masks: Sequence[Tensor] | None,
        weight_masks: Sequence[Tensor] | None = None,
    ) -> WindowResult:
        """As the function of that name, for all lanes; the gradient is good until the next step.

        weight_masks: factors for each layer's recurrent weight, in this window alone.
        """
        if weight_masks is None:
            return self._window_gradient(x, targets, state, masks)
        weights = recurrent_weights(self.model)
        whole = [weight.clone() for weight in weights]
        for weight, mask in zip(weights, weight_masks, strict=True):
            weight.mul_(mask)
        try:
            result = self._window_gradient(x, targets, state, masks)
        finally:
            for weight, values in zip(weights, whole, strict=True):
                weight.copy_(values)
        for gradient, mask in zip(recurrent_weights(self.model, result.gradient), weight_masks, strict=True):
            gradient *= mask
        return result

    def _window_gradient(
        self, x: Tensor, targets: Tensor, state: State, masks: Sequence[Tensor] | None
    ) -> WindowResult:
        if not is_fused(self.model):  # PyTorch has threads of its own, and its graphs must not be shared among them
            run = self.replays if x.is_cuda else self._of_one
            nats, gradient, *after = run(x, targets, *state, *(masks or ()))
            return WindowResult(nats, gradient, tuple(after))
        self._packed = self.model.pack(self.precision, out=self._packed, each=self._pool.map)
        futures = [
            self._pool.submit(
                window_gradient,
                self.model,
                x[:, lanes],
                targets[:, lanes],
                tuple(part[:, lanes] for part in state),
                None if masks is None else [mask[lanes] for mask in masks],
                self._packed,
                buffer,
                rooms,
            )
            for lanes, buffer, rooms in zip(
                share(x.shape[1], self.num_workers), self._gradients, self._rooms, strict=True
            )
        ]
        results = [future.result() for future in futures]
        gradient = results[0].gradient
        for result in results[1:]:
            gradient += result.gradient
        return WindowResult(
            nats=torch.stack([result.nats for result in results]).sum(),
            gradient=gradient,
            state=tuple(torch.cat(parts, dim=1) for parts in zip(*(result.state for result in results), strict=True)),
        )

    def _of_one(self, x: Tensor, targets: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """What window_gradient computes for all lanes; rest: the state, and the masks where there are some."""
        count = self.model.config.num_states
        masks, out = rest[count:] or None, self._gradients[0]
        result = window_gradient(self.model, x, targets, rest[:count], masks, out=out, precision=self.precision)
        return result.nats, result.gradient, *result.state


def worker_pool(num_workers: int) -> ThreadPoolExecutor:
    """Threads in which PyTorch uses no others, while the caller's goes on with as many as before."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_workers, "lanes", use_threads, (1,))
    everyone = threading.Barrier(num_workers)
    list(pool.map(lambda _: everyone.wait(), range(num_workers)))  # so all have started
    use_threads(threads)
    return pool


def use_threads(count: int) -> None:
    """Set the number of PyTorch's threads for work that this one asks for.

    It is each thread's own, but only once it has been read there: the first time, the number
    that was set last anywhere is taken.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


def recurrent_weights(model: CharRNN, flat: Tensor | None = None) -> list[Tensor]:
    """Each layer's recurrent weight, detached but in the model's memory; or its place in flat, (P,), a gradient say."""
    found, start = [], 0
    for name, parameter in model.named_parameters():
        if name.endswith("weight_hh_l0"):
            found.append(
                parameter.detach() if flat is None else flat[start : start + parameter.numel()].view_as(parameter)
            )
        start += parameter.numel()
    return found


def window_gradient(
    model: CharRNN,
    x: Tensor,
    targets: Tensor,
    state: State,
    masks: Sequence[Tensor] | None,
    packed: PackedNetwork | None = None,
    out: Tensor | None = None,
    rooms: Sequence[Room] | None = None,
    precision: Precision = "float32",
) -> WindowResult:
    """Run one window forward and back: backpropagation through time, truncated at its start.

    x, targets: (T, B) ids; state: tensors (L, B, H) from the window before, whose values
    are carried while no gradient goes back into them; masks, packed as in CharRNN.features;
    out: (P,), memory for the gradient; rooms: one a layer and one for the head, for our kernels;
    precision: that of the products, where the weights are not packed in one.
    """
    if packed:
        return _fused_window_gradient(model, x, targets, state, masks, packed, out, rooms)
    before, scale = tuple(part.detach() for part in state), 1.0
    with torch.autocast(x.device.type, getattr(torch, precision), enabled=precision != "float32"):
        h, after = model.features(x, before, masks)
        logits = model.head(h)
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    if precision == "float16":  # whose largest number is 65,504, and a sum's gradient grows with its terms
        scale = 2.0 ** -max(0, math.ceil(math.log2(targets.numel() / MOST_SUMMED)))
    gradients = torch.autograd.grad(nats if scale == 1.0 else nats * scale, list(model.parameters()))
    gradient = torch.cat([gradient.flatten() for gradient in gradients], out=out)
    if scale != 1.0:
        gradient /= scale
    return WindowResult(nats.detach().double(), gradient, tuple(part.detach().to(before[0].dtype) for part in after))


def _fused_window_gradient(
    model: CharRNN,
    x: Tensor,
    targets: Tensor,
    state: State,
    masks: Sequence[Tensor] | None,
    packed: PackedNetwork,
    out: Tensor | None,
    rooms: Sequence[Room] | None,
) -> WindowResult:
    """The same by our kernels, with little of PyTorch: each of its functions lends Python's lock to another worker."""
    ids, reset_id = np.ascontiguousarray(x.numpy()), model.config.reset_id
    resets = np.zeros(ids.shape, np.bool_) if reset_id is None else ids == reset_id
    after = tuple(np.array(part.detach().numpy(), order="C") for part in state)  # copies (L, B, H), which become it
    *layer_rooms, head_room = rooms or [Room() for _ in range(len(packed.layers) + 1)]
    h, kept = ids, []
    for index, (weights, room) in enumerate(zip(packed.layers, layer_rooms, strict=True)):
        mask = None if masks is None else np.ascontiguousarray(masks[index].numpy())
        h, of_layer = forward_window(weights, h, resets, after[0][index], after[-1][index], mask, room, keep=True)
        kept.append(of_layer)
    nats, d_h, *gradients = _head_gradients(packed.head, h, np.ascontiguousarray(targets.numpy()), head_room)
    for index, of_layer in reversed(list(enumerate(kept))):
        weights, room = packed.layers[index], layer_rooms[index]
        d_state = room.zeros("state", 2, *after[0][index].shape)  # no gradient comes from the window after
        d_h, sums = backward_window(weights, of_layer, d_h, d_state[0], d_state[1], room)
        embedding = model.embedding.weight if index == 0 else None
        gradients = weight_gradients(weights, sums, cast(Layer, model.layers[index]), embedding) + gradients
    gradient = torch.cat([part.flatten() for part in gradients], out=out)
    return WindowResult(torch.tensor(nats, dtype=torch.float64), gradient, tuple(map(torch.from_numpy, after)))


def _head_gradients(
    packed: PackedHead, h: NDArray[Any], targets: NDArray[np.int64], room: Room
) -> tuple[float, NDArray[Any], Tensor, Tensor]:
    """The nats that targets (T, B) cost after features h (T, B, H), and the gradients of h, the weight and the bias."""
    vocab_size, size = len(packed.bias), h.shape[2]
    d_h = room.empty("h", *h.shape, dtype=h.dtype)
    d_weight, d_bias = room.zeros("weight", vocab_size, padded(size)), room.zeros("bias", vocab_size)
    rows = h.reshape(-1, size), targets.ravel(), d_h.reshape(-1, size)
    nats = nats_and_gradients(packed, *rows, d_weight, d_bias)
    return nats, d_h, torch.from_numpy(d_weight)[:, :size], torch.from_numpy(d_bias)
