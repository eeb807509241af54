"""The text to score: a separate one, or the held-out part of a model's own; and the text a model was trained on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from charrnn.config import LINES, CorpusConfig, SourceConfig, flag, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, find_corpus, load_corpus
from charrnn.data.texts import encode_text
from charrnn.data.vocab import UNKNOWN_CHAR, Ids, UnknownChars, count_unknown
from charrnn.errors import InputError, UsageError
from charrnn.model.container import shorten
from charrnn.model.file import ModelFile
from charrnn.text.characters import END, LABEL_END, first_of
from charrnn.text.decoding import find_codec
from charrnn.text.documents import end_documents
from charrnn.text.folders import find_sources
from charrnn.text.records import format_of
from charrnn.text.sources import STDIN, Source

_PIECE = 1 << 22  # characters compared at a time
_MAX_BEFORE = 10_000  # characters of a line before its scored part


@dataclass(frozen=True)
class EvalText:
    """A text to score: ids, and the characters before them.

    name: the paths of its files; title: what a page calls it. unknown_chars: those outside the
    vocabulary, as in Vocab.encode_around of the last num_before characters of the context and the ids.
    num_before: how many characters of the context belong to the first line, which is line (or
    document) first_number. reset_id: the id of the character before which the network's state is
    reset, or None; after it a line is scored by itself.
    """

    name: str
    title: str
    ids: Ids
    context: Ids
    unknown_chars: UnknownChars = field(default_factory=lambda: np.empty(0, UNKNOWN_CHAR))
    num_before: int = 0
    first_number: int = 1
    reset_id: int | None = None

    @cached_property
    def unknown(self) -> dict[str, int]:
        """Counts of the characters outside the vocabulary, most frequent first."""
        return count_unknown(self.unknown_chars)


def separate_text(file: ModelFile, name: str, given: Mapping[str, Any], cache: Cache) -> EvalText:
    """Read a separate text. Of N known characters N - 1 are scored; the first is only fed.

    All N are scored if the text is split into documents: for a model of documents, or if given says
    so. given: settings for reading the text.
    Raises InputError if there is nothing to score.
    """
    return separate_texts([file], name, given, cache)[0]


def separate_texts(files: Sequence[ModelFile], name: str, given: Mapping[str, Any], cache: Cache) -> list[EvalText]:
    """Read a separate text once for several models, which were trained on texts of the same kind, as separate_text."""
    source_config = overlay(SourceConfig(), given)
    sources = find_sources([name], source_config).sources
    config, reset_ids = _resolve(files[0], sources, given), [file.vocab.id_of(END) for file in files]
    for file in files:
        _check_knows(file, config)
    if reset_ids[0] is None and config.documents:
        reset_ids = [_line_start(file, config.documents) for file in files]
        config = replace(config, documents="")
    found = encode_text(sources, [file.vocab for file in files], config, source_config, cache)
    return [_eval_text(name, *text, reset_id) for text, reset_id in zip(found, reset_ids, strict=True)]


def _resolve(file: ModelFile, sources: Sequence[Source], given: Mapping[str, Any]) -> CorpusConfig:
    """Return how to read another text: as given, and otherwise as the training text was read.

    A text that does not consist of records, for a model trained on records, has a document in each line.
    """
    config = read_alike(file)
    plain = replace(config, documents="", keep_separator=False, column="", label="", label_from="")
    if "documents" in given or "column" in given:
        config = plain
    elif config.column and not (given.get("format") or any(format_of(source.name) for source in sources)):
        config = replace(plain, documents=LINES)
    elif config.label_from and sources[0].name == STDIN:
        config = replace(config, label_from="")
    return overlay(config, given)


def _check_knows(file: ModelFile, config: CorpusConfig) -> None:
    """Raise UsageError for records if a model was trained without documents, for labels if without labels."""
    if config.column and file.vocab.id_of(END) is None:
        raise UsageError("--column needs a model trained on documents; leave it out to score the file as plain text")
    if (config.label or config.label_from) and file.vocab.id_of(LABEL_END) is None:
        name = flag("label" if config.label else "label_from")
        raise UsageError(f"{name} needs a model with labels; train one with --label or --label-from")


def _line_start(file: ModelFile, documents: str) -> int:
    """Return the id of the newline, after which a model that was not trained on documents can start each line.

    Raises UsageError if it doesn't know the newline, or if the documents are not lines.
    """
    newline = file.vocab.id_of("\n")
    if documents != LINES:
        raise UsageError(f"--documents {documents} needs a model trained on documents; lines works with any model")
    if newline is None:
        raise UsageError("--documents lines needs a model that knows the newline; this one was trained without any")
    return newline


def text_of_string(file: ModelFile, text: str) -> EvalText:
    """Turn a string into a text to score, as separate_text does with a file that holds it."""
    vocab, config = file.vocab, read_alike(file)
    chars = vocab.to_chars(text)
    if config.column:
        chars += END
    elif config.documents:
        pieces = end_documents(
            [chars], config.documents, keep_separator=config.keep_separator, is_bytes=vocab.has_bytes
        )
        chars = "".join(pieces)
    return _eval_text("the text", *vocab.encode_around(chars), vocab.id_of(END))


def _eval_text(name: str, ids: Ids, unknown_chars: UnknownChars, reset_id: int | None) -> EvalText:
    """Make a text to score. Its context is its first character, or the one after which documents start."""
    num_fed = 1 if reset_id is None else 0
    if len(ids) + len(unknown_chars) == 0:
        raise InputError(f"{name}: the text is empty")
    if len(ids) <= num_fed:
        raise InputError(f"{name}: the model knows {len(ids)} of its characters; scoring needs at least {num_fed + 1}")
    context = ids[:1] if reset_id is None else np.array([reset_id], ids.dtype)
    title = os.path.basename(name)
    return EvalText(name, title, ids[num_fed:], context, unknown_chars, num_before=num_fed, reset_id=reset_id)


def read_alike(file: ModelFile) -> CorpusConfig:
    """Return how to read another text as the training text was read: as bytes, in documents."""
    config = file.corpus_config
    return replace(
        CorpusConfig(bytes=file.vocab.has_bytes),
        **{name: getattr(config, name) for name in ("documents", "keep_separator", "column", "label", "label_from")},
    )


def cached_training_text(file: ModelFile, cache: Cache) -> Corpus | None:
    """Find the text that a model was trained on in the cache, and split it as in training; None if it is not there.

    Raises InputError if the model has no record of its text.
    """
    record, config = _text_record(file), file.corpus_config
    corpus = find_corpus(record.get("key", ""), config, cache)
    return None if corpus is None or corpus.sha256 != record["sha256"] else _split_as_in_training(file, corpus)


def read_training_text(file: ModelFile, paths: Sequence[str], cache: Cache, *, max_bytes: int | None = None) -> Corpus:
    """Read the text that a model was trained on, and split it as in training.

    paths: its files. If the held-out text was a file of its own (--valid), that is the last one.
    Raises InputError if they are missing or hold another text, which then doesn't reach the cache.
    """
    record, config = _text_record(file), file.corpus_config
    if not paths:
        names = [STDIN] if config.valid == STDIN else record["paths"]
        raise InputError(f"{_describe(names)}; name it with --train-text FILE")
    if config.valid is not None:
        *paths, valid = paths
        if not paths:
            raise InputError(
                f"the model was trained with --valid {config.valid}; name that file too, last: "
                f"--train-text FILE --train-text {config.valid}"
            )
        config = replace(config, valid=valid)
    try:
        find_codec(config.encoding)
    except (LookupError, ValueError):
        raise InputError(
            f"the training text was read as {shorten(config.encoding)}, which this Python can't read"
        ) from None
    corpus = load_corpus(paths, config, SourceConfig(max_bytes=max_bytes), cache, sha256=record["sha256"])
    return _split_as_in_training(file, corpus)


def _text_record(file: ModelFile) -> dict[str, Any]:
    """Return what a model file says about its training text: at least `paths` and `sha256`."""
    text, split = (file.provenance.get(name, {}) for name in ("text", "split"))
    if not ({"paths", "sha256"} <= text.keys() and {"num_train", "num_valid"} <= split.keys()):
        raise InputError("the model has no record of its training text")
    return dict(text)


def _describe(names: Sequence[str]) -> str:
    if STDIN in names:
        return "the model was trained on stdin, and that text is not in the cache"
    return f"the training text, {first_of(list(map(shorten, names)), 3)}, was not found"


def _split_as_in_training(file: ModelFile, corpus: Corpus) -> Corpus:
    """Split a model's text where the model's record says."""
    text, split = (file.provenance[name] for name in ("text", "split"))
    num_train, num_valid = split["num_train"], split["num_valid"]
    fits = num_train > 0 and num_valid > 0 and num_train + num_valid <= len(corpus.ids)
    if corpus.vocab != file.vocab or not fits:
        raise InputError("the model's record of its training text is invalid")
    return replace(corpus, names=tuple(text["paths"]), num_train=num_train, num_valid=num_valid)


def held_out_text(file: ModelFile, corpus: Corpus, *, documents: str = "") -> EvalText:
    """Return the held-out text that chose a model's weights.

    documents: lines, if each is scored by itself by a model that was not trained on documents.
    """
    valid, reset_id = file.corpus_config.valid, file.vocab.id_of(END)
    num_before, first_number = 0, 1
    if reset_id is None:
        num_before, first_number = _count_before(corpus.valid_context, file.vocab.id_of("\n"))
    if documents:
        if reset_id is not None:
            raise UsageError("--documents needs a TEXT; this model's held-out text is already split into documents")
        reset_id = _line_start(file, documents)
    names = [os.path.basename(name) for name in corpus.names]
    more = ", …" if len(names) > 3 else ""
    return EvalText(
        name=valid or ", ".join(names),
        title=valid or f"Held-out part of {', '.join(names[:3])}{more}",
        ids=corpus.valid_ids,
        context=corpus.valid_context,
        num_before=num_before,
        first_number=first_number,
        reset_id=reset_id,
    )


def _count_before(context: Ids, newline: int | None) -> tuple[int, int]:
    """Return how many characters a context's last line has, at most _MAX_BEFORE, and the number of that line."""
    num_lines = 0
    for start in range(0, len(context), _PIECE):
        num_lines += int(np.count_nonzero(context[start : start + _PIECE] == newline))
    ends = np.flatnonzero(context[-_MAX_BEFORE:] == newline)
    last = min(len(context), _MAX_BEFORE)
    return last - int(ends[-1]) - 1 if len(ends) else last, 1 + num_lines
