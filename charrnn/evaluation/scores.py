"""Results of an evaluation, as plain data: scores, baselines, lines, copied text."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from charrnn.events import bits

EXPERTS = ("network", "ngram")  # the two models in a mixture
COPIED_RUN = 30  # characters; a shared run this long is no coincidence


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text: a sum of nats over a count of characters.

    unknown: counts of the characters outside the vocabulary, which are neither fed nor scored.
    experts: for a mixture, the nats of the network alone and of the n-grams alone.
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
        return math.exp(min(self.nats_per_char, 700.0))  # e^709 is the largest finite double

    @property
    def num_unknown(self) -> int:
        return sum(self.unknown.values())


@dataclass(frozen=True)
class Baseline:
    """The score of a simpler predictor on the same characters. note: how it was measured."""

    name: str
    nats_per_char: float
    note: str = ""

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats_per_char)


@dataclass(frozen=True)
class Line:
    """The score of one line of a text, including its newline.

    number: of the line in its text, from 1; is_document: of the document that it belongs to instead.
    num_chars: scored characters; num_unknown: those outside the vocabulary, which are not scored.
    start: the index of its first scored character among all that are scored.
    """

    number: int
    text: str
    nats: float
    num_chars: int
    num_unknown: int = 0
    is_document: bool = False
    start: int = 0

    @property
    def bits(self) -> float:
        return bits(self.nats)

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats / max(1, self.num_chars))


@dataclass(frozen=True)
class Copied:
    """How much of a text is copied from another.

    num_chars: length of the text; num_copied: its characters in verbatim runs of at least COPIED_RUN;
    longest: length of the longest such run.
    """

    num_chars: int
    num_copied: int
    longest: int

    @property
    def share(self) -> float:
        return self.num_copied / self.num_chars


class CopiedShares(NamedTuple):
    """What is copied from the training text.

    written: in samples of the model; network: in samples of a mixture's network alone; text: in the scored text.
    """

    written: Copied
    network: Copied | None
    text: Copied


@dataclass(frozen=True)
class Assessment:
    """A model's score on a text and the comparisons that were asked for; the others are empty.

    adapted: the score of a copy of the model that learns from the text as it reads.
    """

    score: Evaluation
    baselines: tuple[Baseline, ...] = ()
    adapted: Evaluation | None = None
    copied: CopiedShares | None = None
