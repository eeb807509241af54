"""The output layer and its loss in one pass, so that logits are never all in memory.

The gradient of a sum of nats needs no number from a later layer, so it is computed during the
forward pass, one chunk of rows after another.

Letters: R rows (time steps times lanes), H hidden size, V vocabulary, K candidates.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.ngrams import Mixture, mix
from charrnn.numerics.compilation import compiled
from charrnn.numerics.products import add_outer_product, new_outer_buffers, padded, product
from charrnn.numerics.vectors import Doubles, Floats, Stored, exp, narrow

_MAX_LOGITS = 1 << 17  # in a chunk: half a megabyte


class PackedHead(NamedTuple):
    """weight, weight_backward: packed (H, V) and (V, H); bias: (V,)."""

    weight: Stored
    weight_backward: Stored
    bias: Floats


@compiled
def surprisal(logits: Floats, char: int) -> float:
    """Compute the nats of a character under the model, unfiltered and at temperature 1. logits: (V,)."""
    largest, total = -np.inf, 0.0
    for other in range(len(logits)):
        largest = max(largest, np.float64(logits[other]))
    for other in range(len(logits)):
        total += math.exp(np.float64(logits[other]) - largest)
    return math.log(total) - (np.float64(logits[char]) - largest)


@compiled
def new_logits(packed: PackedHead, num_rows: int) -> Floats:
    """Allocate the logits of one chunk, which has at most num_rows rows: (rows, padded(V))."""
    width = padded(len(packed.bias))
    return np.empty((min(num_rows, max(16, _MAX_LOGITS // width)), width), np.float32)


@compiled
def fill_logits(packed: PackedHead, y: Stored, logits: Floats) -> None:
    """Compute the logits of rows y (R, H) in the first V columns of logits (at least R, padded(V))."""
    product(y, packed.weight, logits)
    for i in range(len(y)):
        for v in range(len(packed.bias)):
            logits[i, v] += packed.bias[v]


@compiled
def fill_top(logits: Floats, top: NDArray[np.int32]) -> None:
    """Find the characters (K,) with the largest logits (V,), largest first."""
    for char in range(len(logits)):
        place = min(char, len(top))
        while place > 0 and logits[char] > logits[top[place - 1]]:
            if place < len(top):
                top[place] = top[place - 1]
            place -= 1
        if place < len(top):
            top[place] = char


class Predictions(NamedTuple):
    """A model's predictions at R characters of a text. The kernels fill in everything except ids.

    ids: (R,) int64, the characters of the text; nats: (R,), the surprisal of each;
    ranks: (R,), how many characters were likelier, where equally likely ones are ordered by id;
    top, probabilities: (R, K), the K likeliest characters and their probabilities;
    experts: (R, 2), the surprisal under the network alone and under the n-grams alone if the
    model is a mixture, else (R, 0).
    """

    ids: NDArray[np.int64]
    nats: Doubles
    ranks: NDArray[np.int32]
    top: NDArray[np.int32]
    probabilities: Floats
    experts: Doubles


@compiled
def predict_from_logits(logits: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions) -> None:
    """Fill in predictions from logits (R, V), which are replaced by the mixture's.

    contexts: (R, order), the contexts of the mixture's n-grams.
    """
    log_probabilities = np.empty(logits.shape[1])
    for i in range(len(logits)):
        row, target = logits[i], out.ids[i]
        if len(mixture.weights) > 0:
            out.experts[i, 0] = surprisal(row, target)
            mix(mixture, contexts[i], row, log_probabilities)
            out.experts[i, 1] = -log_probabilities[target]
        out.nats[i] = surprisal(row, target)
        rank = 0
        for char in range(len(row)):
            rank += row[char] > row[target] or (row[char] == row[target] and char < target)
        out.ranks[i] = rank
        fill_top(row, out.top[i])
        for k in range(out.top.shape[1]):
            margin = np.float64(row[target]) - np.float64(row[out.top[i, k]])
            out.probabilities[i, k] = math.exp(-out.nats[i] - margin)


@compiled
def predict_from_features(
    packed: PackedHead, y: Stored, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions
) -> None:
    """Fill in predictions from features y (R, H), contiguous, with one chunk of logits in memory at a time."""
    logits = new_logits(packed, len(y))
    for first in range(0, len(y), len(logits)):
        rows = slice(first, min(first + len(logits), len(y)))
        fill_logits(packed, y[rows], logits)
        part = Predictions(
            out.ids[rows], out.nats[rows], out.ranks[rows], out.top[rows], out.probabilities[rows], out.experts[rows]
        )
        chunk = logits[: rows.stop - rows.start, : len(packed.bias)]
        predict_from_logits(chunk, mixture, contexts[rows], part)


@compiled
def nats_and_gradients(
    packed: PackedHead,
    y: Stored,
    targets: NDArray[np.int64],
    dy: Stored,
    d_weight: Floats,
    d_bias: Floats,
) -> float:
    """Return the sum of the targets' nats, and compute its gradients.

    y, dy: (R, H), contiguous; targets: (R,), where negative ones are not scored. The gradients of
    the weight and the bias are added to d_weight (V, padded(H)) and d_bias (V,).
    """
    num_rows, size = y.shape
    vocab_size = len(packed.bias)
    logits = new_logits(packed, num_rows)
    chunk = len(logits)
    errors = np.empty((chunk, vocab_size), y.dtype)
    back = np.empty((chunk, d_weight.shape[1]), np.float32)
    buffers = new_outer_buffers(y, vocab_size, size)
    total = 0.0
    for first in range(0, num_rows, chunk):
        count = min(chunk, num_rows - first)
        fill_logits(packed, y[first : first + count], logits)
        for i in range(count):
            row, target = logits[i, :vocab_size], targets[first + i]
            largest = np.float32(-np.inf)
            for v in range(vocab_size):
                largest = max(largest, row[v])
            for v in range(vocab_size):
                row[v] -= largest
            target_logit = row[max(target, 0)]
            mass = np.float32(0.0)
            for v in range(vocab_size):
                row[v] = exp(row[v])
            for v in range(vocab_size):
                mass += row[v]
            scored = np.float32(target >= 0)
            for v in range(vocab_size):
                row[v] *= scored / mass
            if target >= 0:
                total += math.log(np.float64(mass)) - np.float64(target_logit)
                row[target] -= np.float32(1.0)
            for v in range(vocab_size):
                d_bias[v] += row[v]
            narrow(row, errors[i])
        product(errors[:count], packed.weight_backward, back)
        for i in range(count):
            narrow(back[i, :size], dy[first + i])
        add_outer_product(errors[:count], y[first : first + count], d_weight, buffers)
    return total
