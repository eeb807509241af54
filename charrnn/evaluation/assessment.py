"""Comparisons for a score: baselines that know the same training text, and the share of text the model copies from it.

Letters: N characters, V vocabulary.
"""

import lzma
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab
from charrnn.evaluation.adaptation import evaluate_adapting
from charrnn.evaluation.scores import COPIED_RUN, Assessment, Baseline, Copied, CopiedShares, Evaluation
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.ngrams import find_hashes, hash_ngrams
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import MAX_ORDER, nats_by_order
from charrnn.sampling.sampler import Sampler

MAX_READ = 32_000_000  # characters, and bytes, of the training text; xz takes half a minute for as many
COPYING_SAMPLES = SampleConfig(num_samples=60, length=1000, temperature=0.8, seed=0)
MAX_COMPARED = 200_000  # characters of the scored text that are compared with the training text
_PIECE = 1 << 20  # characters counted at a time
_SMALLEST_DICTIONARY = 1 << 12  # bytes; xz allows no less


def assess(
    score: Evaluation,
    file: ModelFile,
    network: CharRNN,
    text: EvalText,
    train: Ids,
    *,
    with_baselines: bool,
    adapt_rate: float | None,
) -> Assessment:
    """Add comparisons with the training text to a model's score on a text.

    network: the file's network. with_baselines: also measure copying. adapt_rate: the learning rate of
    dynamic evaluation; None leaves it out.
    """
    adapted = None
    if adapt_rate is not None:
        adapted = evaluate_adapting(
            network,
            text.ids,
            context=text.context,
            train=train,
            rare_id=file.vocab.id_of(UNKNOWN),
            rate=adapt_rate,
            mixture=file.mixture,
        )
    if not with_baselines:
        return Assessment(score, adapted=adapted)
    baselines = compute_baselines(train, text.ids, context=text.context, vocab=file.vocab)
    return Assessment(score, baselines, adapted, measure_copying(file, train, text.ids))


def compute_baselines(
    train: Ids, ids: Ids, *, context: Ids, vocab: Vocab, max_read: int = MAX_READ
) -> tuple[Baseline, ...]:
    """Score ids (N,), which follow the context, with simpler predictors of the training text; best first.

    max_read: characters to read of the training text, from its end. If more are to be scored, only the
    quick baselines are computed.
    """
    part = np.array(train[-max_read:])
    note = f"from the last {len(part):,} characters of the training text" if len(part) < len(train) else ""
    is_scored = ids != vocab.id_of(UNKNOWN)  # nothing says which rare character it was
    found = [
        Baseline("uniform", math.log(len(vocab)), f"{len(vocab):,} characters"),
        Baseline("character frequencies", _unigram_nats(part, ids[is_scored], len(vocab)), note),
    ]
    if len(ids) <= max_read:
        with ThreadPoolExecutor(1) as pool:
            xz = pool.submit(xz_baseline, train, ids, vocab, max_read)
            found.append(_best_ngram_baseline(part, ids, context, is_scored, len(vocab), note))
            found.append(xz.result())
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


def xz_baseline(train: Ids, ids: Ids, vocab: Vocab, max_read: int = MAX_READ) -> Baseline:
    """Measure the bytes that xz adds for the text after the training text, per character of the text.

    max_read: characters, and bytes, to read of the training text, from its end.
    """
    part = train[-max_read:]
    train_bytes, text = _to_bytes(part, vocab), _to_bytes(ids, vocab)
    before = train_bytes[-max_read:]
    added = xz_size(before + text) - xz_size(before)
    is_whole = len(part) == len(train) and len(before) == len(train_bytes)
    which = "" if is_whole else f"the last {len(before):,} bytes of "
    return Baseline("xz", added * 8 / len(ids) * math.log(2), f"after {which}the training text")


def _to_bytes(ids: Ids, vocab: Vocab) -> bytes:
    """Encode a text as a file would hold it, with a NUL at the end of each document."""
    text = vocab.decode(ids).replace(END, "\0").replace(UNKNOWN, "\ufffd")
    return text.encode("utf-8", "surrogateescape")


def xz_size(data: bytes) -> int:
    """Return the size of data compressed by xz, in bytes, with a window that covers all of it."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(_SMALLEST_DICTIONARY, len(data))}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))


def measure_copying(file: ModelFile, train: Ids, ids: Ids) -> CopiedShares:
    """Measure how much of a model's samples, and how much of another text, ids, is copied from the training text.

    Any text shares some runs with the training text, so the other text puts the samples in perspective.
    The samples are the same each time; they are drawn on PyTorch's number of threads.
    """
    network_alone = replace(file, ngram={})
    return CopiedShares(
        written=find_copied(_draw_samples(file), train),
        network=find_copied(_draw_samples(network_alone), train) if file.ngram else None,
        text=find_copied([ids[:MAX_COMPARED]], train),
    )


def _draw_samples(file: ModelFile) -> list[Ids]:
    vocab = file.vocab
    streams = Sampler(file, threads=torch.get_num_threads()).streams(COPYING_SAMPLES)
    return [vocab.encode_known(vocab.to_chars("".join(stream)))[0] for stream in streams]


def find_copied(texts: Iterable[Ids], source: Ids) -> Copied:
    """Count the characters of the texts in runs of at least COPIED_RUN characters that the source contains.

    A run is a stretch whose COPIED_RUN-grams all occur in the source, not necessarily in one place.
    They are compared by 64-bit hashes: for a million against a billion, the chance of one false match
    is 1 in 20,000.
    """
    texts = list(texts)
    hashes = [hash_ngrams(np.array(text), COPIED_RUN) for text in texts]
    wanted = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    found = find_hashes(source, COPIED_RUN, wanted)
    num_copied = longest = 0
    for text_hashes in hashes:
        is_found = np.concatenate([[False], found[np.searchsorted(wanted, text_hashes)], [False]])
        first, stop = np.flatnonzero(np.diff(is_found.astype(np.int8))).reshape(-1, 2).T
        lengths = stop - first + COPIED_RUN - 1
        changes = np.zeros(len(text_hashes) + COPIED_RUN, np.int32)  # runs may overlap, so count how many cover a place
        np.add.at(changes, first, 1)
        np.add.at(changes, stop + COPIED_RUN - 1, -1)
        num_copied += int((changes.cumsum() > 0).sum())
        longest = max(longest, int(lengths.max(initial=0)))
    return Copied(sum(map(len, texts)), num_copied, longest)
