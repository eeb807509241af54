"""What is inside a model, in a terminal: a table and a sentence for each part, and text coloured by units."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from charrnn.events import bits_per
from charrnn.inspection import sentences
from charrnn.terminal import console
from charrnn.text.characters import name

if TYPE_CHECKING:
    from charrnn.data.vocab import Ids, Vocab
    from charrnn.inspection.findings import Alike, ClassBits, Inside, Memory, Reach, ReadableUnit

_MAX_LINES = 2  # of the text, coloured by a unit
# an activation: up to how many standard deviations above the mean, the legend's text, the style on a terminal
_STYLES = (
    (-1.5, "very low", "black on #6aa5e3"),
    (-0.5, "low", "black on #c3dcf5"),
    (0.5, "usual", ""),
    (1.5, "high", "black on #ffcf9e"),
    (math.inf, "very high", "black on #f0915c"),
)


def print_inside(found: "Inside", vocab: "Vocab", ids: "Ids") -> None:
    """Print what was found, part by part. ids: the start of the text."""
    if found.memory:
        console.table(memory_rows(found.memory), header=memory_header(found.memory, vocab.unit))
        console.sentences([sentences.describe_memory(found.memory, vocab.unit)])
    if found.gradient:
        console.table(
            reach_rows(found.gradient), header=("steps back", "gradient norm", "lower quartile", "upper quartile")
        )
        console.sentences([sentences.describe_reach(found.gradient, vocab.unit)])
    if found.units:
        console.table([unit_row(unit) for unit in found.units], header=("unit", "follows", "correlation"))
        if console.uses_colour():
            print_coloured(found.units, vocab.decode(ids))
    if found.bits:
        console.table(class_rows(found.bits), header=class_header(found.bits, vocab.unit))
        console.sentences([sentences.describe_bits(found.bits)])
    if found.alike:
        console.table([alike_row(one) for one in found.alike], header=("character", "most similar", "cosines"))


def memory_header(found: "Memory", unit: str) -> tuple[str, ...]:
    """Return the header of the table of what forgetting costs, with its standard errors."""
    header = f"{unit}s known", f"{bits_per(unit)} more", "±"
    return header if found.mixture is None else (*header, "with n-grams", "±")


def memory_rows(found: "Memory") -> list[tuple[str, ...]]:
    """Return what forgetting costs at about each power of two."""
    rows = []
    for index in _doubling(found.ages):
        cells = [f"{found.ages[index]:,.0f}"]
        for excess in (found.network, found.mixture):
            if excess is not None:
                cells += [f"{excess.bits[index]:z.3f}", f"{excess.errors[index]:.3f}"]  # z: no -0.000
        rows.append(tuple(cells))
    return rows


def _doubling(ages: Sequence[float]) -> list[int]:
    """Return the indices of the first age and of each that is at least twice as large as the one before."""
    chosen = [0]
    for index, age in enumerate(ages):
        if age >= 2 * ages[chosen[-1]]:
            chosen.append(index)
    return chosen


def reach_rows(found: "Reach") -> list[tuple[str, ...]]:
    """Return the norms of the gradient 0, 1, 2, 4, … steps back, and those farthest back."""
    num_steps = len(found.median)
    steps = sorted({0, *(1 << power for power in range((num_steps - 1).bit_length())), num_steps - 1})
    curves = found.median, found.lower, found.upper
    return [(str(step), *(f"{curve[step]:.2g}" for curve in curves)) for step in steps]


def unit_row(unit: "ReadableUnit") -> tuple[str, ...]:
    """Return a unit as a row of a table."""
    return str(unit.index), unit.feature, f"{unit.correlation:+.2f}"


def class_header(found: "Sequence[ClassBits]", unit: str) -> tuple[str, ...]:
    """Return the header of the table of classes; its last columns are the figures of network and n-grams alone."""
    header = "class", f"{unit}s", "bits", "share", bits_per(unit)
    return header if found[0].network is None else (*header, "network", "n-grams")


def class_rows(found: "Sequence[ClassBits]") -> list[tuple[str, ...]]:
    """Return classes of characters as rows of a table."""
    total = sum(one.bits for one in found) or 1.0
    rows = []
    for one in found:
        cells = [one.name, f"{one.num_chars:,}", f"{one.bits:,.0f}", f"{one.bits / total:.1%}"]
        cells.append(f"{one.bits / one.num_chars:.3f}")
        cells += [f"{part / one.num_chars:.3f}" for part in (one.network, one.ngram) if part is not None]
        rows.append(tuple(cells))
    return rows


def alike_row(one: "Alike") -> tuple[str, ...]:
    """Return a character and those that are similar as a row of a table."""
    others = " ".join(_shown(char) for char, _ in one.nearest)
    return _shown(one.char), others, " ".join(f"{cosine:.2f}" for _, cosine in one.nearest)


def _shown(char: str) -> str:
    """Return a character as it is, or its name if nobody would see it."""
    return char if char.isprintable() and not char.isspace() else name(char).replace(" ", "-")


def print_coloured(units: "Sequence[ReadableUnit]", text: str) -> None:
    """Print the first lines of a text once for each unit, each character on the colour of the activation after it.

    Colours show how many standard deviations an activation is from the unit's mean.
    """
    from rich.console import Console
    from rich.text import Text

    excerpt = "\n".join(text.split("\n")[:_MAX_LINES])[: _MAX_LINES * console.terminal_width()]
    shown = console.shown_chars(excerpt)
    screen = Console(file=None, highlight=False, width=console.terminal_width())
    for unit in units:
        line = Text(f"{unit.index}: {unit.feature}\n")
        for char, deviation in zip(shown, unit.deviations().tolist(), strict=False):
            line.append(char, next(style for most, _, style in _STYLES if deviation <= most))
        screen.print(line, "\n", sep="")
    legend = Text("activation: ")
    for _, label, style in _STYLES:
        legend.append(f" {label} ", style)
    screen.print(legend, "\n", sep="")
