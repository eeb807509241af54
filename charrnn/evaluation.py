"""Exact scores: total nats over total characters, with the state carried through the text.

A text is split into lanes for speed; each lane first reads the characters before it, so
that its state is what a sequential reader would have to within rounding.

Letters: N characters, G lanes, T steps in a window, V vocabulary, W warm-up characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.batches import cut_lanes
from charrnn.cells import State
from charrnn.checkpoint import ModelFile
from charrnn.config import CorpusConfig
from charrnn.corpus import STDIN, read_texts
from charrnn.errors import InputError
from charrnn.metrics import Evaluation
from charrnn.model import CharRNN
from charrnn.vocab import Ids

WARM_UP = 1000  # W: a tail is scored from the state after at least this many characters
MAX_LANES = 64
_MAX_LOGITS = 1 << 22  # logits in memory at once, in float64: 32 MB


@dataclass(frozen=True)
class Source:
    """What to score: ids, the characters before them, and what the model doesn't know."""

    name: str
    ids: Ids
    context: Ids
    unknown: dict[str, int]


def whole_text(model: ModelFile, name: str, config: CorpusConfig) -> Source:
    """A separate text: of N known characters N - 1 are scored, the first only feeds.

    Raises InputError where fewer than two characters are known to the model.
    """
    ids, unknown = model.vocab.encode_known(read_texts([name], config).text)
    if len(ids) < 2:
        raise InputError(f"{name}: {len(ids)} characters that the model knows; scoring needs at least two")
    return Source(name, ids[1:], ids[:1], unknown)


def held_out(model: ModelFile, train_text: Sequence[str] | None) -> Source:
    """The tail of the training text that the model was not trained on, read again from its files.

    train_text: where those files are now, if they have moved.
    Raises InputError where they are gone or have changed.
    """
    try:
        text, split = model.provenance["text"], model.provenance["split"]
        paths, sha256, encoding, num_train = text["paths"], text["sha256"], split["encoding"], split["num_train"]
    except KeyError:
        raise InputError("the model doesn't say what it was trained on; name a TEXT to score") from None
    if STDIN in paths and not train_text:
        raise InputError("the model was trained on stdin; name that text with --train-text FILE, or a TEXT to score")
    paths = train_text or paths
    try:
        found = read_texts(paths, CorpusConfig(encoding=encoding))
    except InputError as error:
        raise InputError(f"{error} (the text it was trained on; --train-text FILE says where it is now)") from None
    if found.sha256 != sha256:
        raise InputError(f"{' '.join(paths)}: not the text the model was trained on; name that one with --train-text")
    ids = model.vocab.encode(found.text)
    return Source(" ".join(paths), ids[num_train:], ids[:num_train], {})


def evaluate(
    model: CharRNN, ids: Ids, *, context: Ids, num_scored: int | None = None, unknown: dict[str, int] | None = None
) -> Evaluation:
    """Score ids given the characters before them.

    ids: (N,), N >= 1. context: at least one character; the last W + 1 of it are used. A
    text of its own is scored as `evaluate(model, ids[1:], context=ids[:1])`.
    num_scored: fewer than N are scored, in stretches spread evenly over the text.
    """
    nats = character_nats(model, ids, context=context, num_scored=num_scored)
    return Evaluation(float(nats.sum()), len(nats), unknown or {})


@torch.inference_mode()
def character_nats(
    model: CharRNN, ids: Ids, *, context: Ids, num_scored: int | None = None, max_lanes: int = MAX_LANES
) -> NDArray[np.float64]:
    """The nats each scored character costs, (num_scored,) float64, in the text's order.

    max_lanes=1 reads strictly in sequence.
    """
    num_scored = len(ids) if num_scored is None else num_scored
    assert 0 < num_scored <= len(ids)
    context = context[-(WARM_UP + 1) :]
    first = len(context) - 1
    assert first >= 0
    inputs = np.concatenate([context, ids[:-1]])  # inputs[first + i] predicts ids[i]
    num_lanes = min(max_lanes, max(1, num_scored // WARM_UP))  # so all lanes but the first have W before them
    starts, _ = cut_lanes(len(ids), num_lanes)
    _, lengths = cut_lanes(num_scored, num_lanes)
    state = _warm_up(model, inputs, starts + first, first)
    times = np.arange(lengths[0])[:, None]
    places = np.minimum(starts + times, len(ids) - 1)  # (T, G); past a lane's end: read, not kept
    scores = np.empty(places.shape)
    for rows in _windows(len(times), num_lanes * model.config.vocab_size):
        logits, state = model(_to_device(model, inputs[places[rows] + first]), state)
        targets = _to_device(model, ids[places[rows]]).unsqueeze(-1)
        scores[rows] = logits.double().log_softmax(-1).gather(-1, targets).squeeze(-1).cpu().numpy()
    return -scores.T[(times < lengths).T]


def _warm_up(model: CharRNN, inputs: Ids, starts: NDArray[np.int64], first: int) -> State:
    """The lanes' states before their first input: lane 0 reads what context there is, the others W."""
    head = _read(model, inputs[:first, None], model.initial_state(1))
    if len(starts) == 1:
        return head
    places = starts[1:] - WARM_UP + np.arange(WARM_UP)[:, None]  # (W, G - 1)
    others = _read(model, inputs[places], model.initial_state(len(starts) - 1))
    return tuple(torch.cat(parts, dim=1) for parts in zip(head, others, strict=True))


def _read(model: CharRNN, x: Ids, state: State) -> State:
    """Feed characters (T, B) whose predictions nobody wants."""
    for rows in _windows(len(x), x.shape[1] * model.config.vocab_size):
        _, state = model(_to_device(model, x[rows]), state)
    return state


def _windows(num_steps: int, logits_per_step: int) -> list[slice]:
    size = min(128, max(1, _MAX_LOGITS // logits_per_step))
    return [slice(start, start + size) for start in range(0, num_steps, size)]


def _to_device(model: CharRNN, ids: Ids) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(model.head.weight.device)
