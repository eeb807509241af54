"""Facts: what a run or an evaluation found out, as frozen dataclasses.

The training loop yields events; whoever consumes them draws or logs them. Losses are
nats inside and bits per character where people read them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


def bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, after optimiser update number `step`."""

    event: ClassVar[str]
    step: int

    def record(self) -> dict[str, Any]:
        """The event as the JSON object that `log.jsonl` and `--json` hold."""
        return {"event": self.event, **asdict(self)}


@dataclass(frozen=True)
class Plan(Event):
    """What a run is going to do, everything resolved. Sizes in characters and bytes.

    valid is the file that is held out where it isn't the text's end. threads are those of each process.
    steps is None when the budget is a time: the first steps measure the speed and fix it.
    """

    event = "plan"
    run: str
    texts: list[str]
    num_chars: int
    num_train_chars: int
    num_valid_chars: int
    num_test_chars: int
    valid: str | None
    vocab_size: int
    model: dict[str, Any]
    training: dict[str, Any]
    num_parameters: int
    memory_bytes: int
    steps: int | None
    minutes: float | None
    device: str
    threads: int
    processes: int
    precision: str
    notes: list[str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Resumed(Event):
    """An earlier run goes on from its saved state; `note` says how."""

    event = "resumed"
    note: str


@dataclass(frozen=True)
class Progress(Event):
    """The loss of the training characters since the last such event, and the pace.

    The loss is measured with dropout on, as the optimiser sees it. num_steps and
    seconds_left are None until the speed is known.
    """

    event = "progress"
    num_steps: int | None
    nats_per_char: float
    learning_rate: float
    chars_per_second: float
    seconds_left: float | None


@dataclass(frozen=True)
class Evaluated(Event):
    """The held-out text, or the fixed stretches of it that are scored on the way (`whole` False)."""

    event = "evaluated"
    nats_per_char: float
    bits_per_char: float
    num_chars: int
    whole: bool
    best: bool


@dataclass(frozen=True)
class Sample(Event):
    """A short text drawn from the weights of the moment."""

    event = "sample"
    text: str


@dataclass(frozen=True)
class Saved(Event):
    """The model file holds the best weights so far."""

    event = "saved"
    path: str


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know that doesn't end the run."""

    event = "warning"
    message: str


@dataclass(frozen=True)
class Stopped(Event):
    """The run ends early: the held-out text has not been predicted better since best_step."""

    event = "stopped"
    best_step: int


@dataclass(frozen=True)
class Finished(Event):
    """The run is over. The score is that of the best weights on the whole held-out text.

    best_step is the step those weights were taken from. The test text, where one is held out
    too, has chosen nothing. Where n-grams are mixed in, the two alone have scores too.
    """

    event = "finished"
    model: str
    best_step: int
    nats_per_char: float
    bits_per_char: float
    num_chars: int
    test_nats_per_char: float | None = None
    num_test_chars: int = 0
    network_nats_per_char: float | None = None
    ngram_nats_per_char: float | None = None
