"""TrainState: everything that the next step of a training run depends on.

A run that is stopped after any step and resumed from its state ends with the same bytes.

Letters: L layers, G lanes, B lanes of this rank, H hidden size, P parameters.
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
from torch import Tensor

from charrnn.config import Checked, ModelConfig, TrainConfig, setting
from charrnn.data.batches import Cursor
from charrnn.data.vocab import Vocab
from charrnn.distributed import SINGLE, Ranks
from charrnn.errors import DivergenceError, ModelFileError, UsageError
from charrnn.model.container import shorten
from charrnn.model.file import ModelFile, is_finite
from charrnn.model.layers import HiddenState
from charrnn.model.network import CharRNN
from charrnn.runs.folder import SavedState
from charrnn.training.recipe import NUM_EVALUATIONS

EMA_REACH = 0.1  # share of the steps so far that the average covers at the peak learning rate
EMA_EVERY = 8  # steps; each step in a run too short for that between two evaluations
MAX_ROLLBACKS = 3
MOMENTS = ("exp_avg", "exp_avg_sq")  # names of AdamW's
_MAX_COUNT = 10**15


@dataclass
class ScalarState(Checked):
    """The plain values of a run's state: its position in the schedule, the text and the log.

    num_steps: the run's last step, None until the speed is known. valid_chars: held-out characters
    scored by each evaluation. evaluated_step: the step of the last evaluation. bad_evaluations:
    evaluations since the best one. recent_*: sums since the last progress event: of the training
    loss and its characters, of the gradients' norms, of steps and of those that were clipped.
    num_events: events of the run so far. rate_factor: multiplies the learning rate, halved by each
    rollback.
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
    recent_norms: float = setting(0.0, 1e300, default=0.0)
    recent_steps: int = setting(0, _MAX_COUNT, default=0)
    recent_clipped: int = setting(0, _MAX_COUNT, default=0)
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
        """Return a step's number in the schedule."""
        return step - self.schedule_start

    def count_step(self, nats: float, num_targets: int, norm: float, *, is_clipped: bool) -> None:
        """Add a step to the sums since the last progress event. norm: of its gradient, before clipping."""
        self.recent_nats += nats
        self.recent_chars += num_targets
        self.recent_norms += norm
        self.recent_steps += 1
        if is_clipped:
            self.recent_clipped += 1

    def scalars(self) -> dict[str, Any]:
        """Return the values by name, ready for JSON."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(ScalarState)}
        return {**values, "cursor": dataclasses.asdict(self.cursor)}


def verify_state(saved: SavedState, model: ModelConfig, *, batch_size: int) -> ScalarState:
    """Check a state file's values and arrays against the network and the number of lanes; return the values.

    Raises ModelFileError if anything does not match.
    """
    scalars = read_scalars(saved.path, saved.meta)
    shapes = array_shapes(model, batch_size=batch_size, has_moments=scalars.step > 0)
    if {name: array.shape for name, array in saved.tensors.items()} != shapes:
        raise ModelFileError(f"{saved.path}: not a state of this run (its arrays don't match the run's settings)")
    if not all(array.dtype == np.float32 and is_finite(array) for array in saved.tensors.values()):
        raise ModelFileError(f"{saved.path}: not a state of this run (some values are not finite, or too large)")
    return scalars


def read_scalars(path: Path, meta: Mapping[str, Any]) -> ScalarState:
    """Read the plain values of a state file. Raises ModelFileError if they are invalid or contradict each other."""
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
        raise ModelFileError(f"{path}: not a state of a run ({shorten(error)})") from None
    return scalars


def array_shapes(model: ModelConfig, *, batch_size: int, has_moments: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state file's arrays by name. has_moments: AdamW has, after its first step."""
    kinds, sizes = ("weights", "average", *(MOMENTS if has_moments else ())), model.tensor_shapes()
    shapes = {f"{kind}.{name}": shape for kind in kinds for name, shape in sizes.items()}
    lanes = (model.num_layers, batch_size, model.hidden_size)
    return shapes | {f"hidden.{index}": lanes for index in range(model.num_states)}


@dataclass(kw_only=True)
class TrainState(ScalarState):
    """Everything the next step depends on.

    ema: the network with an exponential moving average of the weights, which is scored and saved.
    moments: AdamW's, by name, one tensor for each parameter; empty before the first step.
    hidden: tensors (L, B, H) of this rank's lanes, carried from window to window. A state file
    holds all num_lanes lanes, so any number of ranks can resume from it.
    """

    model: CharRNN
    ema: CharRNN
    moments: dict[str, list[Tensor]]
    weight_decay: float
    hidden: HiddenState
    num_lanes: int
    ranks: Ranks

    @classmethod
    def initial(cls, model: CharRNN, train_config: TrainConfig, ranks: Ranks = SINGLE) -> "TrainState":
        """Create the state before a network's first step."""
        lanes = ranks.lanes(train_config.batch_size)
        return cls(
            model=model,
            ema=copy.deepcopy(model),
            moments={},
            weight_decay=train_config.weight_decay,
            hidden=model.initial_state(lanes.stop - lanes.start),
            num_lanes=train_config.batch_size,
            ranks=ranks,
        )

    def load_base(self, base: ModelFile, vocab: Vocab) -> None:
        """Start from a model's weights. vocab: the run's, which has all characters of the model.

        A character that is new to the model keeps its random embedding and is at first as likely as
        the model's least likely character.
        """
        arrays, ids = self.model.to_arrays(), vocab.encode(base.vocab.chars)
        arrays["head.weight"][:], arrays["head.bias"][:] = 0.0, base.tensors["head.bias"].min()
        for name, array in base.tensors.items():
            has_row_per_character = name in ("embedding.weight", "head.weight", "head.bias")
            arrays[name][ids if has_row_per_character else ...] = array
        for network in (self.model, self.ema):
            network.load_arrays(arrays)

    @torch.no_grad()
    def update_ema(self, rate_share: float) -> None:
        """Move the average towards the weights after a step. rate_share: the step's share of the peak learning rate.

        The average covers a share of the steps so far, and fewer as the learning rate falls: there is
        less noise to average out then, and old weights would only make it worse.
        Source: Polyak & Juditsky 1992.
        """
        done, every = self.since_start(self.step), self._ema_every
        if done % every == 0:
            share = every / (EMA_REACH * rate_share * done + every)
            for mean, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, share)

    @property
    def is_ema_scored(self) -> bool:
        """Whether the average has not moved since the last evaluation, so that its score would be the same."""
        return (
            self.since_start(self.step) // self._ema_every == self.since_start(self.evaluated_step) // self._ema_every
        )

    @property
    def _ema_every(self) -> int:
        """Steps from one move of the average to the next."""
        is_short = self.span is not None and self.span < EMA_EVERY * NUM_EVALUATIONS
        return 1 if is_short else EMA_EVERY

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the state's arrays by name; all ranks call this together.

        Raises DivergenceError if a value is not finite.
        """
        arrays = {f"weights.{name}": array for name, array in self.model.to_arrays().items()}
        arrays |= {f"average.{name}": array for name, array in self.ema.to_arrays().items()}
        names = [name for name, _ in self.model.named_parameters()]
        for moment, tensors in self.moments.items():
            for name, tensor in zip(names, tensors, strict=True):
                arrays[f"{moment}.{name}"] = tensor.cpu().numpy().copy()
        hidden = [self.ranks.all_gather(part, self.num_lanes) for part in self.hidden]
        arrays |= {f"hidden.{i}": part.cpu().numpy().copy() for i, part in enumerate(hidden)}
        return self._check_finite(arrays)

    def ema_arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the averaged weights by name, for a model file. Raises DivergenceError if a value is not finite."""
        return self._check_finite(self.ema.to_arrays())

    def _check_finite(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in arrays.items():
            if not is_finite(array):
                raise DivergenceError(f"training diverged by step {self.step}: {name} is not finite")
        return arrays

    def restore(self, saved: SavedState, scalars: ScalarState) -> None:
        """Load a verified state.

        Arrays are copied into memory that torch allocated, because products depend on its alignment.
        """
        for prefix, network in (("weights.", self.model), ("average.", self.ema)):
            network.load_arrays(_with_prefix(saved.tensors, prefix))
        device, lanes = self.model.head.weight.device, self.ranks.lanes(self.num_lanes)
        names = [name for name, _ in self.model.named_parameters()]
        self.moments = {
            moment: [torch.tensor(saved.tensors[f"{moment}.{name}"], device=device) for name in names]
            for moment in (MOMENTS if scalars.step > 0 else ())
        }
        self.hidden = tuple(
            torch.tensor(saved.tensors[f"hidden.{index}"][:, lanes], device=device) for index in range(len(self.hidden))
        )
        for part in dataclasses.fields(ScalarState):
            setattr(self, part.name, getattr(scalars, part.name))


def _with_prefix(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
