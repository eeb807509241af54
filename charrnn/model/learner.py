"""Dynamic evaluation's network, which learns from each window of one lane of text: on our CPU kernels, or by autograd.

Letters: T steps, I input size, H hidden size, V vocabulary, N gates * H.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from charrnn.hardware import set_torch_threads, worker_pool
from charrnn.kernels.cells import CELLS
from charrnn.kernels.head import PackedHead, Predictions, predict_from_features
from charrnn.kernels.lane import (
    NUM_PARTS,
    LaneActivations,
    LaneGradients,
    LaneWeights,
    Learning,
    Team,
    lane_backward,
    lane_forward,
    lane_learn,
)
from charrnn.kernels.ngrams import Mixture
from charrnn.model.layers import Layer, array_of
from charrnn.model.network import CharRNN, StockNetwork
from charrnn.model.packing import PARAMETERS, pack_weight
from charrnn.model.windows import Buffers, State, find_resets, head_gradients
from charrnn.numerics.barrier import new_barrier
from charrnn.numerics.products import padded
from charrnn.numerics.vectors import Floats


class LearningRule:
    """How the parameters of a network learn.

    A step pulls a parameter back to where it began by a share `decay` of the distance, and then moves it by its
    gradient, averaged over the window's targets, times its own steps.
    """

    def __init__(self, model: CharRNN, steps: Sequence[Tensor], decay: float) -> None:
        """steps: one tensor per parameter, in its shape."""
        self.decay = decay
        self.steps: dict[Tensor, Tensor] = dict(zip(model.parameters(), steps, strict=True))
        self.origins = {parameter: parameter.detach().clone() for parameter in self.steps}

    @torch.no_grad()
    def update(self, parameter: Tensor, gradient: Tensor, num_targets: int) -> None:
        """Update a parameter in place. gradient: of the sum over so many targets."""
        origin, steps = self.origins[parameter], self.steps[parameter]
        parameter.lerp_(origin, self.decay).addcmul_(gradient, steps, value=-1 / num_targets)


class AutogradLearner:
    """Reads and learns with PyTorch's own layers, on any device. state: (L, 1, H) before the first window."""

    def __init__(self, model: CharRNN, state: State, rule: LearningRule) -> None:
        self._model, self._rule, self.predict = model, rule, StockNetwork(model).predict
        self._state = tuple(torch.from_numpy(part).to(model.head.weight) for part in state)
        self._features: Tensor

    def __enter__(self) -> "AutogradLearner":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, ids: NDArray[np.int64]) -> Floats:
        """Read a window, ids (T,); return its features (T, 1, H)."""
        x = torch.from_numpy(ids[:, None]).to(self._model.head.weight.device)
        self._features, after = self._model.features(x, self._state)
        self._state = tuple(part.detach() for part in after)
        return self._features.detach().cpu().numpy()

    def learn(self, targets: NDArray[np.int64], num_targets: int) -> None:
        """Update the weights after a window was read. targets: (T,), of which num_targets are not negative."""
        logits = self._model.head(self._features).flatten(0, 1)
        nats = functional.cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="sum")
        parameters = list(self._model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(nats, parameters), strict=True):
            self._rule.update(parameter, gradient, num_targets)


class KernelLearner:
    """Reads and learns as AutogradLearner does, on our kernels: float32 on a CPU.

    A context manager that ends its threads. Two threads share the lane if PyTorch has as many. The results are the
    same with one.
    """

    def __init__(self, model: CharRNN, state: State, rule: LearningRule) -> None:
        self._torch_threads = torch.get_num_threads()
        num_threads = min(NUM_PARTS, self._torch_threads)
        bounds = [NUM_PARTS * i // num_threads for i in range(num_threads + 1)]
        self._own_parts, *self._other_parts = itertools.pairwise(bounds)
        self._pool = worker_pool(max(1, num_threads - 1))  # the calling thread works too
        set_torch_threads(1)  # PyTorch's own threads would spin beside ours
        team = Team(new_barrier(), num_threads)
        self._model, self._rule = model, rule
        self._layers = [
            _Layer(model.config.cell, cast(Layer, layer), tuple(part[index, 0] for part in state), rule, team)
            for index, layer in enumerate(model.layers)
        ]
        self._head_buffers = Buffers()
        self._ids: NDArray[np.int64]
        self._head = PackedHead(*pack_weight(array_of(model.head.weight)), array_of(model.head.bias))

    def __enter__(self) -> "KernelLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        set_torch_threads(self._torch_threads)

    def predict(self, h: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions) -> None:
        """Fill in predictions: see windows.Predictor."""
        predict_from_features(self._head, h, mixture, contexts, out)

    def read(self, ids: NDArray[np.int64]) -> Floats:
        """Read a window, ids (T,); return its features (T, 1, H), valid until the next window."""
        self._ids, resets = ids, find_resets(ids, self._model.config)
        h: Floats = array_of(self._model.embedding.weight)[ids]
        for layer in self._layers:
            layer.begin(h, resets)
            self._share(layer.read)
            h = layer.end()
        return h[:, None]

    @torch.no_grad()
    @np.errstate(all="ignore")  # whether the network diverged is seen in what it predicts
    def learn(self, targets: NDArray[np.int64], num_targets: int) -> None:
        """Update the weights after a window was read. targets: (T,), of which num_targets are not negative."""
        weights, head = self._head, self._model.head
        h = self._layers[-1].saved.y[:, None]
        _, d_h, d_weight, d_bias = head_gradients(weights, h, targets[:, None], self._head_buffers)
        dy: Floats = d_h.reshape(len(targets), -1)
        for layer in reversed(self._layers):
            self._share(functools.partial(layer.learn, dy, num_targets))
            dy = layer.input_gradient()
        embedding = self._model.embedding.weight
        d_embedding = torch.zeros_like(embedding).index_add_(0, torch.from_numpy(self._ids), torch.from_numpy(dy))
        d_head = torch.from_numpy(d_weight), torch.from_numpy(d_bias)
        for parameter, gradient in ((embedding, d_embedding), (head.weight, d_head[0]), (head.bias, d_head[1])):
            self._rule.update(parameter, gradient, num_targets)
        pack_weight(array_of(head.weight), (weights.weight, weights.weight_backward))

    def _share(self, work: Callable[[tuple[int, int]], None]) -> None:
        """Call a function with each thread's parts, in these threads and this one."""
        futures = [self._pool.submit(work, parts) for parts in self._other_parts]
        work(self._own_parts)
        for future in futures:
            future.result()


class _Layer:
    """A layer of a KernelLearner: its parameters, its state, memory for a window. The threads share read and learn."""

    def __init__(self, cell: str, layer: Layer, state: State, rule: LearningRule, team: Team) -> None:
        parameters = [layer.get_parameter(name) for name in PARAMETERS]
        origins, steps = ([of[parameter] for parameter in parameters] for of in (rule.origins, rule.steps))
        steps[-1] = steps[-1] * cast(Tensor, layer.bias_is_used)
        self._weights, *learning = (LaneWeights(CELLS[cell], *map(array_of, of)) for of in (parameters, origins, steps))
        self._learning, self._team = Learning(learning[0], learning[1], rule.decay), team
        self._h, self._c = state[0].copy(), state[-1].copy()
        self._buffers = Buffers()
        self.saved: LaneActivations
        self._gradients: LaneGradients

    def begin(self, x: Floats, resets: NDArray[np.bool_]) -> None:
        """Prepare a window of inputs x (T, I). resets: (T,), where the state is set to zeros before the step."""
        empty, num_steps, size, num_gates = self._buffers.empty, len(x), len(self._h), len(self._weights.input_bias)
        states = {name: empty(name, num_steps, size) for name in ("before", "y", "cells_before", "cells")}
        projected, gates = empty("projected", num_steps, num_gates), empty("gates", num_steps, 4 * size)
        self.saved = LaneActivations(x=x, resets=resets, projected=projected, gates=gates, **states)
        self.saved.before[0] = 0.0 if resets[0] else self._h
        self.saved.cells_before[0] = 0.0 if resets[0] else self._c
        self._gradients = LaneGradients(
            carry=empty("carry", num_steps, NUM_PARTS, size),
            dx=empty("dx", NUM_PARTS, num_steps, padded(x.shape[1])),
            input=empty("input", num_gates, num_steps),
            recurrent=empty("recurrent", num_gates, num_steps),
        )

    def read(self, parts: tuple[int, int]) -> None:
        """Run the layer over the window. parts: those of the calling thread, the first and the one after the last."""
        lane_forward(self._weights, self.saved, parts, self._team)

    def end(self) -> Floats:
        """Take over the state after the window; return the outputs (T, H)."""
        self._h[...], self._c[...] = self.saved.y[-1], self.saved.cells[-1]
        return self.saved.y

    def learn(self, dy: Floats, num_targets: int, parts: tuple[int, int]) -> None:
        """Backpropagate dy (T, H), the gradient of the outputs, and update the weights. parts: as for read."""
        lane_backward(self._weights, self.saved, dy, self._gradients, parts, self._team)
        lane_learn(self._weights, self.saved, self._gradients, self._learning, 1 / num_targets, parts)

    def input_gradient(self) -> Floats:
        """Return the gradient of the inputs (T, I) when all threads have learned."""
        return np.ascontiguousarray(self._gradients.dx.sum(axis=0)[:, : self.saved.x.shape[1]])
