"""From logits to the next character: the filters, in one order, and the draw.

Order: repeat guard, top-k, top-p, min-p, temperature, as in llama.cpp. A filter keeps a
prefix of the candidates sorted by logit (equal ones by id), so at least one survives.

Letters: V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def filter_logits(logits: Floats, *, top_k: int, top_p: float, min_p: float) -> None:
    """Set the logits of what must not be drawn to -inf, in place.

    logits: (V,). top_k 0, top_p 1 and min_p 0 switch a filter off. Each filter sees the
    distribution that the one before it left, renormalised, at temperature 1.
    Source: Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return
    order = np.argsort(-logits, kind="stable")
    count = int(np.isfinite(logits).sum())  # what a guard forbade stands behind
    if top_k:
        count = min(count, top_k)
    if top_p < 1.0:
        cumulative = np.cumsum(_weights(logits[order[:count]]))
        count = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    if min_p > 0.0:
        weights = _weights(logits[order[:count]])  # falling, the first of them 1
        count = max(1, int((weights >= min_p).sum()))
    logits[order[count:]] = -np.inf


def draw(logits: Floats, uniform: float, *, temperature: float) -> int:
    """Draw one id from softmax(logits / temperature) by inverting its distribution function.

    logits: (V,). uniform in [0, 1). Temperature 0 is greedy; a tiny one can't make a NaN
    because the largest logit is subtracted before the division.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(_weights(logits, temperature))
    # A uniform this close to one could round past the end; the last id with mass is meant then.
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(place, int(np.searchsorted(cumulative, cumulative[-1], side="left")))


def nats(logits: Floats, char: int) -> float:
    """What the model, unfiltered and at temperature 1, pays for a character."""
    return float(np.log(_weights(logits).sum()) - (float(logits[char]) - float(logits.max())))


def _weights(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """exp(logit / temperature), the largest of them 1."""
    shifted = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # -x / 1e-308 is -inf, whose exp is the 0 that is meant
        return np.exp(shifted / temperature)
