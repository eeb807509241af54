"""A trained network is better than counting: the Kneser-Ney n-gram of reference.py is the yardstick."""

import math
import random
from pathlib import Path

import pytest

from charrnn.config import CorpusConfig, SourceConfig
from charrnn.corpus import load_corpus, read_text
from charrnn.metrics import Finished
from charrnn.plans import make_plan
from charrnn.runs import Run
from charrnn.training import train
from tests.reference import KneserNey

POEMS = str(Path(__file__).parent.parent / "corpora" / "poems.txt")


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_the_yardstick_is_a_distribution(order):
    """After any context, seen or not, probabilities are positive and sum to one."""
    rng = random.Random(order)
    text = "".join(rng.choice("abcde") for _ in range(300)) + "abcab" * 20
    ngram = KneserNey(text, order, vocab_size=6)
    for context in ("", "a", "ab", "eabc", "fff", "abcabc"):
        probabilities = [ngram.probability(context, char) for char in "abcdef"]
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)
        assert min(probabilities) > 0


def test_the_yardstick_by_hand():
    """Order 0 of "aab": a was seen twice, b once, in two continuation-free counts with discount 1/(1 + 2)."""
    ngram = KneserNey("aab", 0, vocab_size=2)
    discount = 1 / 3
    assert ngram.probability("", "a") == pytest.approx((2 - discount) / 3 + discount * 2 / 3 / 2)
    assert ngram.nats_per_char("ab", "x") == pytest.approx(
        -(math.log(ngram.probability("", "a")) + math.log(ngram.probability("", "b"))) / 2
    )


def test_a_network_trained_on_the_poems_beats_an_order_2_ngram(tmp_path, cache):
    """Two characters of context and perfect counts lose to a few hundred steps, on the same held-out tail."""
    config, text = CorpusConfig(), read_text(POEMS, cache)
    corpus = load_corpus([POEMS], config, SourceConfig(), cache)
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    plan = make_plan(run, corpus, config, {"steps": 250, "dropout": 0.2}, minutes=None, device="cpu", threads=2)
    finished = list(train(plan))[-1]
    assert isinstance(finished, Finished)
    counted = KneserNey(text[: corpus.num_train], 2, len(corpus.vocab))
    yardstick = counted.nats_per_char(text[corpus.num_train :], text[: corpus.num_train])
    assert finished.nats_per_char < yardstick - 0.05
