"""Rounded weights and cut n-grams: how far from the exact ones, and what stays true of them."""

import numpy as np
import pytest
import torch

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.model.ngrams import count_ngrams, make_mixture
from charrnn.model.quantization import cut_ngrams, restore, store_ngrams, store_weights
from tests.conftest import make_model_file, make_text

TEXT = make_text(5000)


@pytest.fixture(scope="module")
def file():
    """A model with n-grams of up to six characters."""
    vocab = Vocab.from_text(TEXT)
    config = ModelConfig("gru", vocab_size=len(vocab), embedding_dim=6, hidden_size=16, num_layers=2)
    found = make_model_file(config, chars=vocab.chars)
    found.ngram.update(count_ngrams(vocab.encode(TEXT), 6, vocab_size=len(vocab)))
    found.ngram["ngram.weights"] = np.linspace([0.9, 0.1], [0.4, 0.6], 6)
    return found


def stored(file, precision):
    """All that is stored of a model."""
    return store_weights(file, precision) | store_ngrams(file, precision)


def test_float32_is_exact(file):
    """Every tensor and every share."""
    same = restore(file, stored(file, "float32"))
    for arrays, expected in ((same.tensors, file.tensors), (same.ngram, file.ngram)):
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype


def test_bfloat16_rounds_as_pytorch(file):
    """Matrices only: biases stay float32."""
    rounded = restore(file, store_weights(file, "bfloat16")).tensors
    for name, tensor in file.tensors.items():
        expected = torch.from_numpy(np.array(tensor))
        expected = expected.to(torch.bfloat16).float() if tensor.ndim == 2 else expected
        np.testing.assert_array_equal(rounded[name], expected.numpy())


def test_int8_is_within_half_a_step_of_each_rows_scale(file):
    """The step is a row's largest weight over 127; a row of zeros stays zero."""
    file.tensors["head.weight"][3] = 0
    rounded = restore(file, store_weights(file, "int8")).tensors
    for name, tensor in file.tensors.items():
        if tensor.ndim == 1:
            np.testing.assert_array_equal(rounded[name], tensor)
        else:
            step = np.abs(tensor).max(axis=1, keepdims=True) / 127
            assert (np.abs(rounded[name] - tensor) <= 0.5001 * step).all()
    assert not rounded["head.weight"][3].any()


def test_rounded_shares_are_near_and_their_backoffs_stay_positive(file):
    """Within half a level; the n-grams are valid ones, whose backoffs are at least half of what they were."""
    ngram = restore(file, stored(file, "int8")).ngram
    kept, exact = ngram["ngram.kept"], file.ngram["ngram.kept"]
    assert np.abs(np.log(kept / exact)).max() < np.log(1 / exact.min()) / 254
    assert len(np.unique(kept)) <= 256
    found, expected = (make_mixture(one, vocab_size=len(file.vocab)) for one in (ngram, file.ngram))
    assert (found.trie.backoff >= 0.49 * expected.trie.backoff).all()
    assert np.abs(found.trie.backoff - expected.trie.backoff).mean() < 0.01


def test_cutting_leaves_the_shorter_ngrams_as_they_are(file):
    """All of them, with their shares; none at all is a network alone."""
    vocab = file.vocab
    for order in range(1, 7):
        cut = cut_ngrams(file, order)
        assert cut.ngram_order == order
        trie, whole = cut.mixture.trie, file.mixture.trie
        np.testing.assert_array_equal(trie.backoff, whole.backoff[: len(trie.backoff)])
        lengths = {len(text) for text in spell(trie, vocab)}
        assert lengths == set(range(1, order + 1))
        assert spell(trie, vocab) == {text for text in spell(whole, vocab) if len(text) <= order}
    assert cut_ngrams(file, 0).mixture is None


def spell(trie, vocab):
    """All n-grams of a trie as texts."""
    texts, found = [""], set()
    for node in range(len(trie.backoff)):
        for child in range(trie.first_child[node], trie.first_child[node + 1]):
            texts.append(texts[node] + vocab.chars[trie.char[child]])
            found.add(texts[-1])
    return found


def test_ids_of_small_vocabularies_take_one_byte(file):
    """Fewer than 256 characters, and fewer than 256 children."""
    assert {str(store_ngrams(file, "int8")[f"ngram.{name}"].dtype) for name in ("char", "children", "kept")} == {
        "uint8"
    }
