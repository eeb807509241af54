"""Texts for labels: what is drawn is what the model predicts after the label, and labels are drawn as it would."""

from collections import Counter

import numpy as np
import pytest

from charrnn.config import SampleConfig
from charrnn.errors import UsageError
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END, LABEL_END, UNKNOWN
from tests.labelled import LABELS, make_file, naive_logits, naive_nats
from tests.model.model_files import make_model


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("prompt", ["", "c", "cab"])
@pytest.mark.parametrize("label", LABELS)
def test_a_greedy_text_follows_its_label(mixed, prompt, label):
    """Character by character: n-grams begin after the label, and symbols of labels and rare characters don't occur."""
    file = make_file(mixed=mixed)
    config = SampleConfig(prompt=prompt, label=label, temperature=0.0, length=12, seed=1)
    stream = Sampler(file, threads=1).stream(config)
    expected, nats = "", 0.0
    while len(expected) < 12 and not expected.endswith(END):
        logits = naive_logits(file, END + label + LABEL_END + prompt + expected)
        logits[[file.vocab.chars.index(symbol) for symbol in (LABEL_END, UNKNOWN)]] = -np.inf
        expected += file.vocab.chars[int(logits.argmax())]
        nats += np.logaddexp.reduce(logits) - logits.max()
    assert "".join(stream) == expected.removesuffix(END)
    assert stream.nats == pytest.approx(nats, abs=1e-4)
    assert stream.opening.label == label


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("prompt", ["", "ca"])
def test_labels_are_drawn_as_the_model_would(mixed, prompt):
    """In proportion to p(label) p(prompt | label): the classifier's posterior, given the beginning of a text."""
    file = make_file(mixed=mixed)
    joint = []
    for label in LABELS:
        prior, with_end = naive_nats(file, label, prompt)
        logits = naive_logits(file, END + label + LABEL_END + prompt)
        end_nats = np.logaddexp.reduce(logits) - logits[file.vocab.id_of(END)]
        joint.append(np.exp(-prior - with_end + end_nats))
    shares = np.array(joint) / sum(joint)
    sampler, ids = Sampler(file, threads=1), file.vocab.encode(prompt).astype(np.int64)
    np.testing.assert_allclose(sampler.labels.probabilities(ids), shares, atol=1e-4)
    config = SampleConfig(prompt=prompt, length=1, num_samples=3000, seed=5)
    drawn = Counter(stream.opening.label for stream in sampler.streams(config))
    counts, expected = np.array([drawn[label] for label in LABELS]), 3000 * shares
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # a chi-square of two degrees of freedom, 1 in 1,000


def test_a_stream_does_not_depend_on_the_others():
    """Stream 7 has the same label and text alone, with more threads, and if its label is given."""
    file = make_file(mixed=True)
    config = SampleConfig(length=9, num_samples=9, seed=3)
    streams = [(stream.opening.label, "".join(stream)) for stream in Sampler(file, threads=1).streams(config)]
    assert len({label for label, _ in streams}) > 1
    assert [(s.opening.label, "".join(s)) for s in Sampler(file, threads=2).streams(config)] == streams
    for given in (config, SampleConfig(length=9, seed=3, label=streams[7][0])):
        alone = Sampler(file, threads=1).stream(given, number=7)
        assert (alone.opening.label, "".join(alone)) == streams[7]


def test_an_unknown_label_is_refused_with_the_known_ones():
    """The nearest first."""
    with pytest.raises(UsageError, match="no label 'abc'; it knows ab, "):
        Sampler(make_file(mixed=False)).stream(SampleConfig(label="abc"))
    with pytest.raises(UsageError, match="trained without labels"):
        Sampler(make_model()).stream(SampleConfig(label="abc"))
