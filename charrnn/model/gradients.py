"""The gradient of one window: the sum of nats over its lanes, computed by worker threads.

Each worker owns a slice of the lanes and computes sums, not means, over its own lanes. The sums
are added in the order of the workers. So for a given number of workers a run is the same to the
last bit. The kernels hold Python's global lock for a fraction of a window, so there is one worker
per core and no thread inside a product.

Letters: T steps, B lanes, L layers, H hidden size, V vocabulary, P parameters in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from charrnn.config import Precision
from charrnn.counters import WeightMask
from charrnn.hardware import split_range, worker_pool
from charrnn.kernels.masks import mask_rows
from charrnn.model.layers import HiddenState, Layer, array_of, is_fused, parameter_gradients
from charrnn.model.network import CharRNN
from charrnn.model.packing import PackedNetwork
from charrnn.model.windows import Buffers, backward_window, find_resets, forward_window, head_gradients
from charrnn.numerics.vectors import Stored


@dataclass(frozen=True)
class WindowResult:
    """nats: summed over the window's targets; gradient: (P,) of that sum; state: tensors (L, B, H), detached.

    The gradient lies in memory that the next window reuses.
    """

    nats: float
    gradient: Tensor
    state: HiddenState


class Workspace:
    """A worker's memory, reused by each window: new pages cost more than the work in them."""

    def __init__(self, model: CharRNN) -> None:
        self.layers = [Buffers() for _ in range(model.config.num_layers)]
        self.head = Buffers()
        self.gradient = torch.empty(model.config.num_parameters)


class Workers:
    """Threads that share a window's lanes; a context manager that ends them.

    The model's weights may be changed in place between windows.
    """

    def __init__(self, model: CharRNN, *, num_workers: int, precision: Precision) -> None:
        self.model, self.num_workers, self.precision = model, num_workers, precision
        self._packed: PackedNetwork | None = None  # the weights of the latest window; their memory is reused
        self._workspaces = [Workspace(model) for _ in range(num_workers)] if is_fused(model) else []
        self._masked = Buffers()  # the recurrent weights of the latest window, if some numbers were dropped
        self._pool = worker_pool(num_workers)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def compute(
        self,
        x: Tensor,
        targets: Tensor,
        state: HiddenState,
        masks: Sequence[Tensor] | None = None,
        weight_masks: Sequence[WeightMask] = (),
    ) -> WindowResult:
        """Run one window forward and backward: backpropagation through time, truncated at the window's start.

        x, targets: (T, B) ids; state: tensors (L, B, H) after the window before, which gets no
        gradient; masks: one (B, H) factor per layer for its output; weight_masks: one per layer for
        its recurrent weight. The next call reuses the gradient's memory.
        """
        if not is_fused(self.model):  # PyTorch has its own threads, and workers must not share graphs
            return masked_autograd_window(self.model, x, targets, state, masks, weight_masks, self.precision)
        masked = self._mask_weights(weight_masks) if weight_masks else {}
        self._packed = packed = self.model.pack(self.precision, masked, out=self._packed, each=self._pool.map)
        futures = [
            self._pool.submit(
                fused_window,
                self.model,
                packed,
                x[:, lanes],
                targets[:, lanes],
                tuple(part[:, lanes] for part in state),
                None if masks is None else [mask[lanes] for mask in masks],
                workspace,
            )
            for lanes, workspace in zip(split_range(x.shape[1], self.num_workers), self._workspaces, strict=True)
        ]
        results = [future.result() for future in futures]
        gradient = results[0].gradient
        for result in results[1:]:
            gradient += result.gradient
        if weight_masks:
            for part, mask in zip(recurrent_weights(self.model, gradient).values(), weight_masks, strict=True):
                self._mask(part, mask, array_of(part))
        parts = zip(*(result.state for result in results), strict=True)
        return WindowResult(
            nats=float(torch.tensor([result.nats for result in results], dtype=torch.float64).sum()),
            gradient=gradient,
            state=tuple(torch.cat(part, dim=1) for part in parts),
        )

    def _mask_weights(self, weight_masks: Sequence[WeightMask]) -> dict[str, Stored]:
        """Return the recurrent weights without what the masks drop, by name."""
        masked: dict[str, Stored] = {}
        dtype = np.uint16 if self.precision == "bfloat16" else np.float32
        for (name, weight), mask in zip(recurrent_weights(self.model).items(), weight_masks, strict=True):
            masked[name] = self._masked.empty(name, *weight.shape, dtype=dtype)
            self._mask(weight, mask, masked[name])
        return masked

    def _mask(self, values: Tensor, mask: WeightMask, out: Stored) -> None:
        """Fill out (N, H) with the values that the mask keeps, scaled, and zeros; each worker takes some rows."""
        whole = array_of(values)
        rows = split_range(len(whole), self.num_workers)
        list(self._pool.map(lambda part: mask_rows(whole[part], mask.kept[part], mask.scale, out[part]), rows))


def recurrent_weights(model: CharRNN, flat: Tensor | None = None) -> dict[str, Tensor]:
    """Return views (N, H) of all recurrent weights by name: in the model, or in flat (P,), such as a gradient."""
    views, start = {}, 0
    for name, parameter in model.named_parameters():
        if name.endswith("weight_hh_l0"):
            part = parameter.detach() if flat is None else flat[start : start + parameter.numel()]
            views[name] = part.view_as(parameter)
        start += parameter.numel()
    return views


def masked_autograd_window(
    model: CharRNN,
    x: Tensor,
    targets: Tensor,
    state: HiddenState,
    masks: Sequence[Tensor] | None,
    weight_masks: Sequence[WeightMask],
    precision: Precision,
) -> WindowResult:
    """Run autograd_window with masked recurrent weights; the weights are restored afterwards."""
    if not weight_masks:
        return autograd_window(model, x, targets, state, masks, precision)
    weights = list(recurrent_weights(model).values())
    originals = [weight.clone() for weight in weights]
    factors = [torch.from_numpy(mask.kept).to(x.device) * float(mask.scale) for mask in weight_masks]
    for weight, factor in zip(weights, factors, strict=True):
        weight.mul_(factor)
    try:
        result = autograd_window(model, x, targets, state, masks, precision)
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
    for gradient, factor in zip(recurrent_weights(model, result.gradient).values(), factors, strict=True):
        gradient *= factor
    return result


def autograd_window(
    model: CharRNN,
    x: Tensor,
    targets: Tensor,
    state: HiddenState,
    masks: Sequence[Tensor] | None = None,
    precision: Precision = "float32",
) -> WindowResult:
    """Compute a window's gradient with PyTorch's own layers and autograd, in autocast if precision is bfloat16."""
    before = tuple(part.detach() for part in state)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        h, after = model.features(x, before, masks)
        logits = model.head(h)
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    gradients = torch.autograd.grad(nats, list(model.parameters()))
    gradient = torch.cat([part.flatten() for part in gradients])
    state = tuple(part.detach().to(before[0].dtype) for part in after)
    return WindowResult(float(nats.detach()), gradient, state)


def fused_window(
    model: CharRNN,
    packed: PackedNetwork,
    x: Tensor,
    targets: Tensor,
    state: HiddenState,
    masks: Sequence[Tensor] | None = None,
    workspace: Workspace | None = None,
) -> WindowResult:
    """Compute a window's gradient with our kernels on arrays: each PyTorch call would pass the lock to another worker.

    packed: the model's weights; workspace: memory to reuse, which then holds the gradient.
    """
    ids = np.ascontiguousarray(x.numpy())
    resets = find_resets(ids, model.config)
    after = tuple(np.array(part.detach().numpy(), order="C") for part in state)  # copies (L, B, H), updated in place
    workspace = workspace or Workspace(model)
    h, saved = ids, []
    for index, (weights, buffers) in enumerate(zip(packed.layers, workspace.layers, strict=True)):
        mask = None if masks is None else np.ascontiguousarray(masks[index].numpy())
        layer_state = after[0][index], after[-1][index]
        h, activations = forward_window(weights, h, resets, layer_state, mask, buffers, needs_backward=True)
        saved.append(activations)
    nats, d_h, *d_head = head_gradients(packed.head, h, np.ascontiguousarray(targets.numpy()), workspace.head)
    gradients = [torch.from_numpy(part) for part in d_head]
    for index, activations in reversed(list(enumerate(saved))):
        weights, buffers = packed.layers[index], workspace.layers[index]
        d_state = buffers.zeros("state", 2, *after[0][index].shape)  # no gradient comes from the next window
        d_h, packed_gradients = backward_window(weights, activations, d_h, (d_state[0], d_state[1]), buffers)
        embedding, layer = model.embedding.weight if index == 0 else None, cast(Layer, model.layers[index])
        gradients = parameter_gradients(weights, packed_gradients, layer, embedding) + gradients
    gradient = torch.cat([part.flatten() for part in gradients], out=workspace.gradient)
    return WindowResult(nats, gradient, tuple(map(torch.from_numpy, after)))
