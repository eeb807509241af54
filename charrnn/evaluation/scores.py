"""TODO."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from charrnn.events import bits


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
class Baseline:
    """What another predictor spends on the same characters. note: how it was measured."""

    name: str
    nats_per_char: float
    note: str = ""

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats_per_char)


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
    baselines: tuple[Baseline, ...] = ()
    adapted: Evaluation | None = None
    copied: CopiedShares | None = None
