"""The network: an embedding, recurrent layers, a linear head.

Letters: T steps, B lanes, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.cells import Layer, State, make_layer, run_layer
from charrnn.config import ModelConfig


class CharRNN(nn.Module):
    """Predicts the next character from the one at hand and a carried state."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        sizes = [config.embedding_dim] + [config.hidden_size] * config.num_layers
        with torch.random.fork_rng(devices=[]):  # stock modules draw weights that are replaced at once
            self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
            self.layers = nn.ModuleList(make_layer(config.cell, i, h) for i, h in itertools.pairwise(sizes))
            self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw the weights from U(-1/sqrt(H), 1/sqrt(H)), embeddings from N(0, 1); biases are zero.

        A generator of its own keeps the global one, and with it the caller's numbers, untouched.
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
        """Build the network around weights from a model file."""
        model = cls(config)
        model.load_arrays(arrays)
        return model

    @torch.no_grad()
    def load_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over weights, into memory that torch allocated.

        Arrays out of a file lie unaligned, and products change in the last bit with that.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(torch.tensor(arrays[name]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the weights out, by name."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.named_parameters()}

    def initial_state(self, num_lanes: int) -> State:
        """A state of zeros: a tuple of tensors (L, B, H)."""
        shape = (self.config.num_layers, num_lanes, self.config.hidden_size)
        return tuple(torch.zeros(shape, device=self.head.weight.device) for _ in range(self.config.num_states))

    def forward(self, x: Tensor, state: State, masks: Sequence[Tensor] | None = None) -> tuple[Tensor, State]:
        """Predict the character after each of x.

        x: (T, B) ids, int64; state: tensors (L, B, H); masks: one (B, H) factor a layer for
        its output, or None. Returns logits (T, B, V) and the state after the last step.
        """
        h = self.embedding(x)  # (T, B, E)
        finals = []
        for index, layer in enumerate(self.layers):
            h, final = run_layer(cast(Layer, layer), h, tuple(part[index] for part in state))  # (T, B, H)
            finals.append(final)
            if masks is not None:
                h = h * masks[index]
        return self.head(h), tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
