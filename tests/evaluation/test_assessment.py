"""Baselines by hand and against naive models, and what an assessment holds."""

import itertools
import lzma
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charrnn.config import CorpusConfig, ModelConfig, SourceConfig
from charrnn.data.corpus import load_corpus
from charrnn.data.vocab import Vocab
from charrnn.evaluation.assessment import MIN_PACKED, assess, compute_baselines, xz_baseline, xz_size
from charrnn.evaluation.copying import COPYING_SAMPLES
from charrnn.evaluation.scores import Copied
from charrnn.evaluation.scoring import evaluate
from charrnn.evaluation.texts import EvalText
from charrnn.events import Finished
from charrnn.model.ngrams import count_ngrams, nats_by_order
from charrnn.runs.folder import Run
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars
from charrnn.training.loop import train
from tests import reference
from tests.conftest import make_corpus, make_model_file, make_new_plan, make_reader, make_text

POEMS = str(Path(__file__).parents[2] / "corpora" / "poems.txt")


def baselines_by_name(train, text, vocab, **options):
    """The baselines of a text after a training text."""
    ids = vocab.encode(train), vocab.encode(text)
    return {found.name: found for found in compute_baselines(*ids, context=ids[0], vocab=vocab, **options)}


def test_uniform_and_character_frequencies_by_hand():
    """Four equal characters take two bits; aab has two a, and with one more of each character 3 of 7."""
    found = baselines_by_name("aab", "ac", Vocab("abcd"))
    assert found["uniform"].bits_per_char == pytest.approx(2.0)
    expected = -(math.log2(3 / 7) + math.log2(1 / 7)) / 2
    assert found["character frequencies"].bits_per_char == pytest.approx(expected)


def test_the_best_order_is_named():
    """On a text of period three it is the order with the least nats under naive n-grams."""
    train, text = "abcabcabcabcabcacb" * 3, "abcabcabc"
    vocab = Vocab.from_text(train)
    nats = {}
    for order in range(1, 13):
        twin = reference.KneserNey(vocab.encode(train).tolist(), order, 3)
        full = vocab.encode(train + text).tolist()
        each = [-math.log(twin.probability(full[:i], full[i])) for i in range(len(train), len(full))]
        nats[order] = sum(each) / len(each)
    best = min(nats, key=lambda order: nats[order])
    found = baselines_by_name(train, text, vocab)
    assert found[f"{best}-gram"].nats_per_char == pytest.approx(nats[best], rel=1e-9)


def test_xz_measures_what_the_text_adds():
    """It is the difference of two sizes of the format's raw stream, which any decoder reads."""
    vocab = Vocab.from_text("the cat sat on the mat\n")
    train, text = "the cat sat on the mat\n" * 20, "the mat sat on the cat\n" * 200
    (found,) = xz_baseline(vocab.encode(train), vocab.encode(text), vocab)
    bits = (xz_size((train + text).encode()) - xz_size(train.encode())) * 8
    assert found.bits_per_char == pytest.approx(bits / len(text))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 16}]
    packed = lzma.compress((train + text).encode(), lzma.FORMAT_RAW, filters=filters)
    assert len(packed) == xz_size((train + text).encode())
    assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=filters).decode() == train + text


def test_the_window_of_xz_covers_all_data(monkeypatch):
    """So a copy of the very beginning is found at any distance."""
    windows, real = [], lzma.compress

    def compress(data, kind, filters):
        windows.append(filters[0]["dict_size"])
        return real(data, kind, filters=filters)

    monkeypatch.setattr(lzma, "compress", compress)
    noise = np.random.default_rng(0).integers(0, 64, 100_000).astype(np.uint8).tobytes()
    assert xz_size(noise + noise[:20_000]) - xz_size(noise) < 0.05 * 20_000
    assert xz_size(b"") < 100
    assert windows == [120_000, 100_000, 4096]


@pytest.mark.slow
def test_xz_reaches_beyond_its_usual_window():
    """What occurs once, at the very beginning of more than 8 MB, costs hardly anything."""
    noise = np.random.default_rng(0).integers(0, 256, 9_000_000).astype(np.uint8)
    vocab = Vocab.from_text("".join(map(chr, range(256))))
    assert xz_baseline(noise, noise[:20_000], vocab)[0].bits_per_char < 0.3


def test_xz_is_left_out_for_a_short_text_and_never_below_zero(monkeypatch):
    """It counts whole bytes, and a longer text may even pack into fewer."""
    vocab = Vocab.from_text("ab")
    ids = vocab.encode("ab" * (MIN_PACKED // 2))
    assert xz_baseline(ids, ids[1:], vocab) == []
    assert xz_baseline(ids, ids, vocab)[0].bits_per_char >= 0
    monkeypatch.setattr("charrnn.evaluation.assessment.xz_size", lambda data: -len(data))
    assert xz_baseline(ids, ids, vocab)[0].bits_per_char == 0


def test_xz_gets_the_bytes_of_a_file(monkeypatch):
    """Also for texts of bytes and documents; a rare character is not scored."""
    monkeypatch.setattr("charrnn.evaluation.assessment.MIN_PACKED", 1)
    vocab = Vocab.from_text(bytes_as_chars("né\n") + END)
    ids = vocab.encode(bytes_as_chars("né\n") + END)
    added = xz_size("né\n\0né\n\0".encode()) - xz_size("né\n\0".encode())
    assert xz_baseline(ids, ids, vocab)[0].bits_per_char == pytest.approx(added * 8 / 5)
    rare = Vocab.from_text("ab" + UNKNOWN)
    ids = rare.encode("aabbaab?abab")
    found = {one.name: one for one in compute_baselines(ids, ids, context=ids[:1], vocab=rare)}
    # with one more of each: 7 a, 6 b and 2 rare ones of 15
    expected = -(6 * math.log(7 / 15) + 5 * math.log(6 / 15)) / 11
    assert found["character frequencies"].nats_per_char == pytest.approx(expected)
    added = xz_size("aabbaab\ufffdabab".encode() * 2) - xz_size("aabbaab\ufffdabab".encode())
    assert found["xz"].bits_per_char == pytest.approx(added * 8 / 12)


def test_only_the_end_of_a_long_training_text_is_read(monkeypatch):
    """The baselines are the same as for the end alone, and their notes say so."""
    monkeypatch.setattr("charrnn.evaluation.assessment.MIN_PACKED", 1)
    vocab = Vocab("abc")
    cut = baselines_by_name("c" * 50 + "ab" * 25, "abab", vocab, max_read=50)
    short = baselines_by_name("ab" * 25, "abab", vocab)
    assert {name: one.nats_per_char for name, one in cut.items()} == pytest.approx(
        {name: one.nats_per_char for name, one in short.items()}
    )
    assert all(
        "last 50 characters" in one.note for name, one in cut.items() if name.startswith(("character", "1", "2"))
    )
    assert cut["xz"].note == "after the last 50 bytes of the training text"
    assert not any("last" in one.note for one in short.values())


def test_a_very_long_text_gets_the_quick_baselines_only():
    """The others would take minutes."""
    assert set(baselines_by_name("ab" * 30, "ab" * 30, Vocab("ab"), max_read=20)) == {
        "uniform",
        "character frequencies",
    }


def test_the_best_baseline_comes_first(monkeypatch):
    """They are sorted by nats."""
    monkeypatch.setattr("charrnn.evaluation.assessment.MIN_PACKED", 1)
    vocab = Vocab.from_text("abcd")
    ids = vocab.encode("aabacadaab" * 9)
    nats = [one.nats_per_char for one in compute_baselines(ids, ids[:30], context=ids, vocab=vocab)]
    assert nats == sorted(nats)
    assert len(nats) == 4


def gain_over_a_trigram(corpus, tmp_path, **settings) -> float:
    """Nats per character of the held-out text that a trained network saves over trigrams of the training text."""
    run = Run("made", root=tmp_path)
    run.folder.mkdir()
    finished = list(train(make_new_plan(run, corpus, mix=False, **settings)))[-1]
    assert isinstance(finished, Finished)
    orders = nats_by_order(
        corpus.train_ids, corpus.valid_ids, context=corpus.valid_context, vocab_size=len(corpus.vocab)
    )
    trigram = next(itertools.islice(orders, 2, None))
    return float(trigram.mean()) - finished.nats_per_char


def test_a_small_network_beats_a_trigram_on_a_made_up_text(tmp_path):
    """The made-up words need more context than two characters."""
    corpus = make_corpus(make_text(8000))
    settings = {"hidden_size": 48, "num_layers": 1, "embedding_dim": 16, "batch_size": 16, "seq_len": 32}
    assert gain_over_a_trigram(corpus, tmp_path, steps=250, dropout=0.0, learning_rate=2e-2, **settings) > 0.05


@pytest.mark.slow
def test_a_network_beats_a_trigram_on_the_poems(tmp_path, cache):
    """A few hundred steps are enough, on the same held-out text."""
    corpus = load_corpus([POEMS], CorpusConfig(), SourceConfig(), cache)
    assert gain_over_a_trigram(corpus, tmp_path, steps=250, dropout=0.2) > 0.05


@pytest.fixture
def few_samples(monkeypatch):
    """Copying is measured on three samples."""
    few = replace(COPYING_SAMPLES, num_samples=3, length=200)
    monkeypatch.setattr("charrnn.evaluation.copying.COPYING_SAMPLES", few)


def test_an_assessment_holds_the_comparisons(few_samples):
    """Baselines, copying, and the score of a model that adapts if there is one."""
    chars = "abcdef"
    config = ModelConfig(cell="gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, chars=chars)
    train_ids = file.vocab.encode(chars * 50)
    file.ngram.update(count_ngrams(train_ids, 3, vocab_size=6), **{"ngram.weights": np.full((3, 2), 0.5)})
    network = make_reader(config, file.tensors)
    text = EvalText("a.txt", "a.txt", train_ids[:100], train_ids[-9:])
    score = evaluate(network, text.ids, context=text.context, mixture=file.mixture)
    whole = assess(score, file, text, train_ids, threads=2)
    assert whole.baselines == compute_baselines(train_ids, text.ids, context=text.context, vocab=file.vocab)
    assert whole.copied.text == Copied(100, 100, 100)
    assert whole.copied.network.num_chars == whole.copied.written.num_chars == 600
    assert whole.copied.network != whole.copied.written
    assert whole.adapted is None
    assert assess(score, file, text, train_ids, adapted=score, threads=2) == replace(whole, adapted=score)
