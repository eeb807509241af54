"""Views of one pass over a text's predictions: the totals, the first characters, the least predictable lines."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import UNKNOWN, Vocab
from charrnn.errors import InputError
from charrnn.evaluation.lines import LineSplitter, hardest_lines
from charrnn.evaluation.scores import Evaluation, Line
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.head import Predictions


@dataclass
class Totals:
    """Sums over the predictions of a text. rare_id: the id that stands for any rare character, which is not scored."""

    rare_id: int | None
    nats: float = 0.0
    num_chars: float = 0
    num_rare: float = 0
    network_nats: float = 0.0
    ngram_nats: float = 0.0

    def values(self) -> list[float]:
        """Return the sums, for ranks to add up."""
        return [self.nats, self.num_chars, self.num_rare, self.network_nats, self.ngram_nats]

    def add(self, part: Predictions) -> None:
        """Add a part of the text."""
        scored = slice(None) if self.rare_id is None else part.ids != self.rare_id
        nats = part.nats[scored]
        self.nats += float(nats.sum())
        self.num_chars += len(nats)
        self.num_rare += len(part.ids) - len(nats)
        if part.experts.shape[1]:
            network, ngram = part.experts[scored].sum(0)
            self.network_nats += float(network)
            self.ngram_nats += float(ngram)

    def to_evaluation(self, unknown: dict[str, int]) -> Evaluation:
        """Return the score.

        unknown: counts of the characters that were left out of the text. If it is empty, rare
        characters are reported as unknown, under U+FFFD.
        Raises InputError if no character was scored.
        """
        if self.num_chars == 0:
            raise InputError("nothing to score: the model treats every character of the text as rare")
        experts = (self.network_nats, self.ngram_nats) if self.ngram_nats else None
        rare = {"\ufffd": int(self.num_rare)} if self.num_rare else {}
        return Evaluation(self.nats, int(self.num_chars), unknown or rare, experts)


@dataclass(frozen=True)
class Summary:
    """A text's score, the predictions of its first characters, and its least predictable lines, worst first."""

    score: Evaluation
    first: Predictions
    hardest: list[Line]


def summarise(
    parts: Iterable[Predictions],
    text: EvalText,
    vocab: Vocab,
    *,
    num_first: int = 0,
    num_hardest: int = 0,
) -> Summary:
    """Read the predictions of a text once and collect all views of them.

    parts: at least one. num_first: number of characters whose predictions are returned;
    num_hardest: number of lines.
    """
    totals, splitter = Totals(vocab.id_of(UNKNOWN)), LineSplitter(text, vocab)
    first: list[Predictions] = []
    hardest: list[Line] = []
    for part in parts:
        totals.add(part)
        if num_first > 0 or not first:
            first.append(select(part, slice(num_first)))
            num_first = max(0, num_first - len(part.ids))
        if num_hardest > 0:
            hardest = hardest_lines([*hardest, *splitter.split(part)], num_hardest)
    if num_hardest > 0:
        hardest = hardest_lines([*hardest, *splitter.rest()], num_hardest)
    score = totals.to_evaluation(text.unknown)
    return Summary(score, Predictions(*(np.concatenate(arrays) for arrays in zip(*first, strict=True))), hardest)


def select(predictions: Predictions, rows: slice) -> Predictions:
    """Return the predictions in a range of the first axis, as views."""
    arrays: tuple[NDArray[Any], ...] = predictions
    return Predictions(*(array[rows] for array in arrays))
