"""The report's sections about what is inside a model.

Letters: N characters, S spans of a text.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from charrnn.inspection.findings import PARTS, Alike, ClassBits, Excess, Inside, Memory, Reach
from charrnn.inspection.sentences import describe_bits, describe_memory, describe_reach
from charrnn.pages import charts
from charrnn.pages.colouring import Colouring, colour_text
from charrnn.text.characters import END, label, name

_MAX_EXCERPT = 120  # characters of the text, coloured by a unit
_MAX_LINES = 4
_LINE = re.compile(f"[^\n{END}]+[\n{END}]?")


def show_inside(inside: Inside, text: str, unit: str) -> dict[str, Any]:
    """Return what the template shows of each part; None for one that was not measured.

    text: the one whose characters the units have activations for; unit: a character or a byte.
    """
    found: dict[str, Any] = dict.fromkeys(PARTS)
    if inside.memory:
        found["memory"] = {
            "sentence": describe_memory(inside.memory, unit),
            "chart": _memory_chart(inside.memory, unit),
        }
    if inside.gradient:
        found["gradient"] = {"sentence": describe_reach(inside.gradient, unit), "chart": _reach_chart(inside.gradient)}
    if inside.units:
        found["units"] = [(one, _excerpt(text, one.deviations())) for one in inside.units]
    if inside.bits:
        found["bits"] = {"sentence": describe_bits(inside.bits), "rows": _class_rows(inside.bits)}
    if inside.alike:
        found["alike"] = [_alike_row(one) for one in inside.alike]
    return found


def colour_by_units(inside: Inside) -> list[Colouring]:
    """Colour the text by each unit, in the order of the units."""
    units = inside.units or ()
    return [Colouring("unit", f"unit {one.index}, {one.feature}", one.deviations()) for one in units]


def _excerpt(text: str, values: NDArray[np.float64]) -> Markup:
    """Colour the few lines in which a unit's values (N,) vary the most."""
    spans = _short_spans(text[: len(values)])
    squares, sums = (np.concatenate([[0.0], np.cumsum(values**power)]) for power in (2, 1))
    of_squares, of_values = (np.diff(totals[spans], axis=1)[:, 0] for totals in (squares, sums))
    start, end = spans[np.argmax(of_squares - of_values**2 / np.maximum(1, spans[:, 1] - spans[:, 0]))].tolist()
    return colour_text(text[start:end], values[start:end], kind="unit")


def _short_spans(text: str) -> NDArray[np.int64]:
    """Return where each few short lines begin and end, (S, 2); the beginning of the text if all lines are long."""
    lines = np.array([found.span() for found in _LINE.finditer(text)], np.int64).reshape(-1, 2)
    firsts = np.arange(len(lines))
    lasts = np.searchsorted(lines[:, 1], lines[:, 0] + _MAX_EXCERPT, side="right") - 1
    lasts = np.minimum(lasts, firsts + _MAX_LINES - 1)
    spans = np.stack([lines[:, 0], lines[lasts, 1]], axis=1)[lasts >= firsts]
    return spans if len(spans) else np.array([[0, min(len(text), _MAX_EXCERPT)]])


def _memory_chart(memory: Memory, unit: str) -> Markup:
    known = [(f"network{' alone' if memory.mixture else ''}", memory.network, "train")]
    if memory.mixture:
        known.append(("with n-grams", memory.mixture, "valid"))
    series = [_excess_series(words, memory.ages, excess, style) for words, excess, style in known]
    low, high = charts.padded_range(
        (edge for one in series for _, *edges in one.band for edge in edges), from_zero=True
    )
    return charts.lines(
        "memory-chart",
        f"Cost of knowing only the last {unit}s",
        series,
        charts.Axis(f"{unit}s known", 1, max(memory.max_age, 10), is_log=True, place="length"),
        charts.Axis(f"excess bits per {unit}", low, high),
    )


def _excess_series(words: str, ages: Sequence[float], excess: Excess, style: str) -> charts.Series:
    return charts.Series(
        words,
        list(zip(ages, excess.bits, strict=True)),
        style,
        band=[
            (age, cost - error, cost + error) for age, cost, error in zip(ages, excess.bits, excess.errors, strict=True)
        ],
    )


def _reach_chart(reach: Reach) -> Markup:
    steps = range(len(reach.median))
    series = charts.Series(
        "median", list(enumerate(reach.median)), "train", band=list(zip(steps, reach.lower, reach.upper, strict=True))
    )
    low, high = _decades([*reach.median, *reach.lower, *reach.upper])
    return charts.lines(
        "gradient-chart",
        "Gradient norm by distance from the loss",
        [series],
        charts.Axis("steps back", 0, max(len(steps) - 1, 1)),
        charts.Axis("gradient norm", low, high, is_log=True),
    )


def _decades(values: Iterable[float]) -> charts.Range:
    """Return the powers of ten around the values that have a logarithm."""
    exponents = [math.log10(value) for value in values if 0 < value < math.inf]
    low = math.floor(min(exponents, default=0.0))
    return 10.0**low, 10.0 ** max(math.ceil(max(exponents, default=0.0)), low + 1)


@dataclass(frozen=True)
class ClassRow:
    """A class of characters as a row of the table: shares are of all that is scored."""

    found: ClassBits
    share: float
    bar: Markup
    note: str

    @property
    def bits_per_char(self) -> float:
        return self.found.bits / max(1, self.found.num_chars)


def _class_rows(classes: Sequence[ClassBits]) -> list[ClassRow]:
    """Return the classes with their shares of the bits, the largest first."""
    total, largest = sum(one.bits for one in classes), max(one.bits for one in classes)
    rows = []
    for one in sorted(classes, key=lambda one: -one.bits):
        share, note = one.bits / total if total else 0.0, ""
        if one.network is not None and one.ngram is not None:
            network, ngram = one.network / max(1, one.num_chars), one.ngram / max(1, one.num_chars)
            note = f"network {network:.2f}, n-grams {ngram:.2f}"
        rows.append(ClassRow(one, share, charts.bar(one.bits, largest, f"{share:.1%} of all bits", style="own"), note))
    return rows


def _alike_row(alike: Alike) -> list[tuple[str, str, str]]:
    """Return label, name and cosine of a character and of those that are like it; its own cosine is empty."""
    return [(label(alike.char), name(alike.char), "")] + [
        (label(char), name(char), f"{cosine:.2f}") for char, cosine in alike.nearest
    ]
