"""The text to score: separate texts, strings, and the held-out part of a model's own text."""

import dataclasses
import hashlib

import numpy as np
import pytest

from charrnn.config import CorpusConfig, ModelConfig, SourceConfig
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.vocab import Vocab
from charrnn.errors import InputError, UsageError
from charrnn.evaluation.texts import (
    cached_training_text,
    held_out_text,
    read_training_text,
    separate_text,
    text_of_string,
)
from charrnn.model.file import ModelFile
from charrnn.text.characters import END, bytes_as_chars
from tests.conftest import make_model_file


@pytest.fixture
def trained(tmp_path):
    """A text of 100 characters and a model file whose provenance names it, with 90 characters for training."""
    text = "abcdefghij" * 10
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    config = ModelConfig(cell="gru", vocab_size=10, embedding_dim=4, hidden_size=6, num_layers=1)
    file = make_model_file(config)
    provenance = {
        "text": {"paths": [path.name], "sha256": digest},
        "split": {"num_train": 90, "num_valid": 10, "encoding": "utf-8", "valid_fraction": 0.1},
    }
    return path, ModelFile(config, Vocab("abcdefghij"), file.tensors, {}, provenance)


def with_provenance(file: ModelFile, **parts) -> ModelFile:
    """The file with entries of its provenance's text or split changed."""
    changed = {name: file.provenance[name] | parts.get(name, {}) for name in ("text", "split")}
    return dataclasses.replace(file, provenance=changed)


def test_a_separate_text_scores_all_but_its_first_character(tmp_path, trained, cache):
    """Of N known characters N - 1 are scored; unknown ones are neither fed nor scored, but counted."""
    _, file = trained
    other = tmp_path / "other.txt"
    other.write_text("abXcdYXe", encoding="utf-8")
    found = separate_text(file, str(other), {}, cache)
    assert file.vocab.decode(found.context) == "a"
    assert file.vocab.decode(found.ids) == "bcde"
    assert found.unknown == {"X": 2, "Y": 1}
    assert (found.num_before, found.first_number, found.reset_id) == (1, 1, None)
    assert (found.name, found.title) == (str(other), "other.txt")
    other.write_text("aXY", encoding="utf-8")
    with pytest.raises(InputError, match="at least 2"):
        separate_text(file, str(other), {}, cache)


@pytest.mark.parametrize("documents", ["", "lines", "--"])
@pytest.mark.parametrize("of_bytes", [False, True])
def test_a_string_is_scored_like_a_file_that_holds_it(tmp_path, trained, cache, documents, of_bytes):
    """It is split into documents and turned into bytes in the same way."""
    _, file = trained
    chars = bytes_as_chars("abcé\n-") if of_bytes else "abcé\n-"
    vocab = Vocab.from_text(chars + END if documents else chars)
    file = with_provenance(dataclasses.replace(file, vocab=vocab), split={"documents": documents})
    text, path = "ab\n\nécX--c\nb", tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    from_file, from_string = separate_text(file, str(path), {}, cache), text_of_string(file, text)
    assert from_string.ids.tolist() == from_file.ids.tolist()
    assert from_string.context.tolist() == from_file.context.tolist()
    assert from_string.unknown == from_file.unknown == {"X": 1}
    with pytest.raises(InputError, match="the text is empty"):
        text_of_string(file, "")


def test_a_text_of_unknown_characters_is_not_called_empty(trained):
    """The message says how many of its characters the model knows."""
    with pytest.raises(InputError, match="knows 0 of its characters; scoring needs at least 2"):
        text_of_string(trained[1], "☃☃")


def cached_files(cache):
    """The names of all files in the cache."""
    return {path.name for path in cache.folder.iterdir()}


def test_the_held_out_text_is_found_again(tmp_path, trained, cache):
    """In the cache by its key, or in a file; it is named after the model's record, without folders."""
    path, file = trained
    assert cached_training_text(file, cache) is None
    found = held_out_text(file, read_training_text(file, [str(path)], cache))
    assert (len(found.context), len(found.ids)) == (90, 10)
    assert (found.name, found.title) == ("text.txt", "Held-out part of text.txt")
    several = dataclasses.replace(read_training_text(file, [str(path)], cache), names=("a/one.txt", "b/two.txt"))
    assert held_out_text(file, several).name == "one.txt, two.txt"
    key = load_corpus([str(path)], CorpusConfig(), SourceConfig(), cache).key
    path.unlink()
    cached = cached_training_text(with_provenance(file, text={"key": key}), cache)
    assert (held_out_text(file, cached).ids == found.ids).all()
    assert cached_training_text(with_provenance(file, text={"key": key, "sha256": "0" * 64}), cache) is None


def test_another_text_is_refused_and_not_cached(tmp_path, trained, cache):
    """A model file can't make its reader copy a file: the text must have the recorded hash."""
    _, file = trained
    other = tmp_path / "other.txt"
    other.write_text("abcdefghij" * 9 + "bcdefghija", encoding="utf-8")
    for _ in range(2):
        before = cached_files(cache)
        with pytest.raises(InputError, match=r"other\.txt: not the text the model was trained on$"):
            read_training_text(file, [str(other)], cache)
        assert cached_files(cache) == before
        load_corpus([str(other)], CorpusConfig(), SourceConfig(), cache)  # then the user has cached it himself
    with pytest.raises(InputError, match=r"gone\.txt: no such file or folder"):
        read_training_text(file, [str(tmp_path / "gone.txt")], cache)


def test_without_a_path_the_error_names_the_text_and_the_option(trained, cache):
    """However many files it had."""
    _, file = trained
    with pytest.raises(InputError, match=r"the training text, text\.txt, was not found; name it with --train-text"):
        read_training_text(file, [], cache)
    names = [f"{number}{'x' * 1000}" for number in range(9999)]
    with pytest.raises(InputError, match="and 9,996 more, was not found") as caught:
        read_training_text(with_provenance(file, text={"paths": names}), [], cache)
    assert len(str(caught.value)) < 1000
    with pytest.raises(InputError, match=r"stdin, .*--train-text"):
        read_training_text(with_provenance(file, text={"paths": ["-", "a.txt"]}), [], cache)


def test_held_out_lines_have_their_number_in_the_text(tmp_path, trained, cache):
    """The first one begins in the training text."""
    path, file = trained
    text = "abcdefghi\n" * 9 + "bcdefghijk"
    path.write_text(text, encoding="utf-8")
    corpus = load_corpus([str(path)], CorpusConfig(), SourceConfig(), cache)
    file = dataclasses.replace(file, vocab=corpus.vocab)
    split = {"num_train": 85, "num_valid": 15}
    file = with_provenance(file, text={"sha256": corpus.sha256}, split=split)
    found = held_out_text(file, read_training_text(file, [str(path)], cache))
    assert (found.num_before, found.first_number) == (5, 9)
    assert file.vocab.decode(np.concatenate([found.context[-5:], found.ids])) == text[80:]


@pytest.mark.parametrize("is_separate", [True, False])
def test_lines_can_be_documents_for_any_model(tmp_path, trained, cache, is_separate):
    """Each starts after a newline, which the model must know; other kinds need a model of documents."""
    path, file = trained
    path.write_text("abcdefghi\n" * 10, encoding="utf-8")
    corpus = load_corpus([str(path)], CorpusConfig(), SourceConfig(), cache)
    file = with_provenance(dataclasses.replace(file, vocab=corpus.vocab), text={"sha256": corpus.sha256})

    def find(documents):
        if is_separate:
            return separate_text(file, str(path), {"documents": documents}, cache)
        return held_out_text(file, read_training_text(file, [str(path)], cache), documents=documents)

    found = find("lines")
    assert found.reset_id == file.vocab.id_of("\n") == found.context[-1]
    assert (found.num_before, len(found.ids)) == (0, 100 if is_separate else 10)
    with pytest.raises(UsageError, match="blank-lines needs a model trained on documents"):
        find("blank-lines")
    file = dataclasses.replace(file, vocab=Vocab("abcdefghij"))
    with pytest.raises(UsageError, match="newline"):
        separate_text(file, str(path), {"documents": "lines"}, cache)


def test_a_model_of_documents_splits_only_a_separate_text_in_another_way(tmp_path, trained, cache):
    """Its held-out documents are those of its training."""
    path, file = trained
    file = with_provenance(dataclasses.replace(file, vocab=Vocab("ab" + END)), split={"documents": "lines"})
    path.write_text("ab--ba", encoding="utf-8")
    found = separate_text(file, str(path), {"documents": "--"}, cache)
    assert file.vocab.decode(found.ids) == f"ab{END}ba{END}"
    assert found.reset_id == file.vocab.id_of(END)
    corpus = Corpus(found.ids, file.vocab, num_train=3, num_valid=3, names=("a",), sha256="")
    with pytest.raises(UsageError, match="needs a TEXT"):
        held_out_text(file, corpus, documents="lines")


def test_a_held_out_file_is_named_last(tmp_path, trained, cache):
    """With --valid it is a separate text, so its first character is only fed."""
    path, file = trained
    other = tmp_path / "valid.txt"
    other.write_text("abcabc", encoding="utf-8")
    config = CorpusConfig(valid=str(other))
    corpus = load_corpus([str(path)], config, SourceConfig(), cache)
    split = {"num_train": 100, "num_valid": 6, "valid": "valid.txt"}
    file = with_provenance(file, text={"sha256": corpus.sha256}, split=split)
    found = held_out_text(file, read_training_text(file, [str(path), str(other)], cache))
    assert (found.name, found.title) == ("valid.txt", "valid.txt")
    assert (file.vocab.decode(found.context), file.vocab.decode(found.ids)) == ("a", "bcabc")
    with pytest.raises(InputError, match=r"trained with --valid valid\.txt; name that file too, last"):
        read_training_text(file, [str(path)], cache)


def test_a_held_out_stream_that_is_gone_is_named(trained, cache):
    """The training text may still be there."""
    file = with_provenance(trained[1], split={"valid": "-"})
    with pytest.raises(InputError, match="stdin, and that text is not in the cache"):
        read_training_text(file, [], cache)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"column": "name"}, "--column needs a model trained on documents"),
        ({"column": "name", "label": "kind"}, "--column needs a model trained on documents"),
        ({"documents": "lines", "label_from": "file"}, "--label-from needs a model with labels"),
    ],
)
def test_records_and_labels_need_a_model_that_knows_them(tmp_path, trained, cache, given, message):
    """Otherwise the symbols that end documents and labels would count as unknown characters."""
    path = tmp_path / "names.csv"
    path.write_text("name,kind\nabc,a\ncde,b\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        separate_text(trained[1], str(path), given, cache)


def test_a_model_without_a_usable_record_of_its_text_is_refused(trained, cache):
    """Nothing is read then."""
    path, file = trained
    for provenance in ({}, {"text": {"paths": ["a"]}}):
        nameless = dataclasses.replace(file, provenance=provenance)
        with pytest.raises(InputError, match=r"no record of its training text"):
            cached_training_text(nameless, cache)
        with pytest.raises(InputError, match=r"no record of its training text"):
            read_training_text(nameless, [str(path)], cache)
    for split in ({"num_train": 0}, {"num_valid": 11}):
        with pytest.raises(InputError, match="record of its training text is invalid"):
            read_training_text(with_provenance(file, split=split), [str(path)], cache)
    for encoding in ("gone", "zip", "punycode", "a\0b", "x" * 100_000):
        with pytest.raises(InputError, match=r"was read as .* which this Python") as caught:
            read_training_text(with_provenance(file, split={"encoding": encoding}), [str(path)], cache)
        assert len(str(caught.value)) < 400
