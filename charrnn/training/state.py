"""TrainState: everything that the next step of a training run depends on.

A run that is stopped after any step and resumed from its state ends with the same bytes.

Letters: L layers, G lanes, B lanes of this rank, H hidden size.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.config import Checked, ModelConfig, TrainConfig, setting
from charrnn.data.batches import Cursor
from charrnn.data.vocab import Vocab
from charrnn.distributed import SINGLE, Ranks
from charrnn.errors import DivergenceError, ModelFileError, UsageError
from charrnn.model.file import ModelFile
from charrnn.model.layers import HiddenState
from charrnn.model.network import CharRNN
from charrnn.training.folder import SavedState

BETAS = (0.9, 0.99)
EMA_REACH = 0.1  # share of the steps so far that the average reaches back over, at the peak rate
EMA_EVERY = 8  # steps
MAX_ROLLBACKS = 3
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
_MAX_COUNT = 10**15


@dataclass
class ScalarState(Checked):
    """The plain values of a run's state: how far it is in its schedule, its text and its log.

    num_steps: None until the speed is known. valid_chars: held-out characters scored during
    training; evaluated_step: when they were scored last; bad_evaluations: how many evaluations since
    the best. recent_*: the training loss since the last progress event. num_events: events of the
    run so far. rate_factor: of the learning rate, halved by each rollback.
    """

    step: int = setting(0, _MAX_COUNT, default=0)
    num_steps: int | None = setting(1, _MAX_COUNT, default=None)
    schedule_start: int = setting(0, _MAX_COUNT, default=0)
    valid_chars: int = setting(0, _MAX_COUNT, default=0)
    evaluated_step: int = setting(0, _MAX_COUNT, default=0)
    bad_evaluations: int = setting(0, _MAX_COUNT, default=0)
    best_nats: float | None = setting(0.0, 1e300, default=None)
    best_step: int = setting(0, _MAX_COUNT, default=0)
    recent_nats: float = setting(0.0, 1e300, default=0.0)
    recent_chars: int = setting(0, _MAX_COUNT, default=0)
    num_events: int = setting(0, _MAX_COUNT, default=0)
    rate_factor: float = setting(0.0, 1.0, default=1.0)
    num_rollbacks: int = setting(0, MAX_ROLLBACKS, default=0)
    finished: bool = False
    cursor: Cursor = field(default_factory=Cursor)

    @property
    def span(self) -> int | None:
        """Steps from the schedule's start to the run's end."""
        return None if self.num_steps is None else self.num_steps - self.schedule_start

    def since_start(self, step: int) -> int:
        """A step's number in the schedule."""
        return step - self.schedule_start

    def scalars(self) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(ScalarState)}
        return {**values, "cursor": dataclasses.asdict(self.cursor)}


def verify_state(saved: SavedState, model: ModelConfig, *, batch_size: int) -> ScalarState:
    """Check a state file's values and arrays against the network and the number of lanes; return the values.

    Raises ModelFileError where anything doesn't fit.
    """
    scalars = read_scalars(saved.path, saved.meta)
    shapes = array_shapes(model, batch_size=batch_size, has_moments=scalars.step > 0)
    if {name: array.shape for name, array in saved.tensors.items()} != shapes:
        raise ModelFileError(f"{saved.path}: not a state of this run (its arrays don't match the run's settings)")
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in saved.tensors.values()):
        raise ModelFileError(f"{saved.path}: not a state of this run (some values are not finite)")
    return scalars


def read_scalars(path: Path, meta: Mapping[str, Any]) -> ScalarState:
    """Read the plain values of a state file. Raises ModelFileError where they contradict each other."""
    try:
        values = {part.name: meta[part.name] for part in dataclasses.fields(ScalarState)}
        cursor = Cursor(values["cursor"]["pass_index"], values["cursor"]["time"])
        scalars = ScalarState(**{**values, "cursor": cursor})
        last = scalars.step if scalars.num_steps is None else scalars.num_steps
        if not max(scalars.schedule_start, scalars.evaluated_step, scalars.best_step) <= scalars.step <= last:
            raise UsageError("its steps contradict each other")
        if scalars.span == 0:
            raise UsageError("its schedule has no steps")
    except (KeyError, TypeError, UsageError) as error:
        raise ModelFileError(f"{path}: not a state of a run ({error})") from None
    return scalars


def array_shapes(model: ModelConfig, *, batch_size: int, has_moments: bool) -> dict[str, tuple[int, ...]]:
    """The arrays of a state file, by name. has_moments: whether there was a step, after which AdamW has its moments."""
    kinds, sizes = ("weights", "average", *(MOMENTS if has_moments else ())), model.tensor_shapes()
    shapes = {f"{kind}.{name}": shape for kind in kinds for name, shape in sizes.items()}
    lanes = (model.num_layers, batch_size, model.hidden_size)
    return shapes | {f"hidden.{index}": lanes for index in range(model.num_states)}


@dataclass(kw_only=True)
class TrainState(ScalarState):
    """Everything the next step depends on.

    ema: the network with an exponential moving average of the weights, which is scored and saved.
    hidden: tensors (L, B, H), carried from window to window, of this rank's lanes; a state file
    has all num_lanes lanes, so any number of ranks can resume from it.
    """

    model: CharRNN
    ema: CharRNN
    optimizer: torch.optim.AdamW
    hidden: HiddenState
    num_lanes: int
    ranks: Ranks

    @classmethod
    def initial(cls, model: CharRNN, train_config: TrainConfig, ranks: Ranks = SINGLE) -> "TrainState":
        """The state before the first step of a network."""
        matrices = [p for p in model.parameters() if p.dim() == 2]
        biases = [p for p in model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": train_config.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        lanes = ranks.lanes(train_config.batch_size)
        return cls(
            model=model,
            ema=copy.deepcopy(model),
            optimizer=torch.optim.AdamW(groups, betas=BETAS, fused=True),
            hidden=model.initial_state(lanes.stop - lanes.start),
            num_lanes=train_config.batch_size,
            ranks=ranks,
        )

    def load_base(self, base: ModelFile, vocab: Vocab) -> None:
        """Start from a model's weights. vocab: of this run; it has all characters of the model.

        A character that is new to the model keeps its random embedding, and starts out as likely as
        the least likely character of the model.
        """
        arrays, ids = self.model.to_arrays(), vocab.encode(base.vocab.chars)
        arrays["head.weight"][:], arrays["head.bias"][:] = 0.0, base.tensors["head.bias"].min()
        for name, array in base.tensors.items():
            has_row_per_character = name in ("embedding.weight", "head.weight", "head.bias")
            arrays[name][ids if has_row_per_character else ...] = array
        for network in (self.model, self.ema):
            network.load_arrays(arrays)

    @torch.no_grad()
    def update_ema(self, rate: float) -> None:
        """Move the average towards the weights that a step has just changed. rate: the step's share of the peak rate.

        The average reaches back over a share of the steps so far, and over fewer as the rate
        falls: then there is less noise to average out, and old weights would only hold it back.
        Source: Polyak & Juditsky 1992.
        """
        done = self.since_start(self.step)
        if done % EMA_EVERY == 0:
            share = EMA_EVERY / (EMA_REACH * rate * done + EMA_EVERY)
            for mean, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, share)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the state's arrays out, by name; all ranks do this together.

        Raises DivergenceError where a value is not finite.
        """
        arrays = {f"weights.{name}": array for name, array in self.model.to_arrays().items()}
        arrays |= {f"average.{name}": array for name, array in self.ema.to_arrays().items()}
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                if parameter in self.optimizer.state:  # empty before the first step
                    arrays[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].cpu().numpy().copy()
        hidden = [self.ranks.all_gather(part, self.num_lanes) for part in self.hidden]
        arrays |= {f"hidden.{i}": part.cpu().numpy().copy() for i, part in enumerate(hidden)}
        return self._check_finite(arrays)

    def ema_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy out the weights that a model file holds. Raises DivergenceError where a value is not finite."""
        return self._check_finite(self.ema.to_arrays())

    def _check_finite(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise DivergenceError(f"training diverged by step {self.step}: {name} is not finite")
        return arrays

    def restore(self, saved: SavedState, scalars: ScalarState) -> None:
        """Load a verified state. Arrays go into memory that torch allocated, because products change with alignment."""
        for prefix, network in (("weights.", self.model), ("average.", self.ema)):
            network.load_arrays(_with_prefix(saved.tensors, prefix))
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters() if scalars.step > 0 else ():
            arrays = {moment: saved.tensors[f"{moment}.{name}"] for moment in MOMENTS}
            moments = {moment: torch.tensor(array, device=parameter.device) for moment, array in arrays.items()}
            updates = torch.tensor(float(scalars.step), device=parameter.device)
            self.optimizer.state[parameter] = {"step": updates, **moments}
        device, lanes = self.model.head.weight.device, self.ranks.lanes(self.num_lanes)
        self.hidden = tuple(
            torch.tensor(saved.tensors[f"hidden.{index}"][:, lanes], device=device) for index in range(len(self.hidden))
        )
        for part in dataclasses.fields(ScalarState):
            setattr(self, part.name, getattr(scalars, part.name))


def _with_prefix(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
