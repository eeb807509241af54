"""Where a run stands: the plain values of its state, checked as settings are.

They are written with the arrays of a state (state.py) and read back without PyTorch, by
whoever plans how the run goes on.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.batches import Cursor
from charrnn.checkpoint import Tensors
from charrnn.config import Checked, ModelConfig, setting
from charrnn.errors import ModelFileError, UsageError

MAX_ROLLBACKS = 3
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
_MANY = 10**15


@dataclass
class Standing(Checked):
    """How far a run is, in its schedule, its text and its log.

    num_steps is None until the speed is known. valid_chars: held-out characters scored on the
    way; evaluated_step: when they last were; bad_evaluations: how often since the best.
    recent_*: the training loss since the last progress event. num_events: how many the run has
    told. rate_factor: of the learning rate, halved by each of the rollbacks.
    """

    step: int = setting(0, _MANY, default=0)
    num_steps: int | None = setting(1, _MANY, default=None)
    schedule_start: int = setting(0, _MANY, default=0)
    valid_chars: int = setting(0, _MANY, default=0)
    evaluated_step: int = setting(0, _MANY, default=0)
    bad_evaluations: int = setting(0, _MANY, default=0)
    best_nats: float | None = setting(0.0, 1e300, default=None)
    best_step: int = setting(0, _MANY, default=0)
    recent_nats: float = setting(0.0, 1e300, default=0.0)
    recent_chars: int = setting(0, _MANY, default=0)
    num_events: int = setting(0, _MANY, default=0)
    rate_factor: float = setting(0.0, 1.0, default=1.0)
    num_rollbacks: int = setting(0, MAX_ROLLBACKS, default=0)
    finished: bool = False
    cursor: Cursor = field(default_factory=Cursor)

    @property
    def span(self) -> int | None:
        """Steps from where the schedule began to the run's end."""
        return None if self.num_steps is None else self.num_steps - self.schedule_start

    def since_start(self, step: int) -> int:
        """That step as the schedule counts it."""
        return step - self.schedule_start

    def standing(self) -> dict[str, Any]:
        """The values by name, as plain ones."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(Standing)}
        return {**values, "cursor": dataclasses.asdict(self.cursor)}


def standing_of(path: Path, meta: Mapping[str, Any]) -> Standing:
    """Where the run of a state file stood. Raises ModelFileError where the file says nonsense."""
    try:
        values = {part.name: meta[part.name] for part in dataclasses.fields(Standing)}
        stood = Standing(**{**values, "cursor": Cursor(values["cursor"]["pass_index"], values["cursor"]["time"])})
        last = stood.step if stood.num_steps is None else stood.num_steps
        if not max(stood.schedule_start, stood.evaluated_step, stood.best_step) <= stood.step <= last:
            raise UsageError("its steps contradict one another")
        if stood.span == 0:
            raise UsageError("its schedule has no steps")
    except (KeyError, TypeError, UsageError) as error:
        raise ModelFileError(f"{path}: not a state of a run ({error})") from None
    return stood


def array_shapes(model: ModelConfig, *, batch_size: int, stepped: bool) -> dict[str, tuple[int, ...]]:
    """The arrays of a state, by name. stepped: whether there was a step, after which AdamW has its moments."""
    kinds, sizes = ("weights", "average", *(MOMENTS if stepped else ())), model.tensor_shapes()
    shapes = {f"{kind}.{name}": shape for kind in kinds for name, shape in sizes.items()}
    lanes = (model.num_layers, batch_size, model.hidden_size)
    return shapes | {f"hidden.{index}": lanes for index in range(model.num_states)}


def check_arrays(path: Path, arrays: Tensors, model: ModelConfig, *, batch_size: int, stepped: bool) -> None:
    """Check that these are a state's arrays: names, shapes, type, finite. Raises ModelFileError otherwise."""
    shapes = array_shapes(model, batch_size=batch_size, stepped=stepped)
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise ModelFileError(f"{path}: not a state of this run (other arrays than its settings imply)")
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
        raise ModelFileError(f"{path}: not a state of this run (values that are not finite)")
