"""Labels: every figure against sums written from the definitions, one document at a time."""

import dataclasses
import math

import numpy as np
import pytest

from charrnn.data.vocab import Vocab
from charrnn.evaluation import labels as module
from charrnn.evaluation.labels import LabelledText, LabelScorer
from charrnn.evaluation.texts import EvalText
from charrnn.model.file import ModelFile
from charrnn.text.characters import END, LABEL_END, UNKNOWN
from tests.conftest import make_reader
from tests.labelled import LABELS, make_file, naive_nats

DOCUMENTS = [("ab", "acb"), ("b", "bb"), ("c", "a"), ("ab", "cabca"), ("zz", "abc"), ("zz", "b" + UNKNOWN), ("b", "")]


def make_text(file: ModelFile) -> LabelledText:
    """The documents; two have a label that the model does not know."""
    parts = [label + LABEL_END + text + END for label, text in DOCUMENTS]
    return split("".join(parts), file)


def split(text: str, file: ModelFile) -> LabelledText:
    """A text of documents, of which characters may be unknown."""
    ids, unknown_chars = file.vocab.encode_around(text)
    return LabelledText.from_text(EvalText("a", "a", ids, ids[:1], unknown_chars), file)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("block", [1, 60, 1 << 19])
def test_every_figure_is_that_of_the_definition(monkeypatch, mixed, block):
    """Priors, nats of each text with each label, the sum over labels, the posterior, the classifier."""
    monkeypatch.setattr(module, "_BLOCK", block)
    file = make_file(mixed=mixed)
    network = make_reader(file.config, file.tensors)
    found = LabelScorer(network, file).score(make_text(file))
    naive = np.array([[naive_nats(file, label, text) for label in LABELS] for _, text in DOCUMENTS])
    np.testing.assert_allclose(found.prior, naive[0, :, 0], atol=1e-4)
    np.testing.assert_allclose(found.nats, naive[:, :, 1], atol=1e-4)
    joint = np.exp(-naive.sum(axis=2))
    np.testing.assert_allclose(found.marginal, -np.log(joint.sum(axis=1)), atol=1e-4)
    np.testing.assert_allclose(found.posterior, joint / joint.sum(axis=1, keepdims=True), atol=1e-4)
    own = [list(LABELS).index(label) if label in LABELS else -1 for label, _ in DOCUMENTS]
    assert found.own.tolist() == own
    guesses = joint.argmax(axis=1)
    assert found.guesses.tolist() == guesses.tolist()
    known = [place for place, label in enumerate(own) if label >= 0]
    assert found.accuracy == pytest.approx(np.mean([guesses[place] == own[place] for place in known]))
    assert found.majority == 2 / 5
    table = np.zeros((3, 3))
    for place in known:
        table[own[place], guesses[place]] += 1
    assert found.confusion.tolist() == table.tolist()
    assert found.mistakes("b") == [(list(LABELS)[guess], 1) for guess in sorted(guesses[[1, 6]]) if guess != 0]
    num_chars = [len(text.replace(UNKNOWN, "")) + 1 for _, text in DOCUMENTS]
    assert found.num_chars.tolist() == num_chars
    of_ab = [0, 3]
    nats = sum(naive[place, 1, 1] for place in of_ab) / sum(num_chars[place] for place in of_ab)
    assert found.bits_given_label(1) == pytest.approx(nats / math.log(2), abs=1e-4)
    nats = sum(naive[place, own[place], 1] for place in known) / sum(num_chars[place] for place in known)
    assert found.bits_given_label() == pytest.approx(nats / math.log(2), abs=1e-4)
    nats = sum(-np.log(joint[place].sum()) for place in known) / sum(num_chars[place] for place in known)
    assert found.bits_without_label() == pytest.approx(nats / math.log(2), abs=1e-4)


def test_unknown_characters_are_counted_by_document():
    """Those of a text to score, and those that were rare in training; labels don't count, nor does an empty text."""
    text = f"ab{LABEL_END}a☃b☃{END}b{LABEL_END}{END}c{LABEL_END}☃{END}"
    rare = make_file(mixed=False)
    known = dataclasses.replace(rare, vocab=Vocab(rare.vocab.chars.replace(UNKNOWN, "")))
    for file in (rare, known):
        assert split(text, file).num_unknown.tolist() == [2, 0, 1]
        assert split(text, file).spread(2).num_unknown.tolist() == [2, 1]
    scores = LabelScorer(make_reader(rare.config, rare.tensors), rare).score(split(text, rare))
    assert [one["num_unknown"] for one in scores.document_records()] == [2, 0, 1]
    assert scores.record()["num_unknown"] == 3


def test_records_name_each_label_that_occurs():
    """The most frequent first, with its share of right guesses."""
    file = make_file(mixed=False)
    found = LabelScorer(make_reader(file.config, file.tensors), file).score(make_text(file))
    records = list(found.records())
    assert [(one["label"], one["num_documents"], one["num_chars"]) for one in records] == [
        ("b", 2, 4),
        ("ab", 2, 10),
        ("c", 1, 2),
    ]
    assert sum(one["recall"] * one["num_documents"] for one in records) / 5 == pytest.approx(found.accuracy)


def test_documents_are_chosen_evenly():
    """With their labels."""
    file = make_file(mixed=False)
    text = make_text(file)
    found = text.spread(3)
    assert [file.vocab.decode(found[index]) for index in range(len(found))] == [
        DOCUMENTS[place][1] + END for place in (0, 3, 6)
    ]
    assert found.own.tolist() == text.own[[0, 3, 6]].tolist()
    assert len(text.spread(100)) == len(text)
    assert (found.num_left_out, text.spread(100).num_left_out) == (4, 0)


def test_a_limit_counts_the_characters_with_all_labels():
    """The scores say how many documents were left out; one is always scored."""
    file = make_file(mixed=False)
    text, scorer = make_text(file), LabelScorer(make_reader(file.config, file.tensors), file)
    size = len(LABELS) * len(text.ids)
    assert scorer.limit(text, size) is text
    assert len(scorer.limit(text, size // 2)) == 3
    scores = scorer.score(scorer.limit(text, 1))
    assert (len(scores.own), scores.num_left_out, scores.record()["num_left_out"]) == (1, 6, 6)


def test_texts_without_labels_have_no_accuracy():
    """But bits: those of all texts."""
    file = make_file(mixed=False)
    found = LabelScorer(make_reader(file.config, file.tensors), file).score(split(f"ab{END}c{END}", file))
    assert (found.accuracy, found.majority, found.bits_given_label()) == (None, None, None)
    assert found.bits_without_label() == pytest.approx(found.marginal.sum() / 5 / math.log(2))
    assert list(found.records()) == []
