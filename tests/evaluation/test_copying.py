"""Copied text against plain search, and whole documents against sets."""

import numpy as np
import pytest

from charrnn.config import COPIED_RUN, ModelConfig
from charrnn.evaluation import copying
from charrnn.evaluation.copying import MAX_SAMPLES, find_copied, measure_copying
from charrnn.evaluation.scores import LONG_RUN, Copied
from charrnn.kernels.ngrams import find_hashes, hash_ngrams
from charrnn.text.characters import END
from tests.conftest import make_model_file


def copied_by_search(texts, source):
    """Mark every character of a stretch of COPIED_RUN that is a substring of the source."""
    num_copied = num_long = longest = 0
    for text in texts:
        marks, long_marks, run = set(), set(), 0
        for start in range(len(text) - COPIED_RUN + 1):
            if text[start : start + COPIED_RUN] in source:
                marks.update(range(start, start + COPIED_RUN))
                run += 1
                length = run + COPIED_RUN - 1
                longest = max(longest, length)
                if length >= LONG_RUN:
                    long_marks.update(range(start + COPIED_RUN - length, start + COPIED_RUN))
            else:
                run = 0
        num_copied += len(marks)
        num_long += len(long_marks)
    return Copied(sum(map(len, texts)), num_copied, longest, num_long)


def as_ids(text):
    """A string of characters below 256 as ids."""
    return np.frombuffer(text.encode("latin-1"), np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_copied_characters_equal_those_of_a_plain_search(seed):
    """Stretches of the source among other text: some are adjacent, some are too short to count."""
    generator = np.random.default_rng(seed)
    source = "".join(map(chr, generator.integers(97, 100, 400)))
    texts = []
    for _ in range(3):
        parts = []
        for _ in range(6):
            start, size = int(generator.integers(0, 300)), int(generator.integers(20, 60))
            parts += [source[start : start + size], "x" * int(generator.integers(0, 3))]
        texts.append("".join(parts))
    texts += ["", "x", source[:29], source[7:37], source, source[:350] + "x" + source[20:330]]
    expected = copied_by_search(texts, source)
    assert expected.num_copied > expected.num_long > 400 + 350
    assert find_copied(map(as_ids, texts), as_ids(source)) == expected


def test_texts_shorter_than_a_run_copy_nothing():
    """On either side."""
    long, short = as_ids("a" * 40), as_ids("a" * 29)
    assert find_copied([short], long) == Copied(29, 0, 0)
    assert find_copied([long], short) == Copied(40, 0, 0)
    assert find_copied([long], long) == Copied(40, 40, 40)


def test_hashes_are_polynomials():
    """A rolled hash equals that of the stretch alone; leading zeros count."""
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


def test_copying_is_measured_on_sixty_samples():
    """They are the same each time; the scored text is measured too."""
    chars = "abcdefghi"
    config = ModelConfig(cell="gru", vocab_size=9, embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, chars=chars)
    train_ids = file.vocab.encode(chars * 50)
    written, network, text = measure_copying(file, train_ids, train_ids[:100], threads=2)
    assert network is None
    assert written.num_chars == 60_000
    assert text == Copied(100, 100, 100)
    assert (written, None, text) == measure_copying(file, train_ids, train_ids[:100], threads=2)


def test_whole_documents_are_compared():
    """An incomplete last one doesn't count."""
    end = 9
    found = find_copied([np.array([0, 1, end, 2, 2, end, 1], np.uint8)], np.array([2, 2, end, 0, end], np.uint8), end)
    assert (found.num_documents, found.num_known, found.known_share) == (2, 1, 0.5)


def test_of_short_documents_more_are_drawn(monkeypatch):
    """As many characters as of a running text, but at most a thousand documents, which are compared whole."""
    monkeypatch.setattr(copying, "MAX_SAMPLES", 50)
    chars = "ab" + END
    config = ModelConfig(cell="gru", vocab_size=3, embedding_dim=4, hidden_size=8, num_layers=1, reset_id=2)
    file = make_model_file(config, chars=chars)
    train_ids = file.vocab.encode(f"a{END}b{END}" * 50)
    written, _, text = measure_copying(file, train_ids, train_ids[:100], threads=2)
    assert written.num_documents == 60
    assert 0 < written.num_known < 60
    assert (text.num_documents, text.num_known) == (50, 50)
    assert MAX_SAMPLES == 1000
