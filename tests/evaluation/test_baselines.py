"""Yardsticks: tiny cases by hand, and what they know."""

import itertools
import lzma
import math
from pathlib import Path

import numpy as np
import pytest

from charrnn.config import CorpusConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.vocab import END, UNKNOWN, Vocab, bytes_as_chars
from charrnn.evaluation.assessment import compressed, xz_size, yardsticks
from charrnn.events import Finished
from charrnn.model.ngrams import nats_by_order
from charrnn.training.folder import Run
from charrnn.training.loop import train
from charrnn.training.plan import make_plan
from tests import reference

POEMS = str(Path(__file__).parents[2] / "corpora" / "poems.txt")


def by_name(train, text, vocab, **options):
    """The yardsticks of a text after another."""
    ids = vocab.encode(train), vocab.encode(text)
    return {found.name: found for found in yardsticks(*ids, context=ids[0], vocab=vocab, **options)}


def test_uniform_and_order_0_by_hand():
    """Four characters alike cost two bits; aab has a twice and, with one more of each, 3 of 7."""
    found = by_name("aab", "ac", Vocab("abcd"))
    assert found["all characters alike"].bits_per_char == pytest.approx(2.0)
    expected = -(math.log2(3 / 7) + math.log2(1 / 7)) / 2
    assert found["how often each occurs"].bits_per_char == pytest.approx(expected)


def test_the_best_order_is_named():
    """A text of period three: the order that costs least, as the dictionaries have it."""
    train, text = "abcabcabcabcabcacb" * 3, "abcabcabc"
    vocab = Vocab.from_text(train)
    costs = {}
    for order in range(1, 13):
        twin = reference.KneserNey(vocab.encode(train).tolist(), order, 3)
        full = vocab.encode(train + text).tolist()
        nats = [-math.log(twin.probability(full[:i], full[i])) for i in range(len(train), len(full))]
        costs[order] = sum(nats) / len(nats)
    best = min(costs, key=lambda order: costs[order])
    found = by_name(train, text, vocab)
    assert found[f"{best}-gram"].nats_per_char == pytest.approx(costs[best], rel=1e-9)


def test_xz_is_what_the_text_adds():
    """The difference of two sizes of the format's raw stream, which any decoder reads."""
    vocab = Vocab.from_text("the cat sat on the mat\n")
    train, text = "the cat sat on the mat\n" * 20, "the mat sat on the cat\n"
    found = compressed(vocab.encode(train), vocab.encode(text), vocab)
    bits = (xz_size((train + text).encode()) - xz_size(train.encode())) * 8
    assert found.bits_per_char == pytest.approx(bits / len(text))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 16}]
    packed = lzma.compress((train + text).encode(), lzma.FORMAT_RAW, filters=filters)
    assert len(packed) == xz_size((train + text).encode())
    assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=filters).decode() == train + text


def test_xz_refers_to_all_of_the_training_text():
    """What was said once, at the very beginning, costs hardly anything, also beyond the usual window of 8 MB."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, 9_000_000).astype(np.uint8)
    vocab = Vocab.from_text("".join(map(chr, range(256))))
    ids = np.concatenate([noise])
    found = compressed(ids, ids[:20_000], vocab)
    assert found.bits_per_char < 0.3


def test_bytes_documents_and_rare_characters_are_spelt():
    """As a file would have them, for the compressor."""
    vocab = Vocab.from_text(bytes_as_chars("né\n") + END)
    ids = vocab.encode(bytes_as_chars("né\n") + END)
    assert compressed(ids, ids, vocab).nats_per_char > 0
    rare = Vocab.from_text("ab" + UNKNOWN)
    ids = rare.encode("aabbaab?abab")
    found = yardsticks(ids, ids, context=ids[:1], vocab=rare)
    counts = {"a": 6 + 1, "b": 5 + 1, UNKNOWN: 1 + 1}
    expected = -(6 * math.log(7 / 15) + 5 * math.log(6 / 15)) / 11  # the rare one isn't scored
    assert sum(counts.values()) == 15
    assert next(one for one in found if one.name.startswith("how often")).nats_per_char == pytest.approx(expected)


def test_a_long_training_text_is_read_from_its_end_and_that_is_said():
    """As if the rest weren't there."""
    vocab = Vocab("abc")
    cut = by_name("c" * 50 + "ab" * 25, "abab", vocab, most_read=50)
    short = by_name("ab" * 25, "abab", vocab)
    assert {name: one.nats_per_char for name, one in cut.items()} == pytest.approx(
        {name: one.nats_per_char for name, one in short.items()}
    )
    assert all("last 50 characters" in one.note for name, one in cut.items() if name[0].isdigit() or name[0] == "h")
    assert cut["xz"].note == "after the last 50 bytes of the training text"
    assert not any("last" in one.note for one in short.values())


def test_a_very_long_text_has_the_quick_yardsticks_only():
    """Rather than minutes of counting."""
    assert set(by_name("ab" * 30, "ab" * 30, Vocab("ab"), most_read=20)) == {
        "all characters alike",
        "how often each occurs",
    }


def test_the_best_comes_first():
    """By what they spend."""
    vocab = Vocab.from_text("abcd")
    ids = vocab.encode("aabacadaab" * 9)
    nats = [one.nats_per_char for one in yardsticks(ids, ids[:30], context=ids, vocab=vocab)]
    assert nats == sorted(nats)
    assert len(nats) == 4


def test_a_network_trained_on_the_poems_beats_a_trigram(tmp_path, cache):
    """Two characters of context and perfect counts lose to a few hundred steps, on the same held-out tail."""
    config = CorpusConfig()
    corpus = load_corpus([POEMS], config, SourceConfig(), cache)
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    plan = make_plan(run, corpus, config, {"steps": 250, "dropout": 0.2}, minutes=None, device="cpu", threads=2)
    finished = list(train(plan))[-1]
    assert isinstance(finished, Finished)
    orders = nats_by_order(
        corpus.train_ids, corpus.valid_ids, context=corpus.valid_context, vocab_size=len(corpus.vocab)
    )
    trigram = next(itertools.islice(orders, 2, None))
    assert finished.nats_per_char < trigram.mean() - 0.05
