"""How far a gradient reaches back: from the nats of one character to the embeddings of those before it.

Letters: T steps, B lanes, E embedding, H hidden size, L layers, V vocabulary.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from charrnn.evaluation.texts import EvalText
from charrnn.inspection.findings import Reach
from charrnn.model.file import ModelFile
from charrnn.model.packing import multiply
from charrnn.model.windows import (
    Buffers,
    KernelNetwork,
    State,
    backward_window,
    find_resets,
    forward_window,
    head_gradients,
)
from charrnn.numerics.vectors import Floats

NUM_TARGETS, NUM_STEPS = 64, 256
NUM_WARM_UP = 16  # steps before those: in a state of zeros, which no text leaves behind, gradients are far larger
MIN_TARGETS = 16  # whose document reaches as far back; quartiles of fewer mean little
_SMALLEST = 1e-36  # norm that is exact in float32
_NUM_LANES = 16  # at a time: all would take hundreds of megabytes


def measure_reach(file: ModelFile, text: EvalText, ids: NDArray[np.int64]) -> Reach | None:
    """Measure gradients of targets spread over ids, the text's first characters; None for too short a text."""
    num_steps = min(NUM_STEPS, len(ids) // 2 - NUM_WARM_UP)
    window = np.arange(-num_steps - NUM_WARM_UP, 1)[:, None]
    targets = np.unique(np.linspace(num_steps + NUM_WARM_UP, len(ids) - 1, NUM_TARGETS).astype(np.int64))
    if num_steps < 2 or len(targets) < MIN_TARGETS:
        return None
    network = KernelNetwork.from_arrays(replace(file.config, reset_id=text.reset_id), file.tensors, threads=1)
    weight = np.array(file.tensors["layers.0.weight_ih_l0"])  # a copy, as in KernelNetwork
    norms = np.concatenate(
        [
            gradient_norms(network, weight, ids[part + window])[NUM_WARM_UP:]
            for part in np.array_split(targets, -(-len(targets) // _NUM_LANES))
        ],
        axis=1,
    )[::-1]  # (T, B), the last step first
    if text.reset_id is not None:  # a gradient ends where its document begins
        resets = ids[targets - 1 - np.arange(num_steps)[:, None]] == text.reset_id
        norms = np.where(np.logical_or.accumulate(resets, axis=0), np.nan, norms)
    enough = np.count_nonzero(~np.isnan(norms), axis=1) >= MIN_TARGETS
    norms = norms[: num_steps if enough.all() else int(enough.argmin())]
    if len(norms) < 2:
        return None
    lower, median, upper = np.nanquantile(norms, [0.25, 0.5, 0.75], axis=1)
    return Reach(tuple(median.tolist()), tuple(lower.tolist()), tuple(upper.tolist()), len(targets), fit_gain(median))


def fit_gain(norms: NDArray[np.float64]) -> float:
    """Return the factor per step of norms (T,), from the least-squares line through their logarithms.

    Norms that are too small for float32 are left out; with fewer than two others the gain is 0.
    """
    steps = np.flatnonzero(norms > _SMALLEST)
    if len(steps) < 2:
        return 0.0
    slope, _ = np.polyfit(steps, np.log(norms[steps]), 1)
    return math.exp(slope)


def gradient_norms(network: KernelNetwork, weight: Floats, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the norm of the gradient at each input: (T, B). ids: (T + 1, B); the loss is the nats of the last row.

    weight: of the first layer's inputs, (N, E).
    """
    gradients = input_gradients(network, weight, ids[:-1], ids[-1], network.initial_state(ids.shape[1]))
    norms: NDArray[np.float64] = np.linalg.norm(gradients.astype(np.float64), axis=2)
    return norms


def input_gradients(
    network: KernelNetwork, weight: Floats, x: NDArray[np.int64], target: NDArray[np.int64], state: State
) -> Floats:
    """Return the gradient (T, B, E) of the summed nats of targets (B,) at the embeddings of x (T, B).

    The first layer's kernel adds up gradients per character. So each step of each lane is a character of its own here,
    whose row of the table is that of the character it stands for. weight: as for gradient_norms.
    """
    first, *others = network.packed.layers
    places = np.arange(x.size).reshape(x.shape)
    layers = first._replace(table=first.table[x.ravel()]), *others
    after, resets = tuple(np.array(part) for part in state), find_resets(x, network.config)
    buffers, h, saved = [Buffers() for _ in layers], places, []
    for index, layer in enumerate(layers):
        before = after[0][index], after[-1][index]
        h, activations = forward_window(layer, h, resets, before, None, buffers[index], needs_backward=True)
        saved.append(activations)
    d_h = np.zeros_like(h)
    _, d_h[-1:], *_ = head_gradients(network.packed.head, h[-1:], target[None], Buffers())
    for layer, activations, memory in zip(reversed(layers), reversed(saved), reversed(buffers), strict=True):
        d_state = np.zeros((2, *h.shape[1:]), np.float32)
        d_h, gradients = backward_window(layer, activations, d_h, (d_state[0], d_state[1]), memory)
    return multiply(gradients.table, weight).reshape(*x.shape, -1)
