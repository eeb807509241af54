"""Where the bits go: classes that partition the text and sum to its score."""

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scoring import new_predictions
from charrnn.evaluation.summary import select, summarise
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.classes import ClassTotals, rare_characters
from charrnn.inspection.sentences import describe_bits
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars
from tests.conftest import make_model_file, make_reader, make_text, predict_text


def made_predictions(ids, *, num_experts=0, seed=0):
    """Predictions at ids with random nats."""
    rng = np.random.default_rng(seed)
    found = new_predictions(ids.astype(np.int64), 0, num_experts)
    found.nats[:] = rng.uniform(0.1, 5, len(ids))
    found.experts[:] = rng.uniform(0.1, 5, found.experts.shape)
    return found


def shares_of(text, *, before=" ", num_experts=0, size=None):
    """The classes of a text, added in parts of a size, and its predictions."""
    vocab = Vocab.from_text(before + text)
    ids = vocab.encode(text)
    found = made_predictions(ids, num_experts=num_experts)
    totals = ClassTotals(vocab, vocab.encode(before))
    size = size or len(ids)
    for start in range(0, len(ids), size):
        totals.add(select(found, slice(start, start + size)))
    return totals.shares(), found


def counts_of(text, **options):
    """The number of characters by class."""
    shares, _ = shares_of(text, **options)
    return {one.name: one.num_chars for one in shares}


def test_each_character_has_one_class():
    """Letters by their place in the word; the others by their kind."""
    assert counts_of('He said: "no 42"\n' * 3) == {
        "first letters": 6,
        "later letters": 15,
        "capitals": 3,
        "digits": 6,
        "spaces and newlines": 12,
        "punctuation": 9,
    }
    assert counts_of("ab", before="c") == {"later letters": 2}
    assert counts_of(f"ab{END}c{END}") == {
        "first letters": 2,
        "later letters": 1,
        "ends of documents": 2,
    }
    assert counts_of(bytes_as_chars("é a")) == {
        "first letters": 1,
        "spaces and newlines": 1,
        "bytes that are not ASCII": 2,
    }


@pytest.mark.parametrize("num_experts", [0, 2])
@pytest.mark.parametrize("size", [None, 1, 7, 1000])
def test_the_classes_sum_to_the_total(num_experts, size):
    """Also of network and n-grams, however the text is cut."""
    shares, found = shares_of(make_text(2000), num_experts=num_experts, size=size)
    assert sum(one.num_chars for one in shares) == 2000
    assert sum(one.bits for one in shares) == pytest.approx(found.nats.sum() / np.log(2), rel=1e-12)
    if num_experts:
        totals = found.experts.sum(0) / np.log(2)
        assert sum(one.network for one in shares) == pytest.approx(totals[0], rel=1e-12)
        assert sum(one.ngram for one in shares) == pytest.approx(totals[1], rel=1e-12)
    else:
        assert {one.network for one in shares} == {one.ngram for one in shares} == {None}


def test_they_are_a_view_of_the_pass_that_scores():
    """Of the same predictions, without the rare character, which is not scored."""
    text = make_text(3000)[:-1] + UNKNOWN
    vocab = Vocab.from_text(text)
    config = ModelConfig(cell="gru", vocab_size=len(vocab), embedding_dim=4, hidden_size=8, num_layers=1)
    file = make_model_file(config, chars=vocab.chars)
    ids = vocab.encode(text)
    scored = EvalText("a", "a", ids[1:], ids[:1])
    totals = ClassTotals(vocab, scored.context)
    part = predict_text(make_reader(config, file.tensors), scored.ids, context=scored.context)
    found = summarise(totals.watch([part]), scored, vocab)
    assert found.score.num_chars == sum(one.num_chars for one in totals.shares()) == 2998
    total = found.score.bits_per_char * found.score.num_chars
    assert sum(one.bits for one in totals.shares()) == pytest.approx(total, abs=1e-9)


def test_rare_characters_have_one_percent_together():
    """The least frequent ones, as many as fit."""
    assert rare_characters(np.array([900.0, 4.0, 93.0, 3.0, 0.0])).tolist() == [4, 3, 1]
    shares, _ = shares_of("a" * 995 + "bcdé" + "!")
    assert {one.name: one.num_chars for one in shares}["rare characters"] == 5


def test_the_most_expensive_class_is_named():
    """With its share of the bits and of the text."""
    shares, _ = shares_of("ab cd")
    most = max(shares, key=lambda one: one.bits)
    assert describe_bits(shares).startswith(f"Most bits go to {most.name}: ")
