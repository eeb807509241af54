"""What is copied: against plain search, and what a model writes."""

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.evaluation.assessment import copied, measure_copying
from charrnn.evaluation.scores import COPIED_RUN, Copied
from charrnn.kernels.ngrams import find_hashes, hash_ngrams
from tests.conftest import make_model_file


def naive(texts, source):
    """Mark every character of a stretch of COPIED_RUN that the source has, by looking for it."""
    num_copied = longest = 0
    for text in texts:
        marks, run = set(), 0
        for start in range(len(text) - COPIED_RUN + 1):
            if text[start : start + COPIED_RUN] in source:
                marks.update(range(start, start + COPIED_RUN))
                run += 1
                longest = max(longest, run + COPIED_RUN - 1)
            else:
                run = 0
        num_copied += len(marks)
    return Copied(sum(map(len, texts)), num_copied, longest)


def as_ids(text):
    """A string of characters below 256 as ids."""
    return np.frombuffer(text.encode("latin-1"), np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_copied_characters_are_what_a_plain_search_finds(seed):
    """Stretches of a text among others, some next to each other, some too short to count."""
    generator = np.random.default_rng(seed)
    source = "".join(map(chr, generator.integers(97, 100, 400)))
    texts = []
    for _ in range(3):
        parts = []
        for _ in range(6):
            start, size = int(generator.integers(0, 300)), int(generator.integers(20, 60))
            parts += [source[start : start + size], "x" * int(generator.integers(0, 3))]
        texts.append("".join(parts))
    texts += ["", "x", source[:29], source[7:37], source]
    expected = naive(texts, source)
    assert expected.num_copied > 100
    assert copied(map(as_ids, texts), as_ids(source)) == expected


def test_nothing_is_found_in_what_is_too_short():
    """Neither in nor for a text of fewer than COPIED_RUN characters."""
    long, short = as_ids("a" * 40), as_ids("a" * 29)
    assert copied([short], long) == Copied(29, 0, 0)
    assert copied([long], short) == Copied(40, 0, 0)
    assert copied([long], long) == Copied(40, 40, 40)


def test_hashes_are_polynomials():
    """Rolled along, they are what each stretch gives alone; leading zeros count."""
    ids = np.random.default_rng(0).integers(0, 3, 100).astype(np.uint16)
    rolled = hash_ngrams(ids, 5)
    assert len(rolled) == 96
    for place in range(96):
        assert rolled[place] == hash_ngrams(ids[place : place + 5].copy(), 5)[0]
    different = {bytes(ids[place : place + 5].tobytes()) for place in range(96)}
    assert len(set(rolled.tolist())) == len(different)
    wanted = np.unique(rolled)
    assert find_hashes(ids, 5, wanted).all()
    assert not find_hashes(ids[:4], 5, wanted).any()


def test_what_a_model_writes_is_counted():
    """Sixty samples, the same each time; beside the text itself."""
    chars = "abcdefghi"
    config = ModelConfig(cell="gru", vocab_size=9, embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, chars=chars)
    train = file.vocab.encode(chars * 50)
    written, network, text = measure_copying(file, train, train[:100], threads=1)
    assert network is None
    assert written.num_chars == 60_000
    assert text == Copied(100, 100, 100)
    assert (written, None, text) == measure_copying(file, train, train[:100], threads=1)
