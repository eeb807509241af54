"""What is scored: separate texts, and the part of a model's own that was held out."""

import hashlib

import pytest

from charrnn.config import ModelConfig, SourceConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import InputError
from charrnn.evaluation.texts import held_out, separate_text, trained_on
from charrnn.model.file import ModelFile
from tests.conftest import make_model_file


@pytest.fixture
def trained(tmp_path):
    """A file whose provenance names a text of 100 characters, of which 90 were trained on."""
    text = "abcdefghij" * 10
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    config = ModelConfig(cell="gru", vocab_size=10, embedding_dim=4, hidden_size=6, num_layers=1)
    file = make_model_file(config)
    provenance = {
        "text": {"paths": [str(path)], "sha256": digest},
        "split": {"num_train": 90, "num_valid": 10, "encoding": "utf-8", "valid_fraction": 0.1},
    }
    return path, ModelFile(config, Vocab("abcdefghij"), file.tensors, {}, provenance)


def test_a_separate_text_scores_all_but_its_first_character(tmp_path, trained, cache):
    """Of N known characters N - 1 are scored; unknown ones are neither fed nor scored, but named."""
    _, file = trained
    other = tmp_path / "other.txt"
    other.write_text("abXcdYXe", encoding="utf-8")
    source = separate_text(file, str(other), {}, SourceConfig(), cache)
    assert file.vocab.decode(source.context) == "a"
    assert file.vocab.decode(source.ids) == "bcde"
    assert source.unknown == {"X": 2, "Y": 1}
    assert (source.name, source.title) == (str(other), "other.txt")
    other.write_text("aXY", encoding="utf-8")
    with pytest.raises(InputError, match="at least two"):
        separate_text(file, str(other), {}, SourceConfig(), cache)


def test_the_held_out_part_is_found_again(tmp_path, trained, cache):
    """By path and content; a moved text by the path that is given; another text not at all."""
    path, file = trained
    source = held_out(file, trained_on(file, None, SourceConfig(), cache))
    assert (len(source.context), len(source.ids)) == (90, 10)
    assert (source.name, source.title) == (str(path), "the held-out part of text.txt")
    moved = tmp_path / "moved.txt"
    path.rename(moved)
    with pytest.raises(InputError, match="--train-text"):
        trained_on(file, None, SourceConfig(), cache)
    assert (held_out(file, trained_on(file, [str(moved)], SourceConfig(), cache)).ids == source.ids).all()
    moved.write_text("abcdefghij" * 9 + "bcdefghija", encoding="utf-8")
    with pytest.raises(InputError, match="--train-text"):
        trained_on(file, [str(moved)], SourceConfig(), cache)


def test_a_model_that_says_nothing_of_its_text_is_told_so(trained, cache):
    """And so is one that was trained on stdin, in part or alone: nothing is read from there unasked."""
    _, file = trained
    for provenance in ({}, {"text": {"paths": ["a"]}}):
        with pytest.raises(InputError, match="TEXT"):
            trained_on(ModelFile(file.config, file.vocab, file.tensors, {}, provenance), None, SourceConfig(), cache)
    text = {**file.provenance["text"], "paths": ["-", "a.txt"]}
    mixed = ModelFile(file.config, file.vocab, file.tensors, {}, {**file.provenance, "text": text})
    with pytest.raises(InputError, match="stdin"):
        trained_on(mixed, None, SourceConfig(), cache)
