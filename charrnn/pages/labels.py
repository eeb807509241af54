"""The report's section about the labels of a model with labels.

Letters: K labels of the model.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from charrnn.text.characters import readable

if TYPE_CHECKING:
    from charrnn.evaluation.labels import LabelScores

MAX_ROWS = 50  # labels in the table
_NUM_MISTAKES = 3  # labels that a label is taken for
_MAX_NAME = 12  # characters of a label above a column


@dataclass(frozen=True)
class Cell:
    """How many documents of a label were taken for another; style: its shade, by their share in the row."""

    count: int
    style: str


@dataclass(frozen=True)
class LabelSection:
    """What the section shows.

    scores: all of them. rows: the most frequent labels, as in LabelScores.records, with those that each was taken for;
    num_more: labels without a row. worst: the most frequent mistake: the label, the guess, how many documents.
    columns, confusion: the confusion table; empty with too many labels for a table.
    """

    scores: "LabelScores"
    rows: list[tuple[dict[str, Any], list[tuple[str, int]]]]
    num_more: int
    worst: tuple[str, str, int] | None
    columns: list[str]
    confusion: list[tuple[str, list[Cell]]]


def show_labels(scores: "LabelScores") -> LabelSection:
    """Return what the template shows of a model's labels."""
    records = list(scores.records())
    has_table = 0 < len(scores.occurring) <= scores.MAX_CONFUSED
    shown = scores.occurring if has_table else []
    return LabelSection(
        scores=scores,
        rows=[(one, scores.mistakes(one["label"])[:_NUM_MISTAKES]) for one in records[:MAX_ROWS]],
        num_more=len(records[MAX_ROWS:]),
        worst=_most_frequent_mistake(scores),
        columns=[_shorten(scores.labels[column]) for column in shown],
        confusion=[(scores.labels[row], _cells(scores, row, shown)) for row in shown],
    )


def _most_frequent_mistake(scores: "LabelScores") -> tuple[str, str, int] | None:
    """Return a label, what it was most often taken for and how often; None without mistakes."""
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    own, guess = np.unravel_index(wrong.argmax(), wrong.shape)
    count = int(wrong[own, guess])
    return (scores.labels[own], scores.labels[guess], count) if count else None


def _cells(scores: "LabelScores", row: int, columns: list[int]) -> list[Cell]:
    """Return a row of the confusion table: blue on its diagonal and orange elsewhere, in four shades."""
    counts = scores.confusion[row]
    levels = np.ceil(4 * counts / max(1, counts.sum())).astype(int)
    hues = {column: "n" if column == row else "p" for column in columns}
    return [Cell(int(counts[one]), f"{hues[one]}{levels[one]}" if counts[one] else "") for one in columns]


def _shorten(label: str) -> str:
    """Cut a label to what fits above a column."""
    words = readable(label)
    return words if len(words) <= _MAX_NAME else words[: _MAX_NAME - 1] + "…"
