"""Comparisons for a score: baselines that know the same training text, and what the model copies from it.

Letters: N characters, V vocabulary.
"""

import lzma
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Ids, Vocab
from charrnn.evaluation.copying import measure_copying
from charrnn.evaluation.scores import Assessment, Baseline, Evaluation
from charrnn.evaluation.texts import EvalText
from charrnn.model.file import ModelFile
from charrnn.model.ngrams import MAX_ORDER, nats_by_order
from charrnn.text.characters import END, LABEL_END, UNKNOWN

MAX_READ = 32_000_000  # characters, and bytes, of the training text; xz takes half a minute for as many
_PIECE = 1 << 20  # characters counted at a time
MIN_PACKED = 4_000  # bytes of the scored text; xz counts whole bytes, too coarse for less
_SMALLEST_DICTIONARY = 1 << 12  # bytes; xz allows no less


def assess(
    score: Evaluation, file: ModelFile, text: EvalText, train: Ids, *, adapted: Evaluation | None = None, threads: int
) -> Assessment:
    """Compare a model's score on a text with those of baselines of the same training text, and measure copying.

    adapted: the score by dynamic evaluation.
    """
    baselines = compute_baselines(train, text.ids, context=text.context, vocab=file.vocab)
    copied = measure_copying(file, train, text.ids, threads=threads)
    return Assessment(score, baselines, adapted, copied, file.vocab.unit)


def compute_baselines(
    train: Ids, ids: Ids, *, context: Ids, vocab: Vocab, max_read: int = MAX_READ
) -> tuple[Baseline, ...]:
    """Score ids (N,), which follow the context, with simpler predictors of the training text; best first.

    max_read: characters to read of the training text, from its end. If more are to be scored, only the
    quick baselines are computed.
    """
    part = np.array(train[-max_read:])
    note = f"from the last {len(part):,} {vocab.unit}s of the training text" if len(part) < len(train) else ""
    is_scored = ids != vocab.id_of(UNKNOWN)  # nothing says which rare character it was
    found = [
        Baseline("uniform", math.log(len(vocab)), f"{len(vocab):,} {vocab.unit}s"),
        Baseline("character frequencies", _unigram_nats(part, ids[is_scored], len(vocab)), note),
    ]
    if len(ids) <= max_read:
        with ThreadPoolExecutor(1) as pool:
            xz = pool.submit(xz_baseline, train, ids, vocab, max_read)
            found.append(_best_ngram_baseline(part, ids, context, is_scored, len(vocab), note))
            found += xz.result()
    return tuple(sorted(found, key=lambda baseline: baseline.nats_per_char))


def _unigram_nats(train: Ids, ids: Ids, vocab_size: int) -> float:
    """Return nats per character under add-one smoothed character frequencies."""
    counts = _count_ids(train, vocab_size) + 1
    return float(_count_ids(ids, vocab_size) @ -np.log(counts / counts.sum())) / len(ids)


def _count_ids(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """Count each id, (V,). np.bincount copies its input to int64, so it gets a piece at a time."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(ids), _PIECE):
        counts += np.bincount(ids[start : start + _PIECE], minlength=vocab_size)
    return counts


def _best_ngram_baseline(
    train: Ids, ids: Ids, context: Ids, is_scored: NDArray[np.bool_], vocab_size: int, note: str
) -> Baseline:
    """Score the n-gram model of the order that predicts the text best."""
    by_order = nats_by_order(train, ids, context=context, vocab_size=vocab_size)
    nats, order = min((float(each[is_scored].mean()), order) for order, each in enumerate(by_order, start=1))
    method = f"modified Kneser-Ney, best order up to {MAX_ORDER}"
    return Baseline(f"{order}-gram", nats, f"{method}; {note}" if note else method)


def xz_baseline(train: Ids, ids: Ids, vocab: Vocab, max_read: int = MAX_READ) -> list[Baseline]:
    """Measure the bytes that xz adds for the text after the training text, per character of the text.

    max_read: characters, and bytes, to read of the training text, from its end. Returns no baseline
    for a short text.
    """
    part, text = train[-max_read:], _to_bytes(ids, vocab)
    if len(text) < MIN_PACKED:
        return []
    train_bytes = _to_bytes(part, vocab)
    before = train_bytes[-max_read:]
    added = max(0, xz_size(before + text) - xz_size(before))
    is_whole = len(part) == len(train) and len(before) == len(train_bytes)
    which = "" if is_whole else f"the last {len(before):,} bytes of "
    return [Baseline("xz", added * 8 / len(ids) * math.log(2), f"after {which}the training text")]


def _to_bytes(ids: Ids, vocab: Vocab) -> bytes:
    """Encode a text as a file would hold it, with a NUL at the end of each document and a tab after each label."""
    text = vocab.decode(ids).replace(END, "\0").replace(LABEL_END, "\t").replace(UNKNOWN, "\ufffd")
    return text.encode("utf-8", "surrogateescape")


def xz_size(data: bytes) -> int:
    """Return the size of data compressed by xz, in bytes, with a window that covers all of it."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(_SMALLEST_DICTIONARY, len(data))}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))
