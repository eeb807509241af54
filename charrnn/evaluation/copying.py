"""What a model's samples, and another text, have in common with the training text: long runs, whole documents.

Letters: N characters, D documents.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from charrnn.config import COPIED_RUN, SampleConfig
from charrnn.data.documents import hash_documents, without_labels
from charrnn.data.vocab import Ids
from charrnn.evaluation.scores import LONG_RUN, Copied, CopiedShares
from charrnn.kernels.ngrams import find_hashes, hash_ngrams
from charrnn.model.file import ModelFile
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END

COPYING_SAMPLES = SampleConfig(num_samples=60, length=1000, temperature=0.8, seed=0)
MAX_SAMPLES = 1_000  # documents
MAX_COMPARED = 200_000  # characters of the scored text that are compared with the training text


def measure_copying(file: ModelFile, train: Ids, ids: Ids, *, threads: int) -> CopiedShares:
    """Measure how much of a model's samples, and how much of another text, ids, is copied from the training text.

    Any text shares some runs with the training text, so the other text puts the samples in perspective.
    The samples are the same each time, whatever the number of threads that draw them.
    """
    end, config = file.vocab.id_of(END), COPYING_SAMPLES
    train, ids = (without_labels(part, end, file.config.label_id) for part in (train, ids))
    if end is not None:  # as many characters of shorter documents
        mean_length = max(1, len(train) // max(1, int(np.count_nonzero(train == end))))
        num_samples = min(MAX_SAMPLES, config.num_samples * config.length // mean_length)
        config = replace(config, num_samples=max(config.num_samples, num_samples))
    network_alone = replace(file, ngram={})
    return CopiedShares(
        written=find_copied(_draw_samples(file, config, threads), train, end),
        network=find_copied(_draw_samples(network_alone, config, threads), train, end) if file.ngram else None,
        text=find_copied([ids[:MAX_COMPARED]], train, end),
    )


def _draw_samples(file: ModelFile, config: SampleConfig, threads: int) -> list[Ids]:
    """Draw samples as ids; a document is followed by its END unless it reached the length."""
    vocab = file.vocab
    streams = Sampler(file, threads=threads).streams(config)
    samples = [vocab.encode_known(vocab.to_chars("".join(stream)))[0] for stream in streams]
    end = vocab.id_of(END)
    if end is None:
        return samples
    return [np.append(one, one.dtype.type(end)) if len(one) < config.length else one for one in samples]


def find_copied(texts: Iterable[Ids], source: Ids, end: int | None = None) -> Copied:
    """Count the characters of the texts in runs of at least COPIED_RUN characters that the source contains.

    A run is a stretch whose COPIED_RUN-grams all occur in the source, not necessarily in one place.
    They are compared by 64-bit hashes: for a million against a billion, the chance of one false match
    is 1 in 20,000. end: the id that ends a document, if whole documents are counted as well.
    """
    texts = list(texts)
    hashes = [hash_ngrams(np.array(text), COPIED_RUN) for text in texts]
    wanted = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    found = find_hashes(source, COPIED_RUN, wanted)
    num_copied = num_long = longest = 0
    for text_hashes in hashes:
        is_found = np.concatenate([[False], found[np.searchsorted(wanted, text_hashes)], [False]])
        first, stop = np.flatnonzero(np.diff(is_found.astype(np.int8))).reshape(-1, 2).T
        lengths = stop - first + COPIED_RUN - 1
        num_copied += _count_covered(first, lengths)
        num_long += _count_covered(first[lengths >= LONG_RUN], lengths[lengths >= LONG_RUN])
        longest = max(longest, int(lengths.max(initial=0)))
    num_chars = sum(map(len, texts))
    if end is None:
        return Copied(num_chars, num_copied, longest, num_long)
    documents = np.concatenate([hash_documents(text, end) for text in texts])
    num_known = int(np.isin(documents, hash_documents(source, end)).sum())
    return Copied(num_chars, num_copied, longest, num_long, len(documents), num_known)


def _count_covered(first: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """Count the characters in runs, which may overlap: first is where each begins, in order."""
    stops = np.minimum(first + lengths, np.append(first[1:], np.iinfo(np.int64).max))
    return int((stops - first).sum())
