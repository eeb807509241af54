"""Results of an evaluation, as plain data: scores, baselines, lines, copied text."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from charrnn.events import bits

EXPERTS = ("network", "ngram")  # the two models in a mixture
LONG_RUN = 300  # characters; texts with many shared runs this long have a common source


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

    def record(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {name: getattr(self, name) for name in ("num_chars", "nats_per_char", "bits_per_char", "perplexity")}


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
    start: the index of its first scored character among all that are scored. label: of the document that
    begins with the line; its characters are scored as well.
    """

    number: int
    text: str
    nats: float
    num_chars: int
    num_unknown: int = 0
    is_document: bool = False
    start: int = 0
    label: str | None = None

    @property
    def bits(self) -> float:
        return bits(self.nats)

    @property
    def bits_per_char(self) -> float:
        return bits(self.nats / max(1, self.num_chars))

    @property
    def numbered(self) -> str:
        """What the number counts."""
        return "document" if self.is_document else "line"

    def record(self) -> dict[str, Any]:
        """Return the line as the JSON object of `--per-line`."""
        counts = {"num_chars": self.num_chars, "num_unknown": self.num_unknown}
        label = {} if self.label is None else {"label": self.label}
        return {self.numbered: self.number, "bits": self.bits, **counts, **label, "text": self.text}


@dataclass(frozen=True)
class Copied:
    """How much of a text is copied from another.

    num_chars: length of the text; num_copied, num_long: its characters in verbatim runs of at least
    COPIED_RUN and LONG_RUN; longest: length of the longest run. num_documents: its complete documents, 0
    for a running text; num_known: those that the other text has as well.
    """

    num_chars: int
    num_copied: int
    longest: int
    num_long: int = 0
    num_documents: int = 0
    num_known: int = 0

    @property
    def share(self) -> float:
        return self.num_copied / max(1, self.num_chars)

    @property
    def known_share(self) -> float:
        """The share of whole documents that are copies."""
        return self.num_known / max(1, self.num_documents)

    @property
    def long_share(self) -> float:
        return self.num_long / max(1, self.num_chars)

    def record(self) -> dict[str, Any]:
        """Return the counts as a JSON object, with the share of copied characters."""
        return asdict(self) | {"share": self.share}


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

    adapted: the score of a copy of the model that learns from the text as it reads. unit: what the
    model predicts, a character or a byte.
    """

    score: Evaluation
    baselines: tuple[Baseline, ...] = ()
    adapted: Evaluation | None = None
    copied: CopiedShares | None = None
    unit: str = "character"

    def record(self) -> dict[str, Any]:
        """Return the assessment as the JSON object of `--json`; what wasn't asked for is null or empty."""
        experts = self.score.experts
        return {
            **self.score.record(),
            "unit": self.unit,
            "num_unknown": self.score.num_unknown,
            "unknown": self.score.unknown,
            "yardsticks": [asdict(one) | {"bits_per_char": one.bits_per_char} for one in self.baselines],
            "adapted": self.adapted and self.adapted.record(),
            "copied": self.copied and {name: part and part.record() for name, part in self.copied._asdict().items()},
            "experts": experts and dict(zip(EXPERTS, (nats / self.score.num_chars for nats in experts), strict=True)),
        }
