"""The text to score: a separate one, or the held-out part of a model's own; and the text a model was trained on."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.config import CorpusConfig, SourceConfig, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, encode_text, find_corpus, load_corpus
from charrnn.data.documents import end_documents
from charrnn.data.sources import STDIN
from charrnn.data.vocab import END, Ids
from charrnn.errors import InputError, UsageError
from charrnn.model.file import ModelFile


@dataclass(frozen=True)
class EvalText:
    """A text to score: ids, the characters before them, and counts of the characters outside the vocabulary.

    name: the paths of its files; title: what a page calls it.
    """

    name: str
    title: str
    ids: Ids
    context: Ids
    unknown: dict[str, int]


def separate_text(file: ModelFile, name: str, given: Mapping[str, Any], cache: Cache) -> EvalText:
    """Read a separate text. Of N known characters N - 1 are scored; the first is only fed.

    For a model of documents the text is split into documents, and all its characters are scored.
    given: settings for reading the text.
    Raises InputError if there is nothing to score.
    """
    config = CorpusConfig(bytes=file.vocab.has_bytes, documents=read_corpus_config(file).documents)
    ids, unknown = encode_text(name, file.vocab, overlay(config, given), SourceConfig(), cache)
    return _eval_text(file, name, ids, unknown)


def text_of_string(file: ModelFile, text: str) -> EvalText:
    """Turn a string into a text to score, as separate_text does with a file that holds it."""
    vocab, documents = file.vocab, read_corpus_config(file).documents
    chars = vocab.to_chars(text)
    if documents:
        chars = "".join(end_documents([chars], vocab.to_chars(documents)))
    return _eval_text(file, "the text", *vocab.encode_known(chars))


def _eval_text(file: ModelFile, name: str, ids: Ids, unknown: dict[str, int]) -> EvalText:
    """Use the first character, or for a model of documents the end of a document, as the context."""
    end = file.vocab.id_of(END)
    num_fed = 1 if end is None else 0
    if len(ids) <= num_fed:
        raise InputError(f"{name}: the model knows {len(ids)} of its characters; scoring needs at least {num_fed + 1}")
    context = ids[:1] if end is None else np.array([end], ids.dtype)
    return EvalText(name, os.path.basename(name), ids[num_fed:], context, unknown)


def read_corpus_config(file: ModelFile) -> CorpusConfig:
    """Return how a model's training text was read and split. Raises InputError if the file's record is invalid."""
    split = file.provenance.get("split", {})
    try:
        fields = {field.name: split[field.name] for field in dataclasses.fields(CorpusConfig) if field.name in split}
        return CorpusConfig(**fields)
    except UsageError as error:
        raise InputError(f"the model's record of its training text is invalid ({error})") from None


def find_training_text(file: ModelFile, train_text: Sequence[str] | None, cache: Cache) -> Corpus:
    """Find the text that a model was trained on, in its files or in the cache, and split it as in training.

    train_text: where those files are now, if they have moved.
    Raises InputError if they are missing or have changed.
    """
    config = read_corpus_config(file)
    text, split = (file.provenance.get(name, {}) for name in ("text", "split"))
    if not ({"paths", "sha256"} <= text.keys() and {"num_train", "num_valid"} <= split.keys()):
        raise InputError("the model has no record of its training text; name a TEXT to score")
    paths = train_text or text["paths"]
    corpus = None if train_text else find_corpus(str(text.get("key")), config, cache)
    if corpus is None and STDIN in paths:
        raise InputError("the model was trained on stdin; name that text with --train-text FILE, or a TEXT to score")
    if corpus is None:
        try:
            corpus = load_corpus(paths, config, SourceConfig(), cache)
        except InputError as error:
            raise InputError(f"{error} (the training text; if it has moved, use --train-text FILE)") from None
    if corpus.sha256 != text["sha256"] or corpus.vocab != file.vocab:
        raise InputError(f"{' '.join(paths)}: not the text the model was trained on; name that with --train-text")
    num_train, num_valid = split["num_train"], split["num_valid"]
    if not (num_train > 0 and num_valid > 0 and num_train + num_valid <= len(corpus.ids)):
        raise InputError("the model's record of its training text is invalid; name a TEXT to score")
    return dataclasses.replace(corpus, names=tuple(paths), num_train=num_train, num_valid=num_valid)


def held_out_text(file: ModelFile, corpus: Corpus) -> EvalText:
    """Return the held-out text that chose a model's weights."""
    valid = read_corpus_config(file).valid
    names = [os.path.basename(path) for path in corpus.names]
    more = ", …" if len(names) > 3 else ""
    return EvalText(
        name=valid or " ".join(corpus.names),
        title=os.path.basename(valid) if valid else f"Held-out part of {', '.join(names[:3])}{more}",
        ids=corpus.valid_ids,
        context=corpus.valid_context,
        unknown={},
    )
