"""The likelihood of a text by the drawing kernels: that of a sequential reading, and of the scoring room."""

from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scoring import evaluate
from charrnn.model.ngrams import count_ngrams
from charrnn.sampling.likelihood import text_nats
from charrnn.text.characters import END
from tests.conftest import make_model_file, make_reader, make_text, sequential_nats

TEXT = make_text(4000)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("length", [1, 99, 250, 1001])
def test_nats_are_those_of_a_sequential_reading(cell, length):
    """Whatever the number of lanes; each reads up to 250 characters before it starts."""
    vocab = Vocab.from_text(TEXT)
    file = make_model_file(ModelConfig(cell, len(vocab), 6, 20, 2), chars=vocab.chars, scale=1.5)
    ids = vocab.encode(TEXT).astype(np.uint8)
    context, ids = ids[:300], ids[300 : 300 + length]
    expected = sequential_nats(file, ids, context)
    np.testing.assert_allclose(text_nats(file, ids, context=context), expected, atol=1e-3)


def test_ngrams_and_documents_are_scored_as_by_eval():
    """The state and the context start over at the end of a document."""
    text = TEXT.replace("\n", END)
    vocab = Vocab.from_text(text)
    config = ModelConfig("lstm", len(vocab), 6, 20, 1, reset_id=vocab.id_of(END))
    ids = vocab.encode(text).astype(np.uint8)
    ngram = {**count_ngrams(ids, 4, vocab_size=len(vocab)), "ngram.weights": np.tile([0.6, 0.7], (4, 1))}
    file = replace(make_model_file(config, chars=vocab.chars, scale=1.5), ngram=ngram)
    network = make_reader(config, file.tensors)
    expected = evaluate(network, ids[1000:3000], context=ids[:1000], mixture=file.mixture)
    found = text_nats(file, ids[1000:3000], context=ids[:1000])
    assert found.mean() == pytest.approx(expected.nats_per_char, abs=1e-4)
