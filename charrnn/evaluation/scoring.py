"""Exact scores: total nats over total characters, with the state carried through the text.

`predict` yields what the model predicted at each character, `evaluate` sums it up. For speed a
text is split into lanes. Each lane warms up on the characters before it, so its state equals that
of a sequential reader up to rounding.

Letters: N characters, G lanes of a text, B lanes of a worker, T steps in a window, H hidden size,
V vocabulary, W warm-up characters, K likeliest characters.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.batches import cut_lanes
from charrnn.data.vocab import Ids
from charrnn.distributed import SINGLE, Ranks
from charrnn.evaluation.scores import Evaluation
from charrnn.evaluation.summary import Totals, select
from charrnn.hardware import split_range
from charrnn.kernels.head import Predictions
from charrnn.kernels.ngrams import Mixture, no_mixture
from charrnn.model.ngrams import find_contexts
from charrnn.model.windows import Predictor, Reader, State
from charrnn.numerics.vectors import Floats

WARM_UP = 1000  # W: a tail is scored from the state after at least this many characters
MAX_LANES = 64  # G
_PART_SIZE = 1 << 19  # characters whose predictions are in memory at a time; each part warms its lanes up again
_MAX_WINDOW_CHARS = 512  # T * B of a worker; larger windows are slower
_MAX_WINDOW_NUMBERS = 1 << 22  # numbers of a worker in memory at a time, such as logits in float64: 32 MB


def evaluate(
    network: Reader,
    ids: Ids,
    *,
    context: Ids,
    num_scored: int | None = None,
    rare_id: int | None = None,
    mixture: Mixture | None = None,
    ranks: Ranks = SINGLE,
) -> Evaluation:
    """Score ids given the characters before them; the other arguments are those of predict.

    A separate text is scored as `evaluate(network, ids[1:], context=ids[:1])`.
    rare_id: the id that stands for any rare character. It is fed but not scored, because it does
    not say which character it was, and is counted as the unknown character U+FFFD.
    ranks: all of them return the whole score.
    """
    totals = Totals(rare_id)
    for part in predict(network, ids, context=context, num_scored=num_scored, mixture=mixture, ranks=ranks):
        totals.add(part)
    return Totals(rare_id, *ranks.sum_numbers(totals.values())).to_evaluation({})


def predict(
    network: Reader,
    ids: Ids,
    *,
    context: Ids,
    num_scored: int | None = None,
    num_top: int = 0,
    mixture: Mixture | None = None,
    ranks: Ranks = SINGLE,
) -> Iterator[Predictions]:
    """Yield what the model predicts at each scored character, in the text's order and in parts that fit into memory.

    ids: (N,), N >= 1. context: the characters before them, at least one; the last W + 1 are used.
    num_scored: score only this many characters, in stretches spread evenly over the text; they are
    one part. num_top: K. mixture: n-grams to mix with the network. ranks: each yields its own lanes
    of each part, which can be none.
    """
    if num_scored is not None:
        yield _predict_part(_Part.of_text(network, ids, context, num_top, mixture), num_scored, ranks)
        return
    for start in range(0, len(ids), _PART_SIZE):
        before = ids[:start] if start else context
        part_ids = ids[start : start + _PART_SIZE]
        yield _predict_part(_Part.of_text(network, part_ids, before, num_top, mixture), len(part_ids), ranks)


def _predict_part(part: "_Part", num_scored: int, ranks: Ranks) -> Predictions:
    """Cut a part of a text into lanes and predict them on the network's threads."""
    num_chars = len(part.ids)
    assert 0 < num_scored <= num_chars
    num_lanes = min(MAX_LANES, max(1, num_scored // WARM_UP))  # so all lanes but the first have W characters before
    starts, _ = cut_lanes(num_chars, num_lanes)
    _, lengths = cut_lanes(num_scored, num_lanes)
    own = ranks.lanes(num_lanes)
    starts, lengths = starts[own], lengths[own]
    if len(starts) == 0:
        return new_predictions(np.empty(0, np.int64), part.num_top, count_experts(part.mixture))
    num_workers = min(part.network.threads, len(starts))
    with ThreadPoolExecutor(num_workers) as pool:
        lanes = split_range(len(starts), num_workers)
        found = list(pool.map(lambda own: part.read(starts[own], int(lengths[0])), lanes))
    return Predictions(*(_join_lanes(arrays, lengths) for arrays in zip(*found, strict=True)))


def predict_forgetting(
    network: Reader, ids: Ids, *, starts: NDArray[np.int64], length: int, mixture: Mixture | None
) -> Predictions:
    """Predict the `length` characters from each start on, (B, length), by those since the one before the start only.

    ids: (N,). starts: (B,), each at least 1 and at most N - length. mixture: as for predict.
    """
    part = _Part.of_text(network, ids[1:], ids[:1], 0, mixture)
    with ThreadPoolExecutor(network.threads) as pool:
        groups = np.array_split(starts - 1, -(-len(starts) // MAX_LANES))
        found = list(pool.map(lambda group: part.read(group, length, forgets=True), groups))
    return Predictions(*(np.concatenate(arrays, axis=1).swapaxes(0, 1) for arrays in zip(*found, strict=True)))


def read_outputs(network: Reader, ids: Ids, *, context: Ids, units: Sequence[int] | None = None) -> Floats:
    """Return the last layer's outputs after each of ids (N,): (N, H), or only those of some units.

    context: as for predict.
    """
    # what is predicted plays no part, so the last character may be followed by any
    part = _Part.of_text(network, np.roll(ids, -1), np.append(context, ids[:1]), 0, None)
    starts, lengths = cut_lanes(len(ids), min(MAX_LANES, max(1, len(ids) // WARM_UP)))
    num_workers = min(network.threads, len(starts))
    with ThreadPoolExecutor(num_workers) as pool:
        lanes = split_range(len(starts), num_workers)
        found = list(pool.map(lambda own: part.outputs(starts[own], int(lengths[0]), units), lanes))
    return _join_lanes(found, lengths)


def _join_lanes(groups: Sequence[NDArray[Any]], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Put what groups of lanes have at each step, (T, B, …) each, into the text's order: (N, …). lengths: (G,)."""
    is_inside = (np.arange(lengths[0])[:, None] < lengths).T  # (G, T)
    return np.concatenate(groups, axis=1).swapaxes(0, 1)[is_inside]


def compute_logits(network: Reader, ids: Ids, starts: NDArray[np.int64], length: int) -> Floats:
    """Compute the network's logits for the `length` characters of a text after each start: (length, B, V).

    starts: (B,), each at least 1. Each lane warms up on what precedes it, at most W characters.
    """
    warm_up = min(WARM_UP, int(starts.min()))
    logits = np.empty((length, len(starts), network.config.vocab_size), np.float32)
    warm_up_ids = ids[starts - warm_up + np.arange(warm_up - 1)[:, None]]
    state = _feed(network, warm_up_ids, network.initial_state(len(starts)))
    for rows in _windows(length, len(starts), network.config.vocab_size):
        h, state = network.features(ids[starts - 1 + np.arange(rows.start, min(rows.stop, length))[:, None]], state)
        logits[rows] = network.logits(h)
    return logits


@dataclass(frozen=True)
class _Part:
    """A part of a text and the network that reads it.

    inputs: the context and then the ids but the last, so inputs[first + i] predicts ids[i], with
    first = len(inputs) - len(ids). contexts: (N, order), the n-grams' nodes before each of ids.
    """

    network: Reader
    ids: Ids
    inputs: Ids
    mixture: Mixture
    contexts: NDArray[np.int32]
    num_top: int

    @classmethod
    def of_text(cls, network: Reader, ids: Ids, context: Ids, num_top: int, mixture: Mixture | None) -> "_Part":
        """Look up the n-grams' contexts."""
        context = context[-(WARM_UP + 1) :]
        assert len(context) > 0
        mixture = mixture or no_mixture()
        return cls(
            network,
            ids=ids,
            inputs=np.concatenate([context, ids[:-1]]),
            mixture=mixture,
            contexts=find_contexts(mixture, ids, context=context, boundary_ids=network.config.boundary_ids),
            num_top=min(num_top, network.config.vocab_size),
        )

    def read(self, starts: NDArray[np.int64], length: int, *, forgets: bool = False) -> Predictions:
        """Predict the `length` characters from each start on, after the lanes' warm-up; arrays of (length, B).

        forgets: there is no warm-up instead, and n-grams see no farther back than the character before the start.
        """
        state = self.network.initial_state(len(starts)) if forgets else self.warm_up(starts)
        found = new_predictions(np.empty((length, len(starts)), np.int64), self.num_top, count_experts(self.mixture))
        for rows, places, h in self.features(starts, length, state):
            part, contexts = select(found, rows), self.contexts[places]  # (T, B, order)
            part.ids[...] = self.ids[places]
            if forgets:
                num_known = 1 + np.arange(rows.start, rows.stop)[:, None, None]
                contexts[np.broadcast_to(np.arange(contexts.shape[2]) > num_known, contexts.shape)] = -1
            fill_predictions(self.network, h, self.mixture, contexts, part)
        return found

    def outputs(self, starts: NDArray[np.int64], length: int, units: Sequence[int] | None) -> Floats:
        """Return the last layer's outputs before the `length` characters from each start on: (length, B, H)."""
        chosen = slice(None) if units is None else list(units)
        windows = self.features(starts, length, self.warm_up(starts))
        return np.concatenate([h[:, :, chosen] for _, _, h in windows], dtype=np.float32)

    def features(
        self, starts: NDArray[np.int64], length: int, state: State
    ) -> Iterator[tuple[slice, NDArray[np.int64], Floats]]:
        """Yield windows of the `length` characters from each start on: their rows, places (T, B), features (T, B, H).

        state: of the lanes before the starts. Lanes that end before the text does stay at its last character.
        """
        first = len(self.inputs) - len(self.ids)
        for window in _windows(length, len(starts), self.network.config.vocab_size):
            rows = slice(window.start, min(window.stop, length))
            places = np.minimum(starts + np.arange(rows.start, rows.stop)[:, None], len(self.ids) - 1)
            h, state = self.network.features(self.inputs[places + first], state)
            yield rows, places, h

    def warm_up(self, starts: NDArray[np.int64]) -> State:
        """Compute the lanes' states before the inputs of starts: lane 0 reads the whole context, the others W."""
        network, inputs, first, states = self.network, self.inputs, len(self.inputs) - len(self.ids), []
        starts = starts + first
        if starts[0] == first:
            states.append(_feed(network, inputs[:first, None], network.initial_state(1)))
            starts = starts[1:]
        if len(starts) > 0:
            places = starts - WARM_UP + np.arange(WARM_UP)[:, None]  # (W, B)
            states.append(_feed(network, inputs[places], network.initial_state(len(starts))))
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))


def count_experts(mixture: Mixture) -> int:
    """Return the number of experts whose predictions are mixed: the network and its n-grams, or none to tell apart."""
    return 2 if len(mixture.weights) > 0 else 0


def new_predictions(ids: NDArray[np.int64], num_top: int, num_experts: int) -> Predictions:
    """Allocate predictions at ids, which can have any shape."""
    top = (*ids.shape, num_top)
    return Predictions(
        ids,
        nats=np.empty(ids.shape),
        ranks=np.empty(ids.shape, np.int32),
        top=np.empty(top, np.int32),
        probabilities=np.empty(top, np.float32),
        experts=np.empty((*ids.shape, num_experts)),
    )


def fill_predictions(
    network: Predictor, h: Floats, mixture: Mixture, contexts: NDArray[np.int32], out: Predictions
) -> None:
    """Fill in predictions of out.ids, (T, B) or (T,), from the features h (T, B, H).

    contexts: of the n-grams, in the shape of out.ids and (order,).
    """
    size = out.ids.size
    arrays: tuple[NDArray[Any], ...] = out
    flat = Predictions(*(array.reshape(size, *array.shape[out.ids.ndim :]) for array in arrays))
    network.predict(h.reshape(size, -1), mixture, contexts.reshape(size, -1), flat)


def read_context(network: Reader, ids: Ids) -> State:
    """Return the state of one lane after ids (N,)."""
    return _feed(network, ids[:, None], network.initial_state(1))


def _feed(network: Reader, x: Ids, state: State) -> State:
    """Feed characters (T, B) without predicting any; return the state after them."""
    for rows in _windows(len(x), x.shape[1], network.config.hidden_size):
        _, state = network.features(x[rows], state)
    return state


def _windows(num_steps: int, num_lanes: int, numbers_per_char: int) -> list[slice]:
    """Cut steps into windows that fit into caches and memory."""
    size = max(1, min(128, _MAX_WINDOW_CHARS // num_lanes, _MAX_WINDOW_NUMBERS // (num_lanes * numbers_per_char)))
    return [slice(start, start + size) for start in range(0, num_steps, size)]
