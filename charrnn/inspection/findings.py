"""What `eval --inside` finds in a model, as plain data.

Letters: K groups of ages, T steps back, N characters of the text.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = ("memory", "gradient", "units", "bits", "alike")  # the fields of Inside
QUICK_PARTS = ("bits", "alike")  # those that take no time after scoring, so that every report shows them


@dataclass(frozen=True)
class Excess:
    """What it costs to know only the last characters of a text, in bits per character more than with all of them.

    bits, errors: one number per group of ages, and its standard error over places. num_used: the number of
    characters beyond which more bring less than 1 % of the score; None if the model uses more than were tried.
    num_most: the number of characters that bring 90 % of what is gained over knowing the last one only.
    """

    bits: tuple[float, ...]
    errors: tuple[float, ...]
    num_used: int | None
    num_most: int


@dataclass(frozen=True)
class Memory:
    """How far back a model looks: the cost of forgetting the text before the last characters, by their number.

    ages: (K,), how many characters the model knows: the mean of each group of numbers, growing. max_age: the most that
    were tried; num_places: places at which the state was forgotten. network: the network alone; mixture: with its
    n-grams, which forget as well, or None without n-grams.
    Source: Khandelwal et al. 2018, "Sharp nearby, fuzzy far away".
    """

    ages: tuple[float, ...]
    max_age: int
    num_places: int
    network: Excess
    mixture: Excess | None


@dataclass(frozen=True)
class Reach:
    """The norm of the gradient of a character's nats at the embedding of the character k steps before the prediction.

    median, lower, upper: (T,) norms for k = 0, 1, …: the median and the quartiles over num_targets predicted
    characters. gain: the factor per step, from a line through the logarithm of the median.
    """

    median: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    num_targets: int
    gain: float

    @property
    def half_life(self) -> float | None:
        """The steps in which the gradient halves; None if it does not shrink, or if nothing is left after one step."""
        return math.log(0.5) / math.log(self.gain) if 0 < self.gain < 1 else None


@dataclass(frozen=True)
class ReadableUnit:
    """A unit of the last layer whose activation follows a feature of the text.

    index: from 0; feature: its name in words; correlation: -1 to 1, on characters that did not choose the feature.
    activations: (N,) float32 from -1 to 1, after each of the text's first characters (those of Summary.first).
    """

    index: int
    feature: str
    correlation: float
    activations: "NDArray[np.float32]"

    def deviations(self) -> "NDArray[np.float64]":
        """Return by how many standard deviations each activation is above the mean: (N,), all 0 if they are equal."""
        values = self.activations.astype("float64")
        if len(values) == 0 or values.std() == 0:
            return values * 0
        found: NDArray[np.float64] = (values - values.mean()) / values.std()
        return found


@dataclass(frozen=True)
class ClassBits:
    """The cost of all characters of a class: how many, and their bits.

    network, ngram: the bits under the network alone and under the n-grams alone; None without n-grams.
    """

    name: str
    num_chars: int
    bits: float
    network: float | None = None
    ngram: float | None = None


@dataclass(frozen=True)
class Alike:
    """A character and those with the most similar embeddings: (character, cosine), the most similar first.

    They are the vocabulary's characters, so bytes and the end of a document are surrogates (text/characters.py).
    """

    char: str
    nearest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Inside:
    """What is inside a model. A part is None if it was not asked for, or if the text is too short for it.

    units: at most eight, the most readable first. bits: one entry per class of characters in the text, in a fixed
    order; the entries add up to the text's total. alike: one entry for each of the most frequent characters, with the
    characters most similar to it.
    """

    memory: Memory | None = None
    gradient: Reach | None = None
    units: Sequence[ReadableUnit] | None = None
    bits: Sequence[ClassBits] | None = None
    alike: Sequence[Alike] | None = None

    def record(self) -> dict[str, Any]:
        """Return the findings as a JSON object, without the units' activations."""
        return {
            "memory": self.memory and asdict(self.memory),
            "gradient": self.gradient and asdict(self.gradient) | {"half_life": self.gradient.half_life},
            "units": self.units
            and [
                {"index": unit.index, "feature": unit.feature, "correlation": unit.correlation} for unit in self.units
            ],
            "bits": self.bits and [asdict(one) for one in self.bits],
            "alike": self.alike and [asdict(one) for one in self.alike],
        }
