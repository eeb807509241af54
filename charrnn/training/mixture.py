"""Fit the mixture of the network with n-grams: count the n-grams and find the weight of each expert.

Both predict the next character. Their log probabilities are added (log-linear interpolation, a product of experts),
with weights that depend on how long a context the n-grams know (kernels/ngrams.py). The weights are fitted on withheld
pieces of the training text: the network was not trained on them, and the n-grams are counted without them for the fit.
The n-grams in the model file are counted with them. A text that is too short to withhold any gets the usual weights.

Letters: N characters, T characters of a piece, B pieces, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from charrnn.config import ModelConfig
from charrnn.data.batches import PIECE_SIZE, TrainText
from charrnn.data.vocab import Ids
from charrnn.evaluation.scoring import compute_logits
from charrnn.kernels.ngrams import Mixture, fill_distributions
from charrnn.model.ngrams import MAX_ORDER, Arrays, count_ngrams, find_contexts, make_trie, nats_by_order
from charrnn.model.windows import Reader
from charrnn.numerics.vectors import Doubles, Floats

MAX_MIXED_ORDER = 7  # longer n-grams gain a hundredth of a nat at most, and more text is copied
MIN_GAIN = 0.005  # nats per character; n-grams that are expected to gain less are left out
_LONG_TEXT = 500_000  # characters; no order is too long then, and trying them takes more memory than counting
_MIN_FITTED, _MAX_FITTED = 0.01, 4.0  # weights, before they are scaled to sum to one
_CHUNK = 1024  # characters whose distributions are in float64 at a time
_PRIOR_STRENGTH = 20.0  # characters' worth of evidence that one length's weights equal those of all lengths
_USUAL_WEIGHTS, _USUAL_GAIN = (0.5, 0.5), 0.05  # of network and n-grams; what a text of 50,000 characters gains
_USUAL_STRENGTH = PIECE_SIZE  # the usual weights and gain count as much as one withheld piece
_MAX_ITERATIONS = 20


def fit_mixture(network: Reader, text: TrainText, *, num_counted: int) -> Arrays:
    """Count a training text's n-grams and fit the mixture weights on its withheld pieces; return a model file's arrays.

    num_counted: how many characters at the end of the text to count in, at least LAST_PART or all of them.
    Returns none if the n-grams are expected to gain less than MIN_GAIN. Without withheld pieces the weights are the
    usual ones.
    """
    vocab_size = network.config.vocab_size
    if len(text.withheld_starts) == 0:
        order = min(MAX_MIXED_ORDER, len(text.ids))
        weights = np.tile(_USUAL_WEIGHTS, (order, 1))
        return {**count_ngrams(text.ids, order, vocab_size=vocab_size), "ngram.weights": weights}
    places = text.withheld_starts + np.arange(PIECE_SIZE)[:, None]  # (T, B)
    targets = text.ids[places].astype(np.int64)
    first = max(0, len(text.ids) - num_counted)
    remaining = text.remaining_ids(first)
    order = MAX_MIXED_ORDER
    if len(remaining) <= _LONG_TEXT:
        order = min(order, _best_order(text, remaining, vocab_size) + 1)
    trie = make_trie(count_ngrams(remaining, order, vocab_size=vocab_size), vocab_size=vocab_size)
    probabilities, lengths = _predict_pieces(Mixture(trie, np.ones((order, 2))), text, network.config)
    logits = compute_logits(network, text.ids, text.withheld_starts, PIECE_SIZE).reshape(-1, vocab_size)
    weights, gain = fit_weights(logits, probabilities, lengths, targets.ravel(), order=order)
    if _expect_gain(gain, targets.size) < MIN_GAIN:
        return {}
    return {**count_ngrams(text.ids[first:], order, vocab_size=vocab_size), "ngram.weights": weights}


def _best_order(text: TrainText, remaining: Ids, vocab_size: int) -> int:
    """Find the order of the n-grams that predict the withheld pieces best on their own."""
    positions = np.arange(-MAX_ORDER, PIECE_SIZE)  # each piece with the characters before it
    pieces = text.ids[text.withheld_starts[:, None] + positions].ravel()
    is_scored = np.tile(positions >= 0, len(text.withheld_starts))
    by_order = nats_by_order(remaining, pieces, context=remaining[:1], vocab_size=vocab_size)
    return 1 + int(np.argmin([nats[is_scored].mean() for nats in by_order]))


def _predict_pieces(mixture: Mixture, text: TrainText, config: ModelConfig) -> tuple[Doubles, NDArray[np.int64]]:
    """Predict the withheld pieces with the n-grams alone.

    Returns probabilities (T B, V), and the length of the context they know at each character (T B,).
    """
    contexts = []
    for start in text.withheld_starts:
        piece, before = text.ids[start : start + PIECE_SIZE], text.ids[start - MAX_ORDER : start]
        contexts.append(find_contexts(mixture, piece, context=before, boundary_ids=config.boundary_ids))
    rows = np.stack(contexts, axis=1).reshape(-1, len(mixture.weights))  # (T B, order)
    probabilities, lengths = np.empty((len(rows), config.vocab_size)), np.empty(len(rows), np.int64)
    fill_distributions(mixture.trie, rows, probabilities, lengths)
    return probabilities, lengths


def fit_weights(
    logits: Floats, probabilities: Doubles, lengths: NDArray[np.int64], targets: NDArray[np.int64], *, order: int
) -> tuple[Doubles, float]:
    """Fit the weights of network and n-grams for each known length; return them, (order, 2), and the gain in nats.

    logits: (N, V), of the network; probabilities: (N, V), of the n-grams; lengths: (N,), the context
    they know; targets: (N,). The gain is per character, over the network alone.
    The loss is convex in the weights, so Newton's method finds them: first for all lengths
    together, then from there for each length. The weights are pulled towards the usual ones, as strongly as by one
    piece, because a single piece can be unlike the rest of the text. Weights that sum to more than one make the
    product more certain than its experts. That helps inside a text that is known but not beyond its end, so
    the weights are scaled to sum to at most one.
    """
    experts = np.empty((2, *logits.shape), np.float32)
    np.subtract(logits, np.logaddexp.reduce(logits, axis=1, keepdims=True), out=experts[0])
    np.log(probabilities, out=experts[1], casting="same_kind")
    common = _minimise_nats(experts, targets, prior=np.array(_USUAL_WEIGHTS), strength=_USUAL_STRENGTH)
    weights, total = np.tile(common / max(1.0, common.sum()), (order, 1)), 0.0
    for length in range(order):
        here = np.flatnonzero(lengths == length)
        if len(here) > 0:
            part = experts[:, here]
            weights[length] = _minimise_nats(part, targets[here], prior=common, strength=_PRIOR_STRENGTH)
            weights[length] /= max(1.0, weights[length].sum())
            total += _sum_nats(part, targets[here], weights[length])
    network_alone = _sum_nats(experts, targets, np.array([1.0, 0.0]))
    return weights, (network_alone - total) / len(targets)


def _expect_gain(gain: float, num_fitted: int) -> float:
    """Return the nats per character that n-grams will gain on new text, if they gained so many on the withheld pieces.

    One piece can be unlike the rest of the text, so the usual gain counts as much as a piece.
    """
    return (gain * num_fitted + _USUAL_GAIN * _USUAL_STRENGTH) / (num_fitted + _USUAL_STRENGTH)


def _minimise_nats(experts: Floats, targets: NDArray[np.int64], *, prior: Doubles, strength: float) -> Doubles:
    """Find the weights (2,) that minimise the nats of the targets (N,).

    prior: where to start; the weights are pulled towards it as strongly as by `strength` characters.
    """
    weights = prior
    for _ in range(_MAX_ITERATIONS):
        gradient, hessian = strength * (weights - prior), strength * np.eye(2)
        for part, target in _chunks(experts, targets):
            mixed = np.exp(_mix(part, weights))  # (N, V)
            means = (mixed * part).sum(-1)  # (2, N)
            gradient += (means - part[:, np.arange(len(target)), target]).sum(-1)
            hessian += np.einsum("nv,inv,jnv->ij", mixed, part, part, optimize=True) - means @ means.T
        step = np.linalg.solve(hessian, gradient)
        weights = np.clip(weights - step, _MIN_FITTED, _MAX_FITTED)
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _sum_nats(experts: Floats, targets: NDArray[np.int64], weights: Doubles) -> float:
    """Return the nats of the targets (N,) under the experts' (2, N, V) weighted product."""
    return -sum(
        float(_mix(part, weights)[np.arange(len(target)), target].sum()) for part, target in _chunks(experts, targets)
    )


def _chunks(experts: Floats, targets: NDArray[np.int64]) -> Iterator[tuple[Doubles, NDArray[np.int64]]]:
    """Yield experts and targets a chunk at a time, experts in float64."""
    for first in range(0, len(targets), _CHUNK):
        yield experts[:, first : first + _CHUNK].astype(np.float64), targets[first : first + _CHUNK]


def _mix(experts: Doubles, weights: Doubles) -> Doubles:
    """Return log probabilities (N, V) of the experts' (2, N, V) weighted product."""
    scores: Doubles = np.tensordot(weights, experts, 1)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
