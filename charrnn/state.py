"""TrainState: everything that the next step of a training run depends on.

A run that is stopped after any step and started again from its state ends with the same bytes.

Letters: L layers, G lanes, H hidden size.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.cells import State
from charrnn.checkpoint import ModelFile
from charrnn.config import ModelConfig, TrainConfig
from charrnn.distributed import ALONE, Ranks
from charrnn.errors import DivergenceError
from charrnn.model import CharRNN
from charrnn.runs import SavedState
from charrnn.standing import MOMENTS, Standing, check_arrays, standing_of
from charrnn.vocab import Vocab

BETAS = (0.9, 0.99)
AVERAGED = 0.1  # of the steps so far, that the average reaches back at the peak rate
AVERAGE_EVERY = 8  # steps


@dataclass(kw_only=True)
class TrainState(Standing):
    """Everything the next step depends on.

    average: the network with a running mean of the weights, which is what is scored and kept.
    hidden: tensors (L, B, H), carried from window to window, of those of the num_lanes lanes that
    are this rank's; a saved state has all of them, so as many ranks as one likes go on from it.
    """

    model: CharRNN
    average: CharRNN
    optimizer: torch.optim.AdamW
    hidden: State
    num_lanes: int
    ranks: Ranks

    @classmethod
    def fresh(
        cls, model_config: ModelConfig, train_config: TrainConfig, device: torch.device, ranks: Ranks = ALONE
    ) -> "TrainState":
        """The state before the first step."""
        return cls.around(CharRNN(model_config, seed=train_config.seed).to(device), train_config, ranks)

    @classmethod
    def around(cls, model: CharRNN, train_config: TrainConfig, ranks: Ranks = ALONE) -> "TrainState":
        """The state before the first step of a network that is at hand."""
        matrices = [p for p in model.parameters() if p.dim() == 2]
        biases = [p for p in model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": train_config.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
        num_lanes = train_config.batch_size
        lanes = ranks.lanes(num_lanes)
        return cls(
            model=model,
            average=copy.deepcopy(model),
            optimizer=optimizer,
            hidden=model.initial_state(lanes.stop - lanes.start),
            num_lanes=num_lanes,
            ranks=ranks,
        )

    def begin_from(self, base: ModelFile, vocab: Vocab) -> None:
        """Take over a model's weights. vocab: of this run; it has all characters of the model's.

        What the model doesn't know keeps the embedding that was drawn for it, and is at first
        as likely as the least likely character of all.
        """
        arrays, ids = self.model.to_arrays(), vocab.encode(base.vocab.chars)
        arrays["head.weight"][:], arrays["head.bias"][:] = 0.0, base.tensors["head.bias"].min()
        for name, array in base.tensors.items():
            of_characters = name in ("embedding.weight", "head.weight", "head.bias")
            arrays[name][ids if of_characters else ...] = array
        for network in (self.model, self.average):
            network.load_arrays(arrays)

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Let the average follow the weights that a step has just changed, at this share of the peak rate.

        It reaches back over a share of the steps so far, and over fewer as the rate falls:
        there is less noise then to be averaged, and old weights would only hold it back.
        Source: Polyak & Juditsky 1992.
        """
        done = self.since_start(self.step)
        if done % AVERAGE_EVERY == 0:
            share = AVERAGE_EVERY / (AVERAGED * rate * done + AVERAGE_EVERY)
            for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, share)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the state's arrays out, by name; all ranks together. Raises DivergenceError where one is not finite."""
        arrays = {f"weights.{name}": array for name, array in self.model.to_arrays().items()}
        arrays |= {f"average.{name}": array for name, array in self.average.to_arrays().items()}
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                if parameter in self.optimizer.state:  # empty before the first step
                    arrays[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].cpu().numpy().copy()
        hidden = [self.ranks.all_lanes(part, self.num_lanes) for part in self.hidden]
        arrays |= {f"hidden.{i}": part.cpu().numpy().copy() for i, part in enumerate(hidden)}
        return self._finite(arrays)

    def kept_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights that a model file holds. Raises DivergenceError where one is not finite."""
        return self._finite(self.average.to_arrays())

    def _finite(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise DivergenceError(f"training diverged by step {self.step}: {name} is not finite")
        return arrays

    def restore(self, saved: SavedState) -> None:
        """Take over a saved state, into memory that torch allocated (products change with alignment).

        Raises ModelFileError where the file doesn't fit this network, before anything is taken over.
        """
        standing = standing_of(saved.path, saved.meta)
        check_arrays(
            saved.path,
            saved.tensors,
            self.model.config,
            batch_size=self.num_lanes,
            stepped=standing.step > 0,
        )
        for kind, network in (("weights.", self.model), ("average.", self.average)):
            network.load_arrays(_named(saved.tensors, kind))
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters() if standing.step > 0 else ():
            arrays = {moment: saved.tensors[f"{moment}.{name}"] for moment in MOMENTS}
            moments = {moment: torch.tensor(array, device=parameter.device) for moment, array in arrays.items()}
            updates = torch.tensor(float(standing.step), device=parameter.device)
            self.optimizer.state[parameter] = {"step": updates, **moments}
        device, lanes = self.model.head.weight.device, self.ranks.lanes(self.num_lanes)
        self.hidden = tuple(
            torch.tensor(saved.tensors[f"hidden.{index}"][:, lanes], device=device) for index in range(len(self.hidden))
        )
        for part in dataclasses.fields(Standing):
            setattr(self, part.name, getattr(standing, part.name))


def _named(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
