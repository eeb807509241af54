"""Events: the facts that a training run yields, as frozen dataclasses.

The training loop yields events; the caller shows or logs them. Losses are in nats internally
and in bits per character where people read them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


def bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)


def bits_per(unit: str) -> str:
    """Return the short name of bits per character or per byte."""
    return "bits/byte" if unit == "byte" else "bits/char"


@dataclass(frozen=True)
class Event:
    """Something that happened in a run after `step` optimiser updates."""

    event: ClassVar[str]
    step: int

    def record(self) -> dict[str, Any]:
        """Return the event as the JSON object of `log.jsonl` and `--json`."""
        return {"event": self.event, **asdict(self)}


@dataclass(frozen=True)
class Plan(Event):
    """What a run will do, with every setting resolved. Sizes are in characters or bytes.

    unit: what the network predicts, a character or a byte; counts of characters are in this unit.
    valid: the held-out file, or None if the end of the text is held out. threads: per process.
    steps: None if the budget is a time; the first steps then measure the speed and determine it.
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
    unit: str = "character"


@dataclass(frozen=True)
class Resumed(Event):
    """An earlier run resumes from its saved state; `note` gives details."""

    event = "resumed"
    note: str


@dataclass(frozen=True)
class Progress(Event):
    """The mean loss of the training characters since the previous such event, the gradients, and the speed.

    The loss is measured with dropout, as the optimiser sees it. num_steps and seconds_left are
    None until the speed is known. grad_norm: the mean norm of the steps' gradients before clipping;
    clipped: the share of the steps whose gradient was clipped.
    """

    event = "progress"
    num_steps: int | None
    nats_per_char: float
    learning_rate: float
    chars_per_second: float
    seconds_left: float | None
    grad_norm: float
    clipped: float


@dataclass(frozen=True)
class Evaluated(Event):
    """The score of the held-out text (`whole`), or of the fixed parts of it that are scored during training.

    best: whether it is the best score so far.
    """

    event = "evaluated"
    nats_per_char: float
    bits_per_char: float
    num_chars: int
    whole: bool
    best: bool
    unit: str = "character"


@dataclass(frozen=True)
class Sample(Event):
    """A short text generated with the current weights."""

    event = "sample"
    text: str


@dataclass(frozen=True)
class Saved(Event):
    """The best weights so far were written to the model file."""

    event = "saved"
    path: str


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know that doesn't end the run."""

    event = "warning"
    message: str


@dataclass(frozen=True)
class Stopped(Event):
    """The run ends early because the held-out score has not improved since best_step."""

    event = "stopped"
    best_step: int


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete. The score is that of the best weights on the held-out text, or on parts of a long one.

    best_step: the step of those weights. The test text, if there is one, played no part in
    choosing them. If n-grams are mixed in, network and n-grams also have separate scores.
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
    unit: str = "character"
