"""Passages: the characters that are to be scored, those before them, and those that were trained on.

A separate text is a passage, and so is the part of a model's own text that was held out.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charrnn.cache import Cache
from charrnn.checkpoint import ModelFile
from charrnn.config import CorpusConfig, SourceConfig, overlay
from charrnn.corpus import Corpus, find_corpus, load_corpus, read_known
from charrnn.errors import InputError, UsageError
from charrnn.sources import STDIN
from charrnn.vocab import END, Ids


@dataclass(frozen=True)
class Passage:
    """What to score: ids, the characters before them, and what the model doesn't know.

    name: the texts' paths; title: what a page calls it.
    """

    name: str
    title: str
    ids: Ids
    context: Ids
    unknown: dict[str, int]


def whole_text(
    model: ModelFile, name: str, given: Mapping[str, Any], source_config: SourceConfig, cache: Cache
) -> Passage:
    """A separate text: of N known characters N - 1 are scored, the first only feeds.

    Where the model knows documents it is cut in such, and all characters are scored.
    given: how the text is read, where that isn't as usual. Raises InputError where there is
    nothing to score.
    """
    config = CorpusConfig(bytes=model.vocab.of_bytes, documents=reading(model).documents)
    config = overlay(config, given)
    ids, unknown = read_known(name, model.vocab, config, source_config, cache)
    end = model.vocab.id_of(END)
    num_read = int(end is None)
    if len(ids) <= num_read:
        least = "two" if num_read else "one"
        raise InputError(f"{name}: {len(ids)} characters that the model knows; scoring needs at least {least}")
    context = ids[:1] if end is None else np.array([end], ids.dtype)
    return Passage(name, os.path.basename(name), ids[num_read:], context, unknown)


def reading(model: ModelFile) -> CorpusConfig:
    """How the text that a model was trained on was read and split. Raises InputError for a model that says nonsense."""
    split = model.provenance.get("split", {})
    try:
        fields = {field.name: split[field.name] for field in dataclasses.fields(CorpusConfig) if field.name in split}
        return CorpusConfig(**fields)
    except UsageError as error:
        raise InputError(f"the model says nonsense about the text it was trained on ({error})") from None


def trained_on(model: ModelFile, train_text: Sequence[str] | None, source_config: SourceConfig, cache: Cache) -> Corpus:
    """The text that the model was trained on, split as it was then, from its files, or from the cache.

    train_text: where those files are now, if they have moved.
    Raises InputError where they are gone or have changed.
    """
    config = reading(model)
    text, split = (model.provenance.get(name, {}) for name in ("text", "split"))
    if not ({"paths", "sha256"} <= text.keys() and {"num_train", "num_valid"} <= split.keys()):
        raise InputError("the model doesn't say what it was trained on; name a TEXT to score")
    paths = train_text or text["paths"]
    corpus = None if train_text else find_corpus(str(text.get("key")), config, cache)
    if corpus is None and STDIN in paths:
        raise InputError("the model was trained on stdin; name that text with --train-text FILE, or a TEXT to score")
    if corpus is None:
        try:
            corpus = load_corpus(paths, config, source_config, cache)
        except InputError as error:
            raise InputError(f"{error} (the text it was trained on; --train-text FILE says where it is now)") from None
    name = " ".join(paths)
    if corpus.sha256 != text["sha256"] or corpus.vocab != model.vocab:
        raise InputError(f"{name}: not the text the model was trained on; name that one with --train-text")
    num_train, num_valid = split["num_train"], split["num_valid"]
    if not (num_train > 0 and num_valid > 0 and num_train + num_valid <= len(corpus.ids)):
        raise InputError("the model says nonsense about how its text was split; name a TEXT to score")
    return dataclasses.replace(corpus, names=tuple(paths), num_train=num_train, num_valid=num_valid)


def held_out(model: ModelFile, corpus: Corpus) -> Passage:
    """The part of the text it was trained on that chose the weights."""
    apart = reading(model).valid
    names = [os.path.basename(path) for path in corpus.names]
    title = f"the held-out part of {', '.join(names[:3])}{', …' * (len(names) > 3)}"
    return Passage(
        apart or " ".join(corpus.names),
        os.path.basename(apart) if apart else title,
        corpus.valid_ids,
        corpus.valid_context,
        {},
    )
