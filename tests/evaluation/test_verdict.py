"""Verdicts: whether a score is good, or why nobody can tell."""

import math

import pytest

from charrnn.evaluation.scores import Assessment, Baseline, Copied, CopiedShares, Evaluation
from charrnn.evaluation.verdict import sentences, verdict


def score(bits_per_char: float, num_chars: int = 1000) -> Evaluation:
    """Return a score of so many bits per character."""
    return Evaluation(bits_per_char * num_chars * math.log(2), num_chars, {})


def baseline(name: str, bits_per_char: float) -> Baseline:
    """Return a baseline of so many bits per character."""
    return Baseline(name, bits_per_char * math.log(2))


@pytest.mark.parametrize(
    ("own", "best", "sentence"),
    [
        (1.0, 2.0, "Good: 50% fewer bits than the best baseline (7-gram)."),
        (1.96, 2.0, "Hardly better than the best baseline (7-gram): 2% fewer bits."),
        (1.995, 2.0, "No better than the best baseline (7-gram)."),
        (2.005, 2.0, "No better than the best baseline (7-gram)."),
        (4.0, 2.0, "Not good yet: 100% more bits than the best baseline (7-gram)."),
        (0.0, 0.756, "Good: 100% fewer bits than the best baseline (7-gram)."),
        (
            0.756,
            0.0,
            "Not good yet: 0.76 bits per character more than the best baseline (7-gram).",
        ),
        (
            0.0,
            0.0004,
            "As good as the best baseline (7-gram): both need less than 0.01 bits per character.",
        ),
    ],
)
def test_a_verdict_compares_with_the_best_baseline(own, best, sentence):
    """In one sentence; near nothing by the difference, not by a share."""
    assert verdict(Assessment(score(own), (baseline("xz", 3.0), baseline("7-gram", best)))) == sentence


def test_there_is_no_verdict_without_baselines():
    """And no other sentence if nothing was measured."""
    assert verdict(Assessment(score(1.0))) == ""
    assert sentences(Assessment(score(1.0))) == []


def test_there_is_no_verdict_on_a_short_text():
    """A score of a few hundred characters is mostly chance."""
    found = Assessment(score(1.0, 999), (baseline("7-gram", 2.0),))
    assert verdict(found) == "No verdict: too few characters (999); at least 1,000 are needed."


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (Copied(1000, 900, 500, num_long=900), "No verdict: 90% of this text is in the training text."),
        (Copied(1000, 900, 299), "Good: 50%"),
        (Copied(1000, 900, 500, num_long=499), "Good: 50%"),
        (Copied(1000, 0, 0, num_documents=9, num_known=8), "No verdict: 89% of these documents are in the training"),
        (Copied(1000, 0, 0, num_documents=9, num_known=4), "Good: 50%"),
    ],
)
def test_there_is_no_verdict_on_the_training_text(text, start):
    """Of which long runs are copied, or whole documents."""
    copied = CopiedShares(Copied(1000, 0, 0), None, text)
    assert verdict(Assessment(score(1.0), (baseline("7-gram", 2.0),), copied=copied)).startswith(start)


@pytest.mark.parametrize(
    ("copied", "sentence"),
    [
        (
            CopiedShares(Copied(200, 31, 31), Copied(100, 2, 30), Copied(100, 0, 0)),
            "Copied: 15.5% of what it writes occurs in the training text, in runs of 30 or more characters "
            "(longest run 31; the network alone 2.0%). Of the scored text: 0.0%.",
        ),
        (
            CopiedShares(Copied(200, 0, 0), None, Copied(100, 50, 50)),
            "Copied: 0.0% of what it writes occurs in the training text, in runs of 30 or more characters. "
            "Of the scored text: 50.0% (longest run 50).",
        ),
        (
            CopiedShares(
                Copied(200, 0, 0, num_documents=1000, num_known=675),
                Copied(200, 0, 0, num_documents=1000, num_known=500),
                Copied(100, 0, 0, num_documents=10, num_known=1),
            ),
            "Copied: 67.5% of 1,000 sampled documents are in the training text (the network alone 50.0%). "
            "Of the scored documents: 10.0%.",
        ),
    ],
)
def test_copying_is_a_sentence(copied, sentence):
    """With the longest run, if there is one, and the network's share, if n-grams are mixed in; or of documents."""
    assert sentences(Assessment(score(2.0), copied=copied)) == [sentence]
