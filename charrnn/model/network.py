"""The network: an embedding, recurrent layers, a linear head.

Letters: T steps, B lanes, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.config import ModelConfig, Precision
from charrnn.kernels.head import Predictions, predict_from_logits
from charrnn.kernels.ngrams import Mixture
from charrnn.model.layers import HiddenState, Layer, array_of, is_fused, make_layer, run_stock_layer
from charrnn.model.packing import FLOAT32_WEIGHTS, Each, PackedNetwork, pack_network
from charrnn.model.windows import KernelNetwork, Reader, State
from charrnn.numerics.vectors import Floats, Stored


class CharRNN(nn.Module):
    """Predicts the next character from the current one and a carried state."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        sizes = [config.embedding_dim] + [config.hidden_size] * config.num_layers
        with torch.random.fork_rng(devices=[]):  # stock modules draw weights, which are replaced below
            self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
            self.layers = nn.ModuleList(make_layer(config.cell, i, h) for i, h in itertools.pairwise(sizes))
            self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw the weights from U(-1/sqrt(H), 1/sqrt(H)) and the embedding from N(0, 1); set biases to zero.

        Its own generator leaves the global one, and with it the caller's numbers, unchanged.
        """
        generator = torch.Generator().manual_seed(seed)
        bound = self.config.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                parameter.normal_(generator=generator)
            elif parameter.dim() == 2:
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()

    @classmethod
    def from_arrays(cls, config: ModelConfig, arrays: Mapping[str, NDArray[Any]]) -> "CharRNN":
        """Build a network with the weights of a model file."""
        model = cls(config)
        model.load_arrays(arrays)
        return model

    @torch.no_grad()
    def load_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy weights into memory that torch allocated.

        Arrays from a file may be unaligned, and that changes the last bit of products.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(torch.tensor(arrays[name]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the weights to arrays, by name."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.named_parameters()}

    def initial_state(self, num_lanes: int) -> HiddenState:
        """Make a state of zeros: a tuple of tensors (L, B, H)."""
        shape = (self.config.num_layers, num_lanes, self.config.hidden_size)
        return tuple(torch.zeros(shape, device=self.head.weight.device) for _ in range(self.config.num_states))

    def pack(
        self,
        precision: Precision = "float32",
        replaced: Mapping[str, Stored] | None = None,
        *,
        out: PackedNetwork | None = None,
        each: Each = map,
    ) -> PackedNetwork:
        """Pack the current weights for the CPU kernels: see packing.pack_network.

        replaced: matrices in that precision that are packed instead of the model's own, by name.
        """
        weights = {name: array_of(parameter) for name, parameter in self.named_parameters()}
        stored: dict[str, Stored] = {**weights, **(replaced or {})}
        if precision == "bfloat16":
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2 and name not in FLOAT32_WEIGHTS and stored[name] is weights[name]:
                    stored[name] = array_of(parameter.detach().bfloat16())
        return pack_network(self.config, weights, stored, out=out, each=each)

    def reader(self, threads: int) -> Reader:
        """Make what reads and predicts text with the current weights: our kernels where they can, else PyTorch.

        threads: of our kernels.
        """
        return KernelNetwork(self.config, self.pack(), threads) if is_fused(self) else StockNetwork(self)

    def features(
        self, x: Tensor, state: HiddenState, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, HiddenState]:
        """Run the network without its head, with PyTorch's own layers.

        x: (T, B) ids, int64; state: tensors (L, B, H); masks: one (B, H) factor per layer for
        its output, or None. Where a lane reads the config's reset_id, its state is set to zeros first.
        Returns (T, B, H) and the state after the last step.
        """
        reset_id = self.config.reset_id
        resets = None if reset_id is None else x == reset_id  # (T, B)
        h = self.embedding(x)  # (T, B, E)
        finals = []
        for index, module in enumerate(self.layers):
            before = tuple(part[index] for part in state)
            mask = None if masks is None else masks[index]
            h, final = run_stock_layer(cast(Layer, module), h, before, resets=resets, mask=mask)
            finals.append(final)  # h: (T, B, H)
        return h, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def forward(self, x: Tensor, state: HiddenState) -> tuple[Tensor, HiddenState]:
        """Predict the character after each of x with PyTorch's own layers: logits (T, B, V), and the state."""
        h, after = self.features(x, state)
        return self.head(h), after


class StockNetwork:
    """A Reader with PyTorch's own layers: on a GPU, or in float64."""

    threads = 1  # PyTorch has its own

    def __init__(self, model: CharRNN) -> None:
        self.config, self._model = model.config, model

    def initial_state(self, num_lanes: int) -> State:
        """Make a state of zeros."""
        return tuple(part.cpu().numpy() for part in self._model.initial_state(num_lanes))

    @torch.inference_mode()
    def features(self, ids: NDArray[np.int64], state: State) -> tuple[Floats, State]:
        """Run the network without its head: see Reader.features."""
        x = self._to_device(np.ascontiguousarray(ids, np.int64))
        h, after = self._model.features(x, tuple(self._to_device(part) for part in state))
        return h.cpu().numpy(), tuple(part.cpu().numpy() for part in after)

    @torch.inference_mode()
    def logits(self, h: Floats) -> Floats:
        """Compute the logits: see Reader.logits."""
        return self._model.head(self._to_device(h)).float().cpu().numpy()  # type: ignore[no-any-return]

    def predict(self, h: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions) -> None:
        """Fill in predictions: see Predictor.predict."""
        predict_from_logits(self.logits(h), mixture, contexts, out)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        weight = self._model.head.weight
        tensor = torch.from_numpy(array).to(weight.device)
        return tensor.to(weight.dtype) if tensor.is_floating_point() else tensor
