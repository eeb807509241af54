"""The network: an embedding, recurrent layers, a linear head.

Letters: T steps, B lanes, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.config import ModelConfig, Precision
from charrnn.kernels.head import PackedHead
from charrnn.kernels.recurrent import PackedLayer
from charrnn.model.layers import HiddenState, make_layer, run_layer, run_stock_layer
from charrnn.model.packing import Each, Layer, pack_layer, pack_weight


class PackedNetwork(NamedTuple):
    """A network's weights in the layout that the CPU kernels read."""

    layers: tuple[PackedLayer, ...]
    head: PackedHead


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
        *,
        out: PackedNetwork | None = None,
        each: Each = map,
    ) -> PackedNetwork:
        """Pack the current weights for the CPU kernels.

        out: what this returned before the weights changed; its memory is reused. each: may pack on several threads.
        """
        rest = [None] * (len(self.layers) - 1)
        embeddings, layers = [self.embedding.weight, *rest], out.layers if out else [None, *rest]
        head = pack_weight(self.head.weight, precision, (out.head.weight, out.head.weight_backward) if out else None)
        return PackedNetwork(
            layers=tuple(
                pack_layer(cast(Layer, layer), embedding, precision, packed, each)
                for layer, embedding, packed in zip(self.layers, embeddings, layers, strict=True)
            ),
            head=PackedHead(*head, self.head.bias.detach().numpy()),
        )

    def features(
        self, x: Tensor, state: HiddenState, masks: Sequence[Tensor] | None = None, packed: PackedNetwork | None = None
    ) -> tuple[Tensor, HiddenState]:
        """Run the network without its head: with our kernels if packed is given, without gradients, else with PyTorch.

        x: (T, B) ids, int64; state: tensors (L, B, H); masks: one (B, H) factor per layer for
        its output, or None; packed: the current weights. Where a lane reads the config's reset_id,
        its state is set to zeros first. Returns (T, B, H) and the state after the last step.
        """
        reset_id = self.config.reset_id
        resets = None if reset_id is None else x == reset_id  # (T, B)
        h = x if packed else self.embedding(x)  # (T, B, E)
        finals = []
        for index, module in enumerate(self.layers):
            before = tuple(part[index] for part in state)
            mask = None if masks is None else masks[index]
            if packed:
                h, final = run_layer(packed.layers[index], h, before, resets=resets, mask=mask)
            else:
                h, final = run_stock_layer(cast(Layer, module), h, before, resets=resets, mask=mask)
            finals.append(final)  # h: (T, B, H)
        return h, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def forward(self, x: Tensor, state: HiddenState) -> tuple[Tensor, HiddenState]:
        """Predict the character after each of x with PyTorch's own layers: logits (T, B, V), and the state."""
        h, after = self.features(x, state)
        return self.head(h), after
