"""How far back a model looks: what it costs to forget the text before the last characters.

At places spread over a text the state is forgotten, and the characters after it are scored again. The difference
to the score with the whole context is paired, character by character, so texts that are hard by themselves add no
noise. The age of a character is the number of characters that the model knows before it.

Letters: N characters, P places, A ages, K groups of ages.
"""

import numpy as np
from numpy.typing import NDArray

from charrnn.evaluation.scoring import predict_forgetting
from charrnn.evaluation.texts import EvalText
from charrnn.events import bits
from charrnn.inspection.findings import Excess, Memory
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.model.windows import Reader
from charrnn.numerics.vectors import Doubles
from charrnn.text.characters import UNKNOWN

MAX_AGE = 1024
NUM_PLACES = 500  # at which 1,024 characters are scored; more where documents are shorter
MAX_PLACES = 8 * NUM_PLACES
MIN_PLACES = 30  # that an age needs; a mean of fewer has no reliable error
NEGLIGIBLE = 0.01  # of the score; less excess than that is no use of the context
MOST = 0.9  # of the gain
_SINGLE_AGES, _GROWTH = 16, 1.15  # up to this age each is a group, then a group is 15 % longer than the one before


def measure_memory(network: Reader, file: ModelFile, text: EvalText, full: Predictions) -> Memory | None:
    """Compare the score of what follows a place with and without the context before it; None for too short a text.

    full: the predictions of the text's first N characters with the whole context.
    """
    starts, length = choose_places(full.ids, len(text.context), text.reset_id)
    if len(starts) < MIN_PLACES:
        return None
    short = predict_forgetting(network, full.ids, starts=starts, length=length, mixture=file.mixture)
    places = starts[:, None] + np.arange(length)  # (P, A)
    is_scored = short.ids != file.vocab.id_of(UNKNOWN)
    if text.reset_id is not None:  # after the end of its document nothing of what was forgotten counts
        ends = full.ids[places - 1] == text.reset_id
        is_scored &= ~np.logical_or.accumulate(ends, axis=1)
    is_known = np.count_nonzero(is_scored, axis=0) >= MIN_PLACES
    max_age = length if is_known.all() else int(is_known.argmin())
    if max_age < 2:
        return None
    is_scored, places = is_scored[:, :max_age], places[:, :max_age]
    own = summarise_excess(short.nats[:, :max_age], full.nats[places], is_scored)
    ages = tuple((start + 1 + stop) / 2 for start, stop in group_ages(max_age))
    if full.experts.shape[1] == 0:
        return Memory(ages, max_age, len(starts), own, mixture=None)
    alone = summarise_excess(short.experts[:, :max_age, 0], full.experts[places, 0], is_scored)
    return Memory(ages, max_age, len(starts), alone, mixture=own)


def choose_places(ids: NDArray[np.int64], num_before: int, reset_id: int | None) -> tuple[NDArray[np.int64], int]:
    """Choose where to forget the state: the places, (P,), of the first characters to score, and how many to score.

    ids: (N,). num_before: the number of characters before them. reset_id: the character that ends a document;
    places are inside documents, where there is something to forget, and as many more as documents are shorter.
    """
    length = min(MAX_AGE, len(ids) // 3)
    if reset_id is not None and length > 0:
        ends = np.flatnonzero(ids == reset_id)
        longest = int(np.diff(ends, prepend=-1, append=len(ids)).max())
        length = min(length, longest)
    if length == 0:
        return np.empty(0, np.int64), 0
    first = 1 if num_before >= length else 1 + length  # so that there is something to forget
    candidates = np.arange(first, len(ids) - length + 1)
    if reset_id is not None:
        candidates = candidates[ids[candidates - 1] != reset_id]
        candidates = candidates[(candidates < 2) | (ids[candidates - 2] != reset_id)]
    count = min(len(candidates), MAX_PLACES, NUM_PLACES * MAX_AGE // length)
    return candidates[np.linspace(0, len(candidates) - 1, count).astype(np.int64)], length


def group_ages(max_age: int) -> list[tuple[int, int]]:
    """Group ages from 1 to max_age for a curve, as (first - 1, last): single ones, then more and more."""
    groups, start = [], 0
    while start < max_age:
        stop = start + 1 if start < _SINGLE_AGES else round(start * _GROWTH)
        groups.append((start, min(stop, max_age)))
        start = stop
    return groups


def summarise_excess(short: Doubles, full: Doubles, is_scored: NDArray[np.bool_]) -> Excess:
    """Summarise what forgetting costs: short and full are the nats (P, A) without and with the context.

    is_scored: (P, A), at least MIN_PLACES per age.
    """
    excess = np.where(is_scored, short - full, 0.0)
    counts = np.count_nonzero(is_scored, axis=0)
    means, errors = [], []
    for start, stop in group_ages(excess.shape[1]):
        num_scored = np.count_nonzero(is_scored[:, start:stop], axis=1)
        of_place = excess[:, start:stop].sum(1)[num_scored > 0] / num_scored[num_scored > 0]
        means.append(bits(float(of_place.mean())))
        errors.append(bits(float(of_place.std(ddof=1) / np.sqrt(len(of_place)))))
    by_age = excess.sum(0) / counts
    score = float(full[is_scored].mean())
    curve = falling(by_age, counts)
    return Excess(
        tuple(means),
        tuple(errors),
        num_used=first_below(curve, NEGLIGIBLE * score),
        num_most=first_below(curve, (1 - MOST) * curve[0]) or len(curve),
    )


def first_below(curve: Doubles, limit: float) -> int | None:
    """Return the first age, from 1, at which a falling curve is at most a limit; None if it never is."""
    found = np.flatnonzero(curve <= max(limit, 0.0))
    return int(found[0]) + 1 if len(found) else None


def falling(values: Doubles, weights: NDArray[np.int64]) -> Doubles:
    """Fit the nearest curve that never rises, by weighted least squares, so that noise can't end it early.

    Source: Ayer et al. 1955, the pool-adjacent-violators algorithm.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, length = value, float(weight), 1
        while blocks and blocks[-1][0] <= mean:
            before, other, num_before = blocks.pop()
            mean = (before * other + mean * total) / (other + total)
            total, length = total + other, length + num_before
        blocks.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])
