"""What a model copies: stretches of what it writes that stand word for word in what it was trained on.

A text of its own shares some with it too, so that figure is the measure of the other.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from charrnn.checkpoint import ModelFile
from charrnn.kernels.grams import find_hashes, gram_hashes
from charrnn.metrics import COPIED_RUN, Copied, CopiedShares
from charrnn.sampling import Sampler
from charrnn.vocab import Ids

TEMPERATURE = 0.8
NUM_SAMPLES, SAMPLE_LENGTH = 60, 1000
MOST_COMPARED = 200_000  # characters of the other text


def memorised(model: ModelFile, train: Ids, ids: Ids, *, threads: int) -> CopiedShares:
    """How much of what the model writes stands in the training text, and how much of another text, ids, does.

    The samples are sixty of 1,000 characters, the same each time.
    """
    alone = replace(model, ngram={})
    return CopiedShares(
        written=copied(_samples(model, threads), train),
        network=copied(_samples(alone, threads), train) if model.ngram else None,
        text=copied([ids[:MOST_COMPARED]], train),
    )


def _samples(model: ModelFile, threads: int) -> list[Ids]:
    drawn = Sampler(model, threads=threads).streams(
        num_samples=NUM_SAMPLES, length=SAMPLE_LENGTH, temperature=TEMPERATURE, seed=0
    )
    return [model.vocab.encode_known(model.vocab.spell("".join(stream)))[0] for stream in drawn]


def copied(texts: Iterable[Ids], source: Ids) -> Copied:
    """How many characters of the texts are in runs of at least COPIED_RUN that the source has too, and the longest.

    A run is a stretch whose every COPIED_RUN neighbouring characters are found, though not always in one place.
    Stretches are compared by 64-bit hashes: for a million against a billion, one in 20,000 times
    a wrong one is found.
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
