"""Exact scores: total nats over total characters, with the state carried through the text.

A text is split into lanes for speed; each lane first reads the characters before it, so
that its state is what a sequential reader would have to within rounding.

Letters: N characters, G lanes, T steps in a window, V vocabulary, W warm-up characters.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.data.batches import cut_lanes
from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab
from charrnn.distributed import SINGLE, Ranks
from charrnn.errors import InputError
from charrnn.evaluation.scores import Evaluation, Line
from charrnn.hardware import split_range, worker_pool
from charrnn.kernels.head import Predictions, predict_from_features, predict_from_logits
from charrnn.kernels.ngrams import Mixture, nothing
from charrnn.model.layers import HiddenState, is_fused
from charrnn.model.network import CharRNN, PackedNetwork
from charrnn.model.ngrams import contexts_of

WARM_UP = 1000  # W: a tail is scored from the state after at least this many characters
MAX_LANES = 64
_AT_ONCE = 1 << 19  # characters whose predictions are in memory; warming the lanes up anew costs an eighth
_MAX_CHARS = 512  # of a worker in a window: more are slower
MIN_LINE = 10  # characters of a line that is called hard: shorter ones are hard by chance
_MAX_NUMBERS = 1 << 22  # of a worker in memory at once, logits in float64: 32 MB


def evaluate(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    num_scored: int | None = None,
    unknown: dict[str, int] | None = None,
    rare: int | None = None,
    mixture: Mixture | None = None,
    ranks: Ranks = SINGLE,
) -> Evaluation:
    """Score ids given the characters before them, by the network alone or mixed with n-grams.

    ids: (N,), N >= 1. context: at least one character; the last W + 1 of it are used. A
    text of its own is scored as `evaluate(model, ids[1:], context=ids[:1])`.
    num_scored: fewer than N are scored, in stretches spread evenly over the text.
    rare: the id that stands for any rare character; it is read but not scored, as nothing says
    which it was, and counted as U+FFFD unless the unknown characters, given by name, are those.
    ranks: they share the text, and all know the score.
    """
    if num_scored is None:
        parts = predictions(model, ids, context=context, mixture=mixture, ranks=ranks)
    else:
        parts = iter([predict(model, ids, context=context, num_scored=num_scored, ranks=ranks)])
    totals = Totals(rare)
    for part in parts:
        totals.add(part)
    sums = torch.tensor(totals.values(), dtype=torch.float64)
    ranks.all_reduce(sums)
    return Totals(rare, *sums.tolist()).evaluation(unknown or {})


@dataclass
class Totals:
    """Sums over the predictions of a text. rare: the id of characters that are not scored, or None."""

    rare: int | None
    nats: float = 0.0
    num_chars: float = 0
    num_rare: float = 0
    network_nats: float = 0.0
    ngram_nats: float = 0.0

    def values(self) -> list[float]:
        """The sums, which ranks add up."""
        return [self.nats, self.num_chars, self.num_rare, self.network_nats, self.ngram_nats]

    def add(self, part: Predictions) -> None:
        """Count a part of the text."""
        scored = slice(None) if self.rare is None else part.ids != self.rare
        nats = part.nats[scored]
        self.nats += float(nats.sum())
        self.num_chars += len(nats)
        self.num_rare += len(part.ids) - len(nats)
        if part.experts.shape[1]:
            network, ngram = part.experts[scored].sum(0)
            self.network_nats += float(network)
            self.ngram_nats += float(ngram)

    def evaluation(self, unknown: dict[str, int]) -> Evaluation:
        """The score. unknown: characters that were left out of the text; rare ones count as U+FFFD if there are none.

        Raises InputError where nothing was scored.
        """
        if self.num_chars == 0:
            raise InputError("nothing to score: the model has every character of the text down as rare")
        experts = (self.network_nats, self.ngram_nats) if self.ngram_nats else None
        rare = {"\ufffd": int(self.num_rare)} if self.num_rare else {}
        return Evaluation(self.nats, int(self.num_chars), unknown or rare, experts)


def predictions(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    num_top: int = 0,
    mixture: Mixture | None = None,
    ranks: Ranks = SINGLE,
) -> Iterator[Predictions]:
    """What predict gives, of a text of any length, in parts."""
    for start in range(0, len(ids), _AT_ONCE):
        before = ids[:start] if start else context
        part = ids[start : start + _AT_ONCE]
        yield predict(model, part, context=before, num_top=num_top, mixture=mixture, ranks=ranks)


def predict(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    num_scored: int | None = None,
    num_top: int = 0,
    max_lanes: int = MAX_LANES,
    mixture: Mixture | None = None,
    ranks: Ranks = SINGLE,
) -> Predictions:
    """What the model expects at each scored character, and what it costs, in the text's order.

    num_top: how many of the likeliest characters are named. max_lanes=1 reads strictly in
    sequence. On a CPU PyTorch's number of threads share the lanes; of several ranks each has
    its own, and there may be too few for all.
    """
    num_scored = len(ids) if num_scored is None else num_scored
    assert 0 < num_scored <= len(ids)
    context = context[-(WARM_UP + 1) :]
    assert len(context) > 0
    mixture = mixture or nothing()
    reader = _Reader(
        model,
        packed=model.pack() if is_fused(model) else None,
        ids=ids,
        inputs=np.concatenate([context, ids[:-1]]),
        mixture=mixture,
        contexts=contexts_of(mixture, ids, context=context),
        num_top=min(num_top, model.config.vocab_size),
    )
    num_lanes = min(max_lanes, max(1, num_scored // WARM_UP))  # as many as leave W characters before all but the first
    starts, _ = cut_lanes(len(ids), num_lanes)
    _, lengths = cut_lanes(num_scored, num_lanes)
    own = ranks.lanes(num_lanes)
    starts, lengths = starts[own], lengths[own]
    if len(starts) == 0:
        return empty_predictions(np.empty(0, np.int64), reader.num_top, reader.num_experts)
    num_workers = min(torch.get_num_threads(), len(starts)) if reader.packed else 1
    with worker_pool(num_workers) as pool:
        lanes = split_range(len(starts), num_workers)
        parts = list(pool.map(lambda part: reader.read(starts[part], int(lengths[0])), lanes))
    scored = (np.arange(lengths[0])[:, None] < lengths).T  # (B, T)
    joined = (np.concatenate(arrays, axis=1).swapaxes(0, 1)[scored] for arrays in zip(*parts, strict=True))
    return Predictions(*joined)


@torch.inference_mode()
def all_logits(model: CharRNN, ids: Ids, starts: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """The network's logits where `length` characters of a text come from each start on: (length, B, V).

    starts: (B,), one at least; what is before each is read, W characters at most and one at least.
    """
    packed = model.pack() if is_fused(model) else None
    first = min(WARM_UP, int(starts.min()))
    begins = starts - first
    found = np.empty((length, len(starts), model.config.vocab_size), np.float32)
    state = _read(model, packed, ids[begins + np.arange(first - 1)[:, None]], model.initial_state(len(starts)))
    for rows in _windows(length, len(starts), model.config.vocab_size):
        x = ids[starts - 1 + np.arange(rows.start, min(rows.stop, length))[:, None]]
        h, state = model.features(_to_device(model, x), state, packed=packed)
        found[rows] = model.head(h).float().cpu().numpy()
    return found


@dataclass(frozen=True)
class _Reader:
    """A model and the text it reads: inputs[first + i] predicts ids[i], with first = len(inputs) - len(ids).

    contexts: (N, order), what the mixture's n-grams know before each of the ids.
    """

    model: CharRNN
    packed: PackedNetwork | None
    ids: Ids
    inputs: Ids
    mixture: Mixture
    contexts: NDArray[np.int32]
    num_top: int = 0

    @property
    def num_experts(self) -> int:
        return 2 * (len(self.mixture.weights) > 0)

    @torch.inference_mode()
    def read(self, starts: NDArray[np.int64], length: int) -> Predictions:
        """The `length` characters from each start on, arrays of (length, B), after a warm-up before them."""
        first = len(self.inputs) - len(self.ids)
        state = _warm_up(self.model, self.packed, self.inputs, starts + first, first)
        ids = np.empty((length, len(starts)), np.int64)
        found = empty_predictions(ids, self.num_top, self.num_experts)
        for rows in _windows(length, len(starts), self.model.config.vocab_size):
            times = np.arange(rows.start, min(rows.stop, length))[:, None]
            places = np.minimum(starts + times, len(self.ids) - 1)  # (T, B); past a lane's end: read, not kept
            x = _to_device(self.model, self.inputs[places + first])
            h, state = self.model.features(x, state, packed=self.packed)
            part = Predictions(
                found.ids[rows],
                found.nats[rows],
                found.ranks[rows],
                found.top[rows],
                found.probabilities[rows],
                found.experts[rows],
            )
            part.ids[...] = self.ids[places]
            predict_each(self.model, self.packed, h, self.mixture, self.contexts[places], part)
        return found


def empty_predictions(ids: NDArray[np.int64], num_top: int, num_experts: int) -> Predictions:
    """Buffers for what is expected at characters of any shape."""
    top = (*ids.shape, num_top)
    return Predictions(
        ids,
        nats=np.empty(ids.shape),
        ranks=np.empty(ids.shape, np.int32),
        top=np.empty(top, np.int32),
        probabilities=np.empty(top, np.float32),
        experts=np.empty((*ids.shape, num_experts)),
    )


def predict_each(
    model: CharRNN,
    packed: PackedNetwork | None,
    h: torch.Tensor,
    mixture: Mixture,
    contexts: NDArray[np.int32],
    out: Predictions,
) -> None:
    """What is expected after the features h (T, B, H), where out.ids (T, B) came, by rows of contexts (T, B, order)."""
    size, num_top = out.ids.size, out.top.shape[-1]
    flat = Predictions(
        out.ids.reshape(size),
        out.nats.reshape(size),
        out.ranks.reshape(size),
        out.top.reshape(size, num_top),
        out.probabilities.reshape(size, num_top),
        out.experts.reshape(size, out.experts.shape[-1]),
    )
    rows = contexts.reshape(size, -1)
    if packed:
        predict_from_features(packed.head, h.flatten(0, 1).numpy(), mixture, rows, flat)
    else:
        predict_from_logits(model.head(h).flatten(0, 1).float().cpu().numpy(), mixture, rows, flat)


@torch.no_grad()
def state_after(model: CharRNN, ids: Ids) -> HiddenState:
    """The state of one lane that has read these characters, from none."""
    return _read(model, model.pack() if is_fused(model) else None, ids[:, None], model.initial_state(1))


def _warm_up(
    model: CharRNN, packed: PackedNetwork | None, inputs: Ids, starts: NDArray[np.int64], first: int
) -> HiddenState:
    """The lanes' states before their first input: lane 0 reads what context there is, the others W."""
    states = []
    if starts[0] == first:
        states.append(_read(model, packed, inputs[:first, None], model.initial_state(1)))
        starts = starts[1:]
    if len(starts) > 0:
        places = starts - WARM_UP + np.arange(WARM_UP)[:, None]  # (W, B)
        states.append(_read(model, packed, inputs[places], model.initial_state(len(starts))))
    return tuple(torch.cat(parts, dim=1) for parts in zip(*states, strict=True))


def _read(model: CharRNN, packed: PackedNetwork | None, x: Ids, state: HiddenState) -> HiddenState:
    """Feed characters (T, B) whose predictions nobody wants."""
    for rows in _windows(len(x), x.shape[1], model.config.hidden_size):
        _, state = model.features(_to_device(model, x[rows]), state, packed=packed)
    return state


def _windows(num_steps: int, num_lanes: int, numbers_per_char: int) -> list[slice]:
    """Steps that are taken together: few enough for the caches, and for memory."""
    size = max(1, min(128, _MAX_CHARS // num_lanes, _MAX_NUMBERS // (num_lanes * numbers_per_char)))
    return [slice(start, start + size) for start in range(0, num_steps, size)]


def _to_device(model: CharRNN, ids: Ids) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(model.head.weight.device)


@dataclass(frozen=True)
class ScoredText:
    """What one pass over a text found. first: the predictions at its first characters; hardest: hardest lines first."""

    score: Evaluation
    first: Predictions
    hardest: list[Line]


def score_text(
    parts: Iterable[Predictions],
    vocab: Vocab,
    *,
    unknown: dict[str, int],
    num_first: int = 0,
    num_hardest: int = 0,
) -> ScoredText:
    """Go through the predictions of a text once, for all that is wanted of them.

    num_first: how many characters' predictions to return; num_hardest: how many lines.
    """
    totals, splitter, first, hardest = Totals(vocab.id_of(UNKNOWN)), LineSplitter(vocab), [], list[Line]()
    for part in parts:
        totals.add(part)
        if num_first > 0:
            first.append(Predictions(*(array[:num_first] for array in part)))
            num_first -= len(part.ids)
        if num_hardest:
            lines = [*hardest, *(line for line in splitter.split(part) if line.num_chars >= MIN_LINE)]
            hardest = heapq.nlargest(num_hardest, lines, key=lambda line: line.bits_per_char)
    if num_hardest:
        lines = [*hardest, *(line for line in splitter.rest() if line.num_chars >= MIN_LINE)]
        hardest = heapq.nlargest(num_hardest, lines, key=lambda line: line.bits_per_char)
    shown = (
        Predictions(*(np.concatenate(arrays) for arrays in zip(*first, strict=True)))
        if first
        else empty_predictions(np.empty(0, np.int64), 0, 0)
    )
    return ScoredText(totals.evaluation(unknown), shown, hardest)


class LineSplitter:
    """Cuts the predictions of a text into lines; rare characters are in a line's text, not in its score."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._ends = [found for char in ("\n", END) if (found := vocab.id_of(char)) is not None]
        self._ids, self._nats, self._number = np.empty(0, np.int64), np.empty(0), 0

    def split(self, part: Predictions) -> Iterator[Line]:
        """The lines that end in the next part of the text."""
        ids, nats, start = np.concatenate([self._ids, part.ids]), np.concatenate([self._nats, part.nats]), 0
        for stop in (np.flatnonzero(np.isin(ids, self._ends)) + 1).tolist():
            yield self._line(ids[start:stop], nats[start:stop])
            start = stop
        self._ids, self._nats = ids[start:], nats[start:]

    def rest(self) -> Iterator[Line]:
        """The last line, if it has no newline."""
        if len(self._ids) > 0:
            yield self._line(self._ids, self._nats)

    def _line(self, ids: Ids, nats: NDArray[np.float64]) -> Line:
        self._number += 1
        vocab, scored = self._vocab, ids != self._vocab.id_of(UNKNOWN)
        text = vocab.reader()(vocab.decode(ids).rstrip("\n" + END), True).replace(UNKNOWN, "\ufffd")
        return Line(self._number, text, float(nats[scored].sum()), int(scored.sum()))
