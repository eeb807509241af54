"""What the model predicted at each character that was drawn."""

import math
from typing import NamedTuple

from charrnn.data.vocab import Vocab
from charrnn.kernels.generation import Block


class Prediction(NamedTuple):
    """A character that was drawn, its probability, and the likeliest characters with theirs.

    Probabilities are the model's at temperature 1, before constraints and filters.
    """

    char: str
    p: float
    top: list[tuple[str, float]]


def predictions_of(block: Block, row: int, count: int, vocab: Vocab) -> list[Prediction]:
    """Return the predictions of the first `count` characters that a block drew for a stream."""
    start, chars = block.starts[row], vocab.chars
    found = []
    for place in range(count):
        likeliest = zip(block.top[row, place].tolist(), block.probabilities[row, place].tolist(), strict=True)
        char, probability = chars[block.ids[row, start + place]], math.exp(-block.nats[row, place])
        found.append(Prediction(char, probability, [(chars[other], p) for other, p in likeliest]))
    return found
