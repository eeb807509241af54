"""Several models on one text: the characters that all know, and the standard error of a difference."""

import dataclasses
import math

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import InputError, UsageError
from charrnn.evaluation.comparison import BLOCK, align, check_comparable, compare, standard_error
from charrnn.model.file import ModelFile
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars
from tests.conftest import make_model_file
from tests.evaluation.test_summary import eval_text, parts_of


def aligned(text: str, known: str, sizes: list[int]):
    """The nats of each character of a text, of which the model knows some, and the text."""
    vocab = Vocab("".join(sorted(known)))
    scored = eval_text(text[1:], before=text[0], vocab=vocab)
    return align(parts_of(scored, sizes), scored, vocab), scored


def test_each_character_has_its_nats():
    """The first one is only fed; unknown and rare ones have none."""
    assert str(aligned("a★bc★", "abc", [1, 1])[0].tolist()) == "[inf, nan, 1.0, 2.0, nan]"
    assert str(aligned("a★bc★", "abc" + UNKNOWN, [3, 1])[0].tolist()) == "[inf, nan, 2.0, 3.0, nan]"


def test_models_are_compared_on_the_characters_that_all_know():
    """The best one first; the characters left out are counted."""
    nats, texts = zip(aligned("a★bc★", "abc", [2]), aligned("a★bc★", "ab★", [3]), strict=True)
    found = compare(["x", "y"], nats, texts)
    assert [(one.model, one.score.nats, one.score.num_chars, one.num_left_out) for one in found] == [
        ("x", 1.0, 1, 3),
        ("y", 2.0, 1, 3),
    ]
    assert [(one.difference, one.error) for one in found] == [(0.0, None), (1.0, None)]
    assert [one.score.unknown for one in found] == [{"★": 2}, {"c": 1}]
    with pytest.raises(InputError, match="no character"):
        compare(["x", "y"], *zip(aligned("abc", "ab", [1]), aligned("abc", "ac", [1]), strict=True))


def test_a_standard_error_counts_blocks_not_characters():
    """Of independent values it is the usual one; if each value is repeated, it does not shrink."""
    values = np.random.default_rng(0).normal(size=200 * BLOCK)
    assert standard_error(values) == pytest.approx(1 / math.sqrt(len(values)), rel=0.1)
    repeated = np.repeat(values[: 2 * BLOCK], 100)
    assert standard_error(repeated) == pytest.approx(1 / math.sqrt(2 * BLOCK), rel=0.15)
    assert standard_error(values[: 2 * BLOCK - 1]) is None


def model(chars: str = "ab", *, documents: str = "", **text) -> ModelFile:
    """A model file with a record of its text."""
    config = ModelConfig(cell="gru", vocab_size=len(set(chars)), embedding_dim=2, hidden_size=2, num_layers=1)
    file = make_model_file(config, chars="".join(sorted(set(chars))))
    provenance = {"text": {"sha256": "1", **text}, "split": {"num_train": 5, "num_valid": 2, "documents": documents}}
    return dataclasses.replace(file, provenance=provenance)


@pytest.mark.parametrize(
    ("other", "on_held_out", "part"),
    [
        (model(bytes_as_chars("é")), False, "bytes"),
        (model("ab" + END, documents="lines"), False, "documents"),
        (model(sha256="2"), True, "name a TEXT"),
    ],
)
def test_what_can_not_be_compared_is_refused(other, on_held_out, part):
    """Bytes with characters, documents with a running text, held-out parts of different texts."""
    with pytest.raises(UsageError, match=f"a and b can't be compared: .*{part}"):
        check_comparable(["a", "b"], [model(), other], on_held_out=on_held_out)
    check_comparable(["a", "b"], [model(), model("abc", sha256="2")], on_held_out=False)
    check_comparable(["a", "b"], [model(), model("abc")], on_held_out=True)
