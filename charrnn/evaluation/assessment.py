"""What a score is worth: baselines that know the same training text, and how much the model copies from it.

Letters: N characters, V vocabulary.
"""

import lzma
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab
from charrnn.evaluation.adaptation import evaluate_adapting
from charrnn.evaluation.scores import COPIED_RUN, Assessment, Baseline, Copied, CopiedShares, Evaluation
from charrnn.evaluation.texts import EvalText
from charrnn.kernels.ngrams import find_hashes, gram_hashes
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import MAX_ORDER, nats_by_order
from charrnn.sampling.sampler import Sampler

MAX_READ = 32_000_000  # characters, and bytes, of the training text: xz takes half a minute for as many
_COUNTED_AT_ONCE = 1 << 20
COPYING_SAMPLES = SampleConfig(num_samples=60, length=1000, temperature=0.8, seed=0)
MAX_COMPARED = 200_000  # characters of a text that are compared with the training text


def assess(
    score: Evaluation,
    file: ModelFile,
    network: CharRNN,
    text: EvalText,
    train: Ids,
    *,
    with_baselines: bool,
    adapt_rate: float | None,
    threads: int,
) -> Assessment:
    """Compare a model's score on a text with everything that the training text allows.

    network: the file's. adapt_rate: the learning rate of dynamic evaluation; None leaves it out.
    """
    adapted = None
    if adapt_rate is not None:
        adapted = evaluate_adapting(
            network,
            text.ids,
            context=text.context,
            train=train,
            rare=file.vocab.id_of(UNKNOWN),
            rate=adapt_rate,
            mixture=file.mixture,
        )
    if not with_baselines:
        return Assessment(score, adapted=adapted)
    return Assessment(
        score,
        compute_baselines(train, text.ids, context=text.context, vocab=file.vocab),
        adapted,
        measure_copying(file, train, text.ids, threads=threads),
    )


def compute_baselines(
    train: Ids, ids: Ids, *, context: Ids, vocab: Vocab, max_read: int = MAX_READ
) -> tuple[Baseline, ...]:
    """Score ids (N,), which follow the context, by what simpler predictors learn from the training text; best first.

    max_read: characters that are read of the training text, from its end. A longer text to score gets
    the quick baselines only.
    """
    part = np.array(train[-max_read:])
    note = f"from the last {len(part):,} characters of the training text" if len(part) < len(train) else ""
    scored = ids != vocab.id_of(UNKNOWN)  # nothing says which rare character it was
    found = [
        Baseline("uniform", math.log(len(vocab)), f"{len(vocab):,} characters"),
        Baseline("character frequencies", _unigram(part, ids[scored], len(vocab)), note),
    ]
    if len(ids) <= max_read:
        with ThreadPoolExecutor(1) as other:
            packed = other.submit(compressed, train, ids, vocab, max_read)
            found.append(_best_order(part, ids, context, scored, len(vocab), note))
            found.append(packed.result())
    return tuple(sorted(found, key=lambda baseline: baseline.nats_per_char))


def _unigram(train: Ids, ids: Ids, vocab_size: int) -> float:
    """Nats per character by add-one smoothed character frequencies."""
    counts = _counts(train, vocab_size) + 1
    return float(_counts(ids, vocab_size) @ -np.log(counts / counts.sum())) / len(ids)


def _counts(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs, (V,), without a wide copy of all ids."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(ids), _COUNTED_AT_ONCE):
        counts += np.bincount(ids[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
    return counts


def _best_order(train: Ids, ids: Ids, context: Ids, scored: NDArray[np.bool_], vocab_size: int, note: str) -> Baseline:
    """The n-gram model of the order that predicts the text best."""
    by_order = nats_by_order(train, ids, context=context, vocab_size=vocab_size)
    nats, order = min((float(each[scored].mean()), order) for order, each in enumerate(by_order, start=1))
    method = f"modified Kneser-Ney, best order up to {MAX_ORDER}"
    return Baseline(f"{order}-gram", nats, f"{method}; {note}" if note else method)


def compressed(train: Ids, ids: Ids, vocab: Vocab, max_read: int = MAX_READ) -> Baseline:
    """The bytes that xz adds for the text after the training text, per character of the text.

    max_read: characters, and bytes, of the training text.
    """
    part = train[-max_read:]
    before, text = _to_bytes(part, vocab), _to_bytes(ids, vocab)
    known = before[-max_read:]
    size = xz_size(known + text) - xz_size(known)
    is_whole = len(part) == len(train) and len(known) == len(before)
    note = f"after {'' if is_whole else f'the last {len(known):,} bytes of '}the training text"
    return Baseline("xz", size * 8 / len(ids) * math.log(2), note)


def _to_bytes(ids: Ids, vocab: Vocab) -> bytes:
    """The text as a file would hold it, with a NUL at the end of each document."""
    text = vocab.decode(ids).replace(END, "\0").replace(UNKNOWN, "\ufffd")
    return text.encode("utf-8", "surrogateescape")


def xz_size(data: bytes) -> int:
    """Bytes that xz compresses data to, with a window that covers all of it."""
    smallest = 1 << 12
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(smallest, len(data))}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))


def measure_copying(model: ModelFile, train: Ids, ids: Ids, *, threads: int) -> CopiedShares:
    """How much of what the model writes is copied from the training text, and how much of another text, ids, is.

    Any text shares some runs with the training text, so the second figure puts the first in perspective.
    The samples are the same each time.
    """
    network_alone = replace(model, ngram={})
    return CopiedShares(
        written=find_copied(_samples(model, threads), train),
        network=find_copied(_samples(network_alone, threads), train) if model.ngram else None,
        text=find_copied([ids[:MAX_COMPARED]], train),
    )


def _samples(model: ModelFile, threads: int) -> list[Ids]:
    drawn = Sampler(model, threads=threads).streams(COPYING_SAMPLES)
    return [model.vocab.encode_known(model.vocab.spell("".join(stream)))[0] for stream in drawn]


def find_copied(texts: Iterable[Ids], source: Ids) -> Copied:
    """Count the characters of the texts that lie in runs of at least COPIED_RUN also found in the source.

    A run is a stretch all of whose COPIED_RUN-grams occur in the source, though not always in one place.
    They are compared by 64-bit hashes: for a million against a billion, the chance of one false match
    is 1 in 20,000.
    """
    texts = list(texts)
    hashes = [gram_hashes(np.array(text), COPIED_RUN) for text in texts]
    wanted = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    found = find_hashes(source, COPIED_RUN, wanted)
    num_copied = longest = 0
    for each in hashes:
        marks = np.concatenate([[False], found[np.searchsorted(wanted, each)], [False]])
        first, stop = np.flatnonzero(np.diff(marks.astype(np.int8))).reshape(-1, 2).T
        lengths = stop - first + COPIED_RUN - 1
        covered = np.zeros(len(each) + COPIED_RUN, np.int32)  # runs may overlap
        np.add.at(covered, first, 1)
        np.add.at(covered, stop + COPIED_RUN - 1, -1)
        num_copied += int((covered.cumsum() > 0).sum())
        longest = max(longest, int(lengths.max(initial=0)))
    return Copied(sum(map(len, texts)), num_copied, longest)
