"""What may be drawn as the next character, and the draw.

Constraints come first: an automaton that says which characters may follow, and runs of a text that must not be
copied. The filters see what the constraints leave. Their order is repeat guard, top-k, top-p, min-p, temperature,
as in llama.cpp.

Letters: V vocabulary, C classes of characters, Q states of the automaton, N characters of a text, R runs.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.ngrams import HASH_BASE
from charrnn.numerics.compilation import compiled
from charrnn.numerics.vectors import Floats, exp

COMPLETE = 0  # the state of an automaton in which the text has ended; anything may follow


class Filters(NamedTuple):
    """Sampling settings. no_repeat_ngram 0, top_k 0, top_p 1 and min_p 0 are off; temperature 0 is greedy.

    end_id: the id that ends a document, which no_repeat_ngram never forbids; -1 if there is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    no_repeat_ngram: int = 0
    end_id: int = -1


class Constraints(NamedTuple):
    """What every text must satisfy. That of free_text has one state, COMPLETE, and no runs.

    classes: (V,), the class of each character; characters of a class are allowed together. transitions: (Q, C), the
    state after each class, -1 where it is forbidden. distance: (Q,), the least number of characters before the text
    may end. text: (N,), ids of a text; positions: (R,), where each of its distinct runs of `run` characters begins,
    sorted by the hash of the run without its last character; run 0 is off.
    """

    classes: NDArray[np.int32]
    transitions: NDArray[np.int32]
    distance: NDArray[np.int64]
    text: NDArray[np.uint32]
    positions: NDArray[np.int64]
    run: int


def free_text(vocab_size: int) -> Constraints:
    """Make the constraints that every text satisfies."""
    no_text = np.zeros(0, np.uint32)
    classes, transitions = np.zeros(vocab_size, np.int32), np.zeros((1, 1), np.int32)
    return Constraints(classes, transitions, np.zeros(1, np.int64), no_text, np.zeros(0, np.int64), 0)


@compiled
def follow_automaton(constraints: Constraints, state: int, left: int, logits: Floats) -> int:
    """Forbid characters after which the text can't end within `left` characters; forbidden ones become -inf.

    Returns the state again, or COMPLETE if none is left: then nothing is forbidden.
    """
    transitions = constraints.transitions[state]
    penalty, num_allowed = np.empty(len(transitions), np.float32), 0
    for one in range(len(transitions)):
        after = transitions[one]
        is_allowed = after >= 0 and constraints.distance[after] < left
        penalty[one] = np.float32(0.0) if is_allowed else np.float32(-np.inf)
        num_allowed += is_allowed
    if num_allowed == 0:
        return COMPLETE
    for char in range(len(logits)):
        logits[char] += penalty[constraints.classes[char]]
    return state


@compiled
def hash_run(text: NDArray[np.uint32], start: int, length: int) -> np.uint64:
    """Hash `length` ids from `start` on, as ngrams.hash_ngrams does."""
    value = np.uint64(0)
    for index in range(start, start + length):
        value = value * HASH_BASE + np.uint64(text[index]) + np.uint64(1)
    return value


@compiled
def forbid_copies(constraints: Constraints, history: NDArray[np.int64], logits: Floats) -> None:
    """Forbid characters that would complete a run of the text, unless that leaves none."""
    length = constraints.run - 1
    start = len(history) - length
    if start < 0:
        return
    last = history[start:].astype(np.uint32)
    value, text, positions = hash_run(last, 0, length), constraints.text, constraints.positions
    low, high = 0, len(positions)
    while low < high:
        middle = (low + high) // 2
        if hash_run(text, int(positions[middle]), length) < value:
            low = middle + 1
        else:
            high = middle
    forbidden = np.zeros(len(logits), np.bool_)
    while low < len(positions) and hash_run(text, int(positions[low]), length) == value:
        k = 0
        while k < length and text[positions[low] + k] == last[k]:  # equal hashes are no proof
            k += 1
        if k == length:
            forbidden[text[positions[low] + length]] = True
        low += 1
    _forbid(forbidden, logits)


@compiled
def _forbid(forbidden: NDArray[np.bool_], logits: Floats) -> None:
    """Set the logits of forbidden characters to -inf, unless that leaves none."""
    left = 0
    for char in range(len(logits)):
        left += logits[char] > -np.inf and not forbidden[char]
    for char in range(len(logits)):
        if left > 0 and forbidden[char]:
            logits[char] = -np.inf


@compiled
def log_share(logits: Floats, allowed: Floats, temperature: float) -> float:
    """Compute the log of the probability of the characters that are allowed, at a temperature; 0 counts as 1.

    logits: (V,); allowed: the same, but -inf for others.
    """
    scale = 1.0 if temperature == 0.0 else 1.0 / temperature
    return _log_mass(allowed, scale) - _log_mass(logits, scale)


@compiled
def _log_mass(logits: Floats, scale: float) -> float:
    """Compute the log of the sum of exp(scale * logits)."""
    largest = np.float32(-np.inf)
    for char in range(len(logits)):
        largest = max(largest, logits[char])
    total, factor = np.float32(0.0), np.float32(min(scale, 1e30))
    for char in range(len(logits)):
        power = (logits[char] - largest) * factor
        total += exp(power) if power > np.float32(-80.0) else np.float32(0.0)
    return math.log(np.float64(total)) + scale * np.float64(largest)


@compiled
def forbid_repeats(logits: Floats, history: NDArray[np.int64], n: int, end: int) -> None:
    """Forbid characters, but not `end`, that would complete an n-gram of the history, unless that leaves none.

    logits: (V,), forbidden ones become -inf; history: the ids so far.
    Source: Paulus et al. 2017, with characters instead of words.
    """
    forbidden = np.zeros(len(logits), np.bool_)
    last = len(history) - n + 1  # where the last n - 1 characters begin
    for start in range(last):
        k = n - 2
        while k >= 0 and history[start + k] == history[last + k]:
            k -= 1
        if k < 0:
            forbidden[history[start + n - 1]] = True
    if end >= 0:
        forbidden[end] = False
    _forbid(forbidden, logits)


@compiled
def _sift_down(heap: NDArray[np.int64], size: int, place: int, logits: Floats) -> None:
    """Move a character down to its place in a heap: the largest logit on top, equal ones by id."""
    char = heap[place]
    logit = logits[char]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        likeliest = logits[heap[child]]
        if child + 1 < size:
            other = logits[heap[child + 1]]
            if other > likeliest or (other == likeliest and heap[child + 1] < heap[child]):
                child, likeliest = child + 1, other
        if logit > likeliest or (logit == likeliest and char < heap[child]):
            break
        heap[place], place = heap[child], child
    heap[place] = char


@compiled
def filter_logits(logits: Floats, top_k: int, top_p: float, min_p: float) -> None:
    """Set the logits of filtered characters to -inf, in place; at least one character survives.

    logits: (V,). Each filter keeps a prefix of the candidates, sorted by logit and equal ones by
    id. It sees the distribution that the previous filter left, renormalised, at temperature 1.
    Candidates come from a heap, so only the surviving ones get sorted.
    Source: Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return
    heap = np.empty(len(logits), np.int64)
    for place in range(len(heap)):
        heap[place] = place
    for place in range(len(heap) // 2 - 1, -1, -1):
        _sift_down(heap, len(heap), place, logits)
    best = np.float64(logits[heap[0]])
    weights = np.empty(len(logits), np.float64)
    mass, count = 0.0, 0
    for char in range(len(logits)):
        weights[char] = math.exp(np.float64(logits[char]) - best)
        mass += weights[char]
        count += logits[char] > -np.inf  # forbidden characters are no candidates
    order = np.empty(len(logits), np.int64)
    sorted_count = 0
    limit = min(count, top_k) if top_k > 0 else count
    if limit < count:
        mass = 0.0
    reached, kept = 0.0, 0
    while kept < limit:
        # top-p needs the mass of all candidates that top-k leaves, so these are sorted first
        while sorted_count < (limit if limit < count else kept + 1):
            order[sorted_count] = heap[0]
            mass += weights[heap[0]] if limit < count else 0.0
            sorted_count += 1
            heap[0] = heap[len(heap) - sorted_count]
            _sift_down(heap, len(heap) - sorted_count, int(np.int64(0)), logits)  # a bare 0 would compile it again
        weight = weights[order[kept]]
        if kept > 0 and (weight < min_p or (top_p < 1.0 and reached >= top_p * mass)):
            break
        reached += weight
        kept += 1
    for place in range(kept):
        weights[order[place]] = -1.0  # marks what stays
    for char in range(len(logits)):
        if weights[char] >= 0.0:
            logits[char] = -np.inf


@compiled
def draw(logits: Floats, uniform: float, temperature: float) -> int:
    """Draw one id from softmax(logits / temperature) by inverting its distribution function.

    logits: (V,); uniform: in [0, 1). Temperature 0 is greedy. A tiny temperature can't make a NaN,
    because the largest logit is subtracted before the division.
    """
    best = 0
    for char in range(len(logits)):
        best = char if logits[char] > logits[best] else best
    if temperature == 0.0:
        return best
    weights = np.empty(len(logits), np.float32)
    total = 0.0
    for char in range(len(logits)):
        power = np.float32((np.float64(logits[char]) - np.float64(logits[best])) / temperature)
        weights[char] = exp(power) if power > np.float32(-80.0) else np.float32(0.0)  # exp never reaches zero
    for char in range(len(logits)):
        total += np.float64(weights[char])
    # A uniform close to one could round past the end; then the last id with mass is drawn.
    reached, char, last = 0.0, 0, best
    while char < len(logits):
        if weights[char] > 0.0:
            reached += np.float64(weights[char])
            last = char
            if uniform * total < reached:
                break
        char += 1
    return last
