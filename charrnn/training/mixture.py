"""A second opinion: n-grams beside the network, and how much each of them counts.

PackedPair predict the next character; their log probabilities are added with weights that depend on
how much of what came before the n-grams know (kernels/mixing.py). The weights are fitted on
pieces of the training text that the network did not learn, and that the n-grams then hadn't
counted either; afterwards they count them too.

Letters: N characters, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from charrnn.data.batches import MOST_COUNTED, PIECE_SIZE, TrainText
from charrnn.data.vocab import Ids
from charrnn.evaluation.scoring import all_logits
from charrnn.kernels.ngrams import Mixture, fill_distributions
from charrnn.kernels.vectors import Doubles, Floats
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import MAX_ORDER, Arrays, build, contexts_of, nats_by_order, trie_of

MOST_ORDER = 7  # longer n-grams gain a hundredth of a nat at most, and more is copied
LEAST_GAIN = 0.005  # nats a character, that n-grams must bring to be worth their place
_LONG = 500_000  # characters: of such a text no order is too long, and trying takes more memory than counting
_LEAST_FITTED, _MOST_FITTED = 0.01, 4.0  # weights, before they are made to sum to one
_AT_ONCE = 1024  # characters whose distributions are compared
_DOUBT = 20.0  # characters' worth, that the weights of one length are those of all


def fit_mixture(network: CharRNN, text: TrainText) -> Arrays:
    """Count a training text, and weigh what that says, on what was withheld of it; return arrays for a model file.

    There are none where nothing was withheld, or where they bring less than LEAST_GAIN.
    """
    if len(text.starts) == 0:
        return {}
    vocab_size = network.config.vocab_size
    places = text.starts + np.arange(PIECE_SIZE)[:, None]  # (T, B)
    targets = text.ids[places].astype(np.int64)
    first = max(0, len(text.ids) - MOST_COUNTED)
    left = text.left(first)
    order = MOST_ORDER if len(left) > _LONG else min(MOST_ORDER, _best_order(text, left, vocab_size) + 1)
    trie = trie_of(build(left, order, vocab_size=vocab_size), vocab_size=vocab_size)
    counted, lengths = _counted(Mixture(trie, np.ones((order, 2))), text, vocab_size)
    logits = all_logits(network, text.ids, text.starts, PIECE_SIZE).reshape(-1, vocab_size)
    weights, gain = fit(logits, counted, lengths, targets.ravel(), order=order)
    if gain < LEAST_GAIN:
        return {}
    return {**build(text.ids[first:], order, vocab_size=vocab_size), "ngram.weights": weights}


def _best_order(text: TrainText, left: Ids, vocab_size: int) -> int:
    """The order of the n-grams that do best alone."""
    pieces = text.ids[text.starts[:, None] + np.arange(-MAX_ORDER, PIECE_SIZE)].ravel()  # with what is before each
    scored = np.tile(np.arange(-MAX_ORDER, PIECE_SIZE) >= 0, len(text.starts))
    by_order = nats_by_order(left, pieces, context=left[:1], vocab_size=vocab_size)
    return 1 + int(np.argmin([nats[scored].mean() for nats in by_order]))


def _counted(mixture: Mixture, text: TrainText, vocab_size: int) -> tuple[Doubles, NDArray[np.int64]]:
    """What n-grams expect in each piece, (T B, V), and the length of what they know before each character, (T B,)."""
    contexts = [
        contexts_of(mixture, text.ids[start : start + PIECE_SIZE], context=text.ids[start - MAX_ORDER : start])
        for start in text.starts
    ]
    rows = np.stack(contexts, axis=1).reshape(-1, len(mixture.weights))  # (T B, order)
    counted, lengths = np.empty((len(rows), vocab_size)), np.empty(len(rows), np.int64)
    fill_distributions(mixture.trie, rows, counted, lengths)
    return counted, lengths


def fit(
    logits: Floats, counted: Doubles, lengths: NDArray[np.int64], targets: NDArray[np.int64], *, order: int
) -> tuple[Doubles, float]:
    """The weights (order, 2) of the network and of the n-grams by the length they know, and the nats gained.

    logits: (N, V), the network's; counted: (N, V), probabilities by n-grams; lengths, targets: (N,).
    The loss is convex in the weights, so Newton's method finds them: first for all lengths
    together, and from there for each. Where they sum to more than one the product is surer than
    its experts; that pays in the middle of a text that is known, and not beyond its end, so they
    are made to sum to one.
    """
    experts = np.empty((2, *logits.shape), np.float32)
    np.subtract(logits, np.logaddexp.reduce(logits, axis=1, keepdims=True), out=experts[0])
    np.log(counted, out=experts[1], casting="same_kind")
    common = _newton(experts, targets, start=np.array([0.7, 0.3]), doubt=1.0)
    weights, total = np.tile(common / max(1.0, common.sum()), (order, 1)), 0.0
    for length in range(order):
        here = np.flatnonzero(lengths == length)
        if len(here) > 0:
            part = experts[:, here]
            weights[length] = _newton(part, targets[here], start=common, doubt=_DOUBT)
            weights[length] /= max(1.0, weights[length].sum())
            total += _nats(part, targets[here], weights[length])
    return weights, (_nats(experts, targets, np.array([1.0, 0.0])) - total) / len(targets)


def _nats(experts: Floats, targets: NDArray[np.int64], weights: Doubles) -> float:
    """What the targets (N,) cost the experts' (2, N, V) weighted product."""
    return -sum(
        float(_product(part, weights)[np.arange(len(target)), target].sum())
        for part, target in _parts(experts, targets)
    )


def _parts(experts: Floats, targets: NDArray[np.int64]) -> Iterator[tuple[Doubles, NDArray[np.int64]]]:
    """Experts and targets, a few characters at a time."""
    for first in range(0, len(targets), _AT_ONCE):
        yield experts[:, first : first + _AT_ONCE].astype(np.float64), targets[first : first + _AT_ONCE]


def _product(experts: Doubles, weights: Doubles) -> Doubles:
    """Log probabilities (N, V) of the experts' (2, N, V) weighted product."""
    scores: Doubles = np.tensordot(weights, experts, 1)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def _newton(experts: Floats, targets: NDArray[np.int64], *, start: Doubles, doubt: float) -> Doubles:
    """The weights that cost least, drawn to where they start as by so many characters."""
    weights = start
    for _ in range(20):
        slope, curve = doubt * (weights - start), doubt * np.eye(2)
        for part, target in _parts(experts, targets):
            likely = np.exp(_product(part, weights))  # (N, V)
            means = (likely * part).sum(-1)  # (2, N)
            slope += (means - part[:, np.arange(len(target)), target]).sum(-1)
            curve += np.einsum("nv,inv,jnv->ij", likely, part, part, optimize=True) - means @ means.T
        step = np.linalg.solve(curve, slope)
        weights = np.clip(weights - step, _LEAST_FITTED, _MOST_FITTED)
        if np.abs(step).max() < 1e-6:
            break
    return weights
