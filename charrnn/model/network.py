"""The network: an embedding, recurrent layers, a linear head.

Letters: T steps, B lanes, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.config import ModelConfig, Precision
from charrnn.kernels.head import PackedHead
from charrnn.kernels.recurrent import Packed
from charrnn.model.layers import (
    HiddenState,
    Layer,
    is_fused,
    make_layer,
    pack_layer,
    pack_weight,
    run_layer,
    run_stock_layer,
)


class PackedNetwork(NamedTuple):
    """A network's weights as the kernels of a CPU read them."""

    layers: tuple[Packed, ...]
    head: PackedHead


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

    def initial_state(self, num_lanes: int) -> HiddenState:
        """A state of zeros: a tuple of tensors (L, B, H)."""
        shape = (self.config.num_layers, num_lanes, self.config.hidden_size)
        return tuple(torch.zeros(shape, device=self.head.weight.device) for _ in range(self.config.num_states))

    def pack(
        self,
        precision: Precision = "float32",
        *,
        out: PackedNetwork | None = None,
        each: Callable[..., Iterable[Packed]] = map,
    ) -> PackedNetwork:
        """Lay the weights of the moment out for the kernels of a CPU.

        out: what this returned before the weights changed; its memory is used again. each:
        maps, as `map`, over the layers.
        """
        rest = [None] * (len(self.layers) - 1)
        layers = out.layers if out else [None, *rest]
        head = pack_weight(self.head.weight, precision, (out.head.weight, out.head.weight_back) if out else None)
        return PackedNetwork(
            layers=tuple(
                each(pack_layer, self.layers, [self.embedding.weight, *rest], itertools.repeat(precision), layers)
            ),
            head=PackedHead(*head, self.head.bias.detach().numpy()),
        )

    def features(
        self, x: Tensor, state: HiddenState, masks: Sequence[Tensor] | None = None, packed: PackedNetwork | None = None
    ) -> tuple[Tensor, HiddenState]:
        """Run all but the head.

        x: (T, B) ids, int64; state: tensors (L, B, H); masks: one (B, H) factor a layer for
        its output, or None; packed: the weights where our kernels run them. Where a lane reads
        the config's reset_id, it begins anew. Returns (T, B, H) and the state after the last
        step.
        """
        reset_id = self.config.reset_id
        resets = None if reset_id is None else x == reset_id  # (T, B)
        h = x if packed else self.embedding(x)  # (T, B, E)
        finals = []
        for index, module in enumerate(self.layers):
            layer, before = cast(Layer, module), tuple(part[index] for part in state)
            mask = None if masks is None else masks[index]
            if packed:
                embedding = self.embedding.weight if index == 0 else None
                weights = packed.layers[index]
                h, final = run_layer(layer, h, before, packed=weights, resets=resets, embedding=embedding, mask=mask)
            else:
                h, final = run_stock_layer(layer, h, before, resets=resets, mask=mask)
            finals.append(final)  # h: (T, B, H)
        return h, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def forward(self, x: Tensor, state: HiddenState, packed: PackedNetwork | None = None) -> tuple[Tensor, HiddenState]:
        """Predict the character after each of x, in float32.

        As features, but returns logits (T, B, V); packed: the weights in float32, if they are
        at hand.
        """
        if packed is None and is_fused(self):
            packed = self.pack()
        h, after = self.features(x, state, packed=packed)
        return self.head(h), after
