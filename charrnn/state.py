"""TrainState: everything that the next step of a training run depends on.

A run that is stopped after any step and started again from its state ends with the same bytes.

Letters: L layers, G lanes, H hidden size.
"""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from charrnn.batches import Cursor
from charrnn.cells import State
from charrnn.checkpoint import check_tensors
from charrnn.config import ModelConfig, TrainConfig
from charrnn.errors import ModelFileError
from charrnn.model import CharRNN
from charrnn.runs import SavedState

BETAS = (0.9, 0.99)
AVERAGED = 0.1  # of the steps so far, that the average reaches back at the peak rate
AVERAGE_EVERY = 8  # steps


@dataclass
class TrainState:
    """Everything the next step depends on.

    average: the network with a running mean of the weights, which is what is scored and kept.
    hidden: tensors (L, G, H), carried from window to window. num_steps is None until the
    speed is known. valid_chars: held-out characters scored on the way; evaluated_step: when
    they last were; bad_evaluations: how often since the best. recent_*: the training loss
    since the last progress event.
    """

    model: CharRNN
    average: CharRNN
    optimizer: torch.optim.AdamW
    hidden: State
    cursor: Cursor = field(default_factory=Cursor)
    step: int = 0
    num_steps: int | None = None
    schedule_start: int = 0
    valid_chars: int = 0
    evaluated_step: int = 0
    bad_evaluations: int = 0
    best_nats: float | None = None
    best_step: int = 0
    recent_nats: float = 0.0
    recent_chars: int = 0
    finished: bool = False

    SCALARS = (
        *("step", "num_steps", "schedule_start", "valid_chars", "evaluated_step", "bad_evaluations"),
        *("best_nats", "best_step", "recent_nats", "recent_chars", "finished"),
    )

    @classmethod
    def fresh(cls, model_config: ModelConfig, train_config: TrainConfig, device: torch.device) -> "TrainState":
        """The state before the first step."""
        return cls.around(CharRNN(model_config, seed=train_config.seed).to(device), train_config)

    @classmethod
    def around(cls, model: CharRNN, train_config: TrainConfig) -> "TrainState":
        """The state before the first step of a network that is at hand."""
        matrices = [p for p in model.parameters() if p.dim() == 2]
        biases = [p for p in model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": train_config.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
        return cls(model, copy.deepcopy(model), optimizer, model.initial_state(train_config.batch_size))

    @property
    def span(self) -> int | None:
        """Steps from where the schedule began to the run's end."""
        return None if self.num_steps is None else self.num_steps - self.schedule_start

    def since_start(self, step: int) -> int:
        """That step as the schedule counts it."""
        return step - self.schedule_start

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

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The state as named arrays and plain values, for a file."""
        arrays = {f"weights.{name}": array for name, array in self.model.to_arrays().items()}
        arrays |= {f"average.{name}": array for name, array in self.average.to_arrays().items()}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:  # empty before the first step
                    arrays[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].cpu().numpy()
        arrays |= {f"hidden.{i}": part.cpu().numpy() for i, part in enumerate(self.hidden)}
        scalars = {name: getattr(self, name) for name in self.SCALARS}
        return arrays, {**scalars, "cursor": asdict(self.cursor)}

    def restore(self, saved: SavedState) -> None:
        """Take over a saved state, into memory that torch allocated (products change with alignment).

        Raises ModelFileError where the file doesn't fit this network.
        """
        for kind, network in (("weights.", self.model), ("average.", self.average)):
            arrays = _named(saved.tensors, kind)
            check_tensors(saved.path, arrays, network.config)
            network.load_arrays(arrays)
        try:
            if saved.meta["step"] > 0:
                for name, parameter in self.model.named_parameters():
                    moments = {
                        moment: torch.tensor(saved.tensors[f"{moment}.{name}"], device=parameter.device)
                        for moment in ("exp_avg", "exp_avg_sq")
                    }
                    updates = torch.tensor(float(saved.meta["step"]), device=parameter.device)
                    self.optimizer.state[parameter] = {"step": updates, **moments}
            for index, part in enumerate(self.hidden):
                part.copy_(torch.tensor(saved.tensors[f"hidden.{index}"]))
            for name in self.SCALARS:
                setattr(self, name, saved.meta[name])
            self.cursor = Cursor(**saved.meta["cursor"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"{saved.path}: not a state of this run ({error})") from None


def _named(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
