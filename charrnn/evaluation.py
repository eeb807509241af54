"""Exact scores: total nats over total characters, with the state carried through the text.

A text is split into lanes for speed; each lane first reads the characters before it, so
that its state is what a sequential reader would have to within rounding.

Letters: N characters, G lanes, T steps in a window, V vocabulary, W warm-up characters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.batches import cut_lanes
from charrnn.cache import Cache
from charrnn.cells import State, is_fused
from charrnn.checkpoint import ModelFile
from charrnn.config import CorpusConfig, SourceConfig, overlay, share
from charrnn.corpus import find_corpus, load_corpus, read_known
from charrnn.errors import InputError, UsageError
from charrnn.kernels.head import each_nats
from charrnn.lanes import worker_pool
from charrnn.metrics import Evaluation
from charrnn.model import CharRNN, PackedNetwork
from charrnn.sources import STDIN
from charrnn.vocab import END, Ids

WARM_UP = 1000  # W: a tail is scored from the state after at least this many characters
MAX_LANES = 64
_AT_ONCE = 1 << 20  # characters whose nats are in memory; warming the lanes up anew costs a sixteenth
_MAX_CHARS = 512  # of a worker in a window: more are slower
_MAX_NUMBERS = 1 << 22  # of a worker in memory at once, logits in float64: 32 MB


@dataclass(frozen=True)
class Scored:
    """What to score: ids, the characters before them, and what the model doesn't know."""

    name: str
    ids: Ids
    context: Ids
    unknown: dict[str, int]


def whole_text(
    model: ModelFile, name: str, given: Mapping[str, Any], source_config: SourceConfig, cache: Cache
) -> Scored:
    """A separate text: of N known characters N - 1 are scored, the first only feeds.

    Where the model knows documents it is cut in such, and all characters are scored.
    given: how the text is read, where that isn't as usual. Raises InputError where there is
    nothing to score.
    """
    config = CorpusConfig(bytes=model.vocab.of_bytes, documents=reading(model).documents)
    config = overlay(config, given)
    ids, unknown = read_known(name, model.vocab, config, source_config, cache)
    end = model.vocab.id_of(END)
    num_read = int(end is None)
    if len(ids) <= num_read:
        least = "two" if num_read else "one"
        raise InputError(f"{name}: {len(ids)} characters that the model knows; scoring needs at least {least}")
    context = ids[:1] if end is None else np.array([end], ids.dtype)
    return Scored(name, ids[num_read:], context, unknown)


def reading(model: ModelFile) -> CorpusConfig:
    """How the text that a model was trained on was read and split. Raises InputError for a model that says nonsense."""
    split = model.provenance.get("split", {})
    try:
        fields = {field.name: split[field.name] for field in dataclasses.fields(CorpusConfig) if field.name in split}
        return CorpusConfig(**fields)
    except UsageError as error:
        raise InputError(f"the model says nonsense about the text it was trained on ({error})") from None


def held_out(model: ModelFile, train_text: Sequence[str] | None, source_config: SourceConfig, cache: Cache) -> Scored:
    """The part of the training text that the model was not trained on, from its files, or from the cache.

    train_text: where those files are now, if they have moved.
    Raises InputError where they are gone or have changed.
    """
    config = reading(model)
    text, split = (model.provenance.get(name, {}) for name in ("text", "split"))
    if not ({"paths", "sha256"} <= text.keys() and {"num_train", "num_valid"} <= split.keys()):
        raise InputError("the model doesn't say what it was trained on; name a TEXT to score")
    paths = train_text or text["paths"]
    corpus = None if train_text else find_corpus(str(text.get("key")), config, cache)
    if corpus is None and STDIN in paths:
        raise InputError("the model was trained on stdin; name that text with --train-text FILE, or a TEXT to score")
    if corpus is None:
        try:
            corpus = load_corpus(paths, config, source_config, cache)
        except InputError as error:
            raise InputError(f"{error} (the text it was trained on; --train-text FILE says where it is now)") from None
    name = " ".join(paths)
    if corpus.sha256 != text["sha256"] or corpus.vocab != model.vocab:
        raise InputError(f"{name}: not the text the model was trained on; name that one with --train-text")
    num_train, num_valid = split["num_train"], split["num_valid"]
    if not (num_train > 0 and num_valid > 0 and num_train + num_valid <= len(corpus.ids)):
        raise InputError("the model says nonsense about how its text was split; name a TEXT to score")
    corpus = dataclasses.replace(corpus, num_train=num_train, num_valid=num_valid)
    return Scored(config.valid or name, corpus.valid_ids, corpus.valid_context, {})


def evaluate(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    num_scored: int | None = None,
    unknown: dict[str, int] | None = None,
    rare: int | None = None,
) -> Evaluation:
    """Score ids given the characters before them.

    ids: (N,), N >= 1. context: at least one character; the last W + 1 of it are used. A
    text of its own is scored as `evaluate(model, ids[1:], context=ids[:1])`.
    num_scored: fewer than N are scored, in stretches spread evenly over the text.
    rare: the id that stands for any rare character; it is read but not scored, as nothing says
    which it was, and counted as U+FFFD unless the unknown characters, given by name, are those.
    """
    nats, num_chars, num_rare = 0.0, 0, 0
    for start in range(0, len(ids) if num_scored is None else 1, _AT_ONCE):
        part = ids[start : start + _AT_ONCE] if num_scored is None else ids
        each = character_nats(model, part, context=ids[:start] if start else context, num_scored=num_scored)
        if rare is not None:
            places = _places_scored(len(part), len(each), MAX_LANES)
            each = each[part[places] != rare]
            num_rare += len(places) - len(each)
        nats, num_chars = nats + float(each.sum()), num_chars + len(each)
    if num_chars == 0:
        raise InputError("nothing to score: every character is one that the model takes for a rare one")
    return Evaluation(nats, num_chars, unknown or ({"\ufffd": num_rare} if num_rare else {}))


def character_nats(
    model: CharRNN, ids: Ids, *, context: Ids, num_scored: int | None = None, max_lanes: int = MAX_LANES
) -> NDArray[np.float64]:
    """The nats each scored character costs, (num_scored,) float64, in the text's order.

    max_lanes=1 reads strictly in sequence. On a CPU PyTorch's number of threads share the lanes.
    """
    num_scored = len(ids) if num_scored is None else num_scored
    assert 0 < num_scored <= len(ids)
    context = context[-(WARM_UP + 1) :]
    assert len(context) > 0
    inputs = np.concatenate([context, ids[:-1]])  # inputs[first + i] predicts ids[i], with first = len(context) - 1
    num_lanes = _count_lanes(num_scored, max_lanes)
    starts, lengths = _stretches(len(ids), num_scored, num_lanes)
    fused = is_fused(model)
    packed = model.pack() if fused else None
    num_workers = min(torch.get_num_threads(), num_lanes) if fused else 1

    def score(lanes: slice) -> NDArray[np.float64]:
        return _lane_nats(model, packed, ids, inputs, starts[lanes], int(lengths[0]))

    with worker_pool(num_workers) as pool:
        nats = np.concatenate(list(pool.map(score, share(num_lanes, num_workers))), axis=1)
    return nats.T[(np.arange(lengths[0])[:, None] < lengths).T]


def _stretches(num_ids: int, num_scored: int, num_lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each lane begins to score, and how many characters: (B,) each."""
    starts, _ = cut_lanes(num_ids, num_lanes)
    _, lengths = cut_lanes(num_scored, num_lanes)
    return starts, lengths


def _count_lanes(num_scored: int, max_lanes: int) -> int:
    """As many lanes as leave W characters before each but the first."""
    return min(max_lanes, max(1, num_scored // WARM_UP))


def _places_scored(num_ids: int, num_scored: int, max_lanes: int) -> NDArray[np.int64]:
    """The places of the characters that character_nats scores, in its order: (num_scored,)."""
    starts, lengths = _stretches(num_ids, num_scored, _count_lanes(num_scored, max_lanes))
    return np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])


@torch.inference_mode()
def _lane_nats(
    model: CharRNN, packed: PackedNetwork | None, ids: Ids, inputs: Ids, starts: NDArray[np.int64], length: int
) -> NDArray[np.float64]:
    """The nats of the `length` characters from each start on, (length, B), after a warm-up before them."""
    first = len(inputs) - len(ids)
    state = _warm_up(model, packed, inputs, starts + first, first)
    nats = np.empty((length, len(starts)))
    for rows in _windows(length, len(starts), model.config.vocab_size):
        times = np.arange(rows.start, min(rows.stop, length))[:, None]
        places = np.minimum(starts + times, len(ids) - 1)  # (T, B); past a lane's end: read, not kept
        targets = ids[places].astype(np.int64)
        h, state = model.features(_to_device(model, inputs[places + first]), state, packed=packed)
        nats[rows] = _each_nats(model, packed, h, targets)
    return nats


def _each_nats(
    model: CharRNN, packed: PackedNetwork | None, h: torch.Tensor, targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What each target costs after the features h (T, B, H): (T, B)."""
    if packed:
        nats = np.empty(targets.size)
        each_nats(packed.head, h.flatten(0, 1).numpy(), targets.ravel(), nats)
        return nats.reshape(targets.shape)
    scores = model.head(h).double().log_softmax(-1)
    chosen: NDArray[np.float64] = scores.gather(-1, _to_device(model, targets).unsqueeze(-1)).squeeze(-1).cpu().numpy()
    return -chosen


def _warm_up(model: CharRNN, packed: PackedNetwork | None, inputs: Ids, starts: NDArray[np.int64], first: int) -> State:
    """The lanes' states before their first input: lane 0 reads what context there is, the others W."""
    states = []
    if starts[0] == first:
        states.append(_read(model, packed, inputs[:first, None], model.initial_state(1)))
        starts = starts[1:]
    if len(starts) > 0:
        places = starts - WARM_UP + np.arange(WARM_UP)[:, None]  # (W, B)
        states.append(_read(model, packed, inputs[places], model.initial_state(len(starts))))
    return tuple(torch.cat(parts, dim=1) for parts in zip(*states, strict=True))


def _read(model: CharRNN, packed: PackedNetwork | None, x: Ids, state: State) -> State:
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
