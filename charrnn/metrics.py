"""Facts: what a run or an evaluation found out, as frozen dataclasses.

The training loop yields events; whoever consumes them draws or logs them. Losses are
nats inside and bits per character where people read them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text: a sum of nats over a count of characters.

    unknown counts the characters outside the vocabulary, which are neither fed nor scored.
    experts: nats of the network and of the n-grams alone, where the model is a mixture of them.
    """

    nats: float
    num_chars: int
    unknown: dict[str, int]
    experts: tuple[float, float] | None = None

    @property
    def nats_per_char(self) -> float:
        return self.nats / self.num_chars

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats_per_char)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats_per_char, 700.0))  # e^709 is the last finite double

    @property
    def num_unknown(self) -> int:
        return sum(self.unknown.values())


@dataclass(frozen=True)
class Yardstick:
    """What another predictor spends on the same characters. note: how it was measured."""

    name: str
    nats_per_char: float
    note: str = ""

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats_per_char)


class Predictions(NamedTuple):
    """What a model expected where each of N characters came.

    ids: (N,), the characters; nats: (N,), what each cost; ranks: (N,), how many were thought
    likelier; top, probabilities: (N, K), the K likeliest characters' ids, and how likely they were;
    experts: of a mixture, (N, 2), what each cost the network and the n-grams alone, else (N, 0).
    """

    ids: NDArray[Any]
    nats: NDArray[np.float64]
    ranks: NDArray[np.int32]
    top: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    experts: NDArray[np.float64] = np.empty((0, 0))


@dataclass(frozen=True)
class Line:
    """What a line of the text costs, its newline included. number: from 1."""

    number: int
    text: str
    nats: float
    num_chars: int

    @property
    def bits(self) -> float:
        return bits(self.nats)

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats / max(1, self.num_chars))  # none where all are rare


EXPERTS = ("network", "ngram")  # of a mixture
COPIED_RUN = 30  # characters in a row that are no coincidence


@dataclass(frozen=True)
class Copied:
    """How much of a text stands in another: characters in verbatim runs of COPIED_RUN at least, and the longest run."""

    num_chars: int
    num_copied: int
    longest: int

    @property
    def share(self) -> float:
        return self.num_copied / self.num_chars


class CopiedShares(NamedTuple):
    """What is copied from the training text: of what a model writes, of what its network alone does, of a text."""

    written: Copied
    network: Copied | None
    text: Copied


@dataclass(frozen=True)
class Assessment:
    """All that was found out about a model on a text; what wasn't asked for is empty.

    adapted: the score of a model that learns from the text as it reads.
    """

    score: Evaluation
    yardsticks: tuple[Yardstick, ...] = ()
    adapted: Evaluation | None = None
    copied: CopiedShares | None = None


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
