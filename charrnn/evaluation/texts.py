"""What is scored: a separate text, or the part of a model's own text that was held out; and the text it was trained on."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.config import CorpusConfig, SourceConfig, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, find_corpus, load_corpus, read_known
from charrnn.data.sources import STDIN
from charrnn.data.vocab import END, Ids
from charrnn.errors import InputError, UsageError
from charrnn.model.file import ModelFile


@dataclass(frozen=True)
class EvalText:
    """What to score: ids, the characters before them, and counts of the characters the model doesn't know.

    name: the text's paths; title: its name on a page.
    """

    name: str
    title: str
    ids: Ids
    context: Ids
    unknown: dict[str, int]


def separate_text(model: ModelFile, name: str, given: Mapping[str, Any], cache: Cache) -> EvalText:
    """Read a separate text: of N known characters N - 1 are scored, the first only feeds.

    For a model of documents the text is split into documents, and all characters are scored.
    given: settings for reading the text. Raises InputError where there is nothing to score.
    """
    config = CorpusConfig(bytes=model.vocab.of_bytes, documents=read_corpus_config(model).documents)
    ids, unknown = read_known(name, model.vocab, overlay(config, given), SourceConfig(), cache)
    end = model.vocab.id_of(END)
    num_fed = 1 if end is None else 0
    if len(ids) <= num_fed:
        raise InputError(f"{name}: {len(ids)} characters that the model knows; scoring needs at least {num_fed + 1}")
    context = ids[:1] if end is None else np.array([end], ids.dtype)
    return EvalText(name, os.path.basename(name), ids[num_fed:], context, unknown)


def read_corpus_config(model: ModelFile) -> CorpusConfig:
    """How a model's training text was read and split. Raises InputError where the file's record makes no sense."""
    split = model.provenance.get("split", {})
    try:
        fields = {field.name: split[field.name] for field in dataclasses.fields(CorpusConfig) if field.name in split}
        return CorpusConfig(**fields)
    except UsageError as error:
        raise InputError(f"the model's record of its training text makes no sense ({error})") from None


def find_training_text(model: ModelFile, train_text: Sequence[str] | None, cache: Cache) -> Corpus:
    """Find the text that a model was trained on, in its files or in the cache, and split it as in training.

    train_text: where those files are now, if they have moved.
    Raises InputError where they are missing or have changed.
    """
    config = read_corpus_config(model)
    text, split = (model.provenance.get(name, {}) for name in ("text", "split"))
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
            raise InputError(f"{error} (the training text; --train-text FILE says where it is now)") from None
    if corpus.sha256 != text["sha256"] or corpus.vocab != model.vocab:
        raise InputError(f"{' '.join(paths)}: not the text the model was trained on; name that with --train-text")
    num_train, num_valid = split["num_train"], split["num_valid"]
    if not (num_train > 0 and num_valid > 0 and num_train + num_valid <= len(corpus.ids)):
        raise InputError("the model's record of how its text was split makes no sense; name a TEXT to score")
    return dataclasses.replace(corpus, names=tuple(paths), num_train=num_train, num_valid=num_valid)


def held_out_text(model: ModelFile, corpus: Corpus) -> EvalText:
    """The part of the model's text that chose the weights."""
    valid = read_corpus_config(model).valid
    names = [os.path.basename(path) for path in corpus.names]
    more = ", …" if len(names) > 3 else ""
    return EvalText(
        name=valid or " ".join(corpus.names),
        title=os.path.basename(valid) if valid else f"the held-out part of {', '.join(names[:3])}{more}",
        ids=corpus.valid_ids,
        context=corpus.valid_context,
        unknown={},
    )
