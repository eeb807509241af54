"""What the findings come to, in sentences."""

import math
from collections.abc import Sequence

from charrnn.inspection.findings import ClassBits, Excess, Memory, Reach

LONG_HALF_LIFE = 100.0  # steps; a gradient that halves, or doubles, more slowly than that holds


def describe_memory(found: Memory, unit: str) -> str:
    """Say how many characters a model uses. unit: what it predicts, a character or a byte."""
    if found.mixture is None:
        return f"The network {_describe_excess(found.network, found.max_age, unit)}."
    return (
        f"The network {_describe_excess(found.network, found.max_age, unit)}. "
        f"With n-grams the model {_describe_excess(found.mixture, found.max_age, unit)}."
    )


def _describe_excess(excess: Excess, max_age: int, unit: str) -> str:
    if excess.num_used == 1:
        return f"uses only the last {unit}"
    used = f"more than {max_age:,}" if excess.num_used is None else f"about {_rounded(excess.num_used):,}"
    return f"uses {used} {unit}s; the last {_rounded(excess.num_most):,} give 90% of the gain"


def _rounded(count: int) -> int:
    """Round to two digits: no more is known."""
    return round(count, 2 - len(str(count)))


def describe_reach(found: Reach, unit: str) -> str:
    """Say whether a gradient vanishes, holds or explodes on its way back. unit: as in describe_memory."""
    if found.gain == 0:
        return f"The gradient vanishes within a {unit}."
    steps = math.log(2) / (abs(math.log(found.gain)) or 1e-12)  # in which it halves or doubles
    if steps >= LONG_HALF_LIFE:
        return f"The gradient holds: it changes by a factor of {found.gain:.3f} per {unit}."
    does = "explodes: on average it doubles" if found.gain > 1 else "vanishes: on average it halves"
    return f"The gradient {does} every {steps:.1f} {unit}s (a factor of {found.gain:.3f} each)."


def describe_bits(found: Sequence[ClassBits]) -> str:
    """Name the class that costs the most, with its share of the bits and of the characters."""
    most, num_chars = max(found, key=lambda one: one.bits), sum(one.num_chars for one in found)
    share = most.bits / (sum(one.bits for one in found) or 1.0)
    return f"Most bits go to {most.name}: {share:.0%} of the bits for {most.num_chars / num_chars:.0%} of the text."
